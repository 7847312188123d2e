"""Published weights without a configuration: read under their published names, to the outputs of the networks they are of."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from regraft.config.data import DataSpec
from regraft.data.encode import encode_split
from regraft.data.images import ImagePreprocessor
from regraft.data.read import load
from regraft.errors import ModelError
from regraft.models.known_weights import read_known, recognised
from regraft.models.load import load_backbone, require_encoder, require_hash, weights_sha256


def shaken(module: nn.Module) -> nn.Module:
    """The module in eval mode with every tensor moved, so that no BatchNorm is the identity."""
    torch.manual_seed(0)
    with torch.no_grad():
        for tensor in module.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.1 * torch.rand_like(tensor))
    return module.eval()


def vgg(norm: bool) -> nn.Module:
    """A small VGG of plain layers, named as in torchvision."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            layers, before = [], 3
            for width in (4, "pool", 6, 6, "pool"):
                if width == "pool":
                    layers.append(nn.MaxPool2d(2, 2))
                    continue
                layers += [
                    nn.Conv2d(before, width, 3, padding=1),
                    *([nn.BatchNorm2d(width)] if norm else []),
                    nn.ReLU(),
                ]
                before = width
            self.features, self.avgpool = nn.Sequential(*layers), nn.AdaptiveAvgPool2d(3)
            self.classifier = nn.Sequential(
                nn.Linear(54, 10), nn.ReLU(), nn.Dropout(), nn.Linear(10, 10), nn.ReLU(), nn.Dropout(), nn.Linear(10, 5)
            )  # fmt: skip

        def forward(self, x):
            return self.classifier(self.avgpool(self.features(x)).flatten(1))

    return Net()


class Conv(nn.Module):
    def __init__(self, before, width, size, stride=1):
        super().__init__()
        self.conv = nn.Conv2d(before, width, size, stride, size // 2, bias=False)
        self.bn = nn.BatchNorm2d(width, eps=1e-3)

    def forward(self, x):
        return torch.relu(self.bn(self.conv(x)))


class Branches(nn.Module):
    def __init__(self, before):
        super().__init__()
        self.branch1 = Conv(before, 2, 1)
        self.branch2 = nn.Sequential(Conv(before, 3, 1), Conv(3, 4, 3))
        self.branch3 = nn.Sequential(Conv(before, 2, 1), Conv(2, 3, 3))
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, 1, 1, ceil_mode=True), Conv(before, 1, 1))

    def forward(self, x):
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1)


class GoogLeNet(nn.Module):
    """Two, two and one block, named as in torchvision, with a head that only training uses."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.conv3 = Conv(3, 4, 7, 2), Conv(4, 4, 1), Conv(4, 6, 3)
        self.inception3a, self.inception3b = Branches(6), Branches(10)
        self.inception4a, self.inception4b = Branches(10), Branches(10)
        self.inception5a = Branches(10)
        self.aux1 = nn.Linear(10, 5)
        self.fc = nn.Linear(10, 5)

    def forward(self, x):
        pool = lambda y, k=3: nn.functional.max_pool2d(y, k, 2, ceil_mode=True)  # noqa: E731
        x = pool(self.conv3(self.conv2(pool(self.conv1(x)))))
        x = pool(self.inception3b(self.inception3a(x)))
        x = pool(self.inception4b(self.inception4a(x)), 2)
        return self.fc(self.inception5a(x).mean((2, 3)))


def resnet(kind: str) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """A tiny ResNet of transformers, and its weights under the names of torchvision."""
    from transformers import ResNetConfig, ResNetForImageClassification

    sizes = [8, 16] if kind == "basic" else [32, 64]
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=8, hidden_sizes=sizes, depths=[2, 1], layer_type=kind, num_labels=5)
    net = shaken(ResNetForImageClassification(config))

    def renamed(name: str) -> str:
        name = name.replace("resnet.embedder.embedder.convolution", "conv1").replace(
            "resnet.embedder.embedder.normalization", "bn1"
        )
        name = re.sub(
            r"resnet\.encoder\.stages\.(\d)\.layers\.(\d+)\.", lambda m: f"layer{int(m[1]) + 1}.{m[2]}.", name
        )
        name = name.replace("shortcut.convolution", "downsample.0").replace("shortcut.normalization", "downsample.1")
        name = re.sub(r"layer\.(\d)\.convolution", lambda m: f"conv{int(m[1]) + 1}", name)
        name = re.sub(r"layer\.(\d)\.normalization", lambda m: f"bn{int(m[1]) + 1}", name)
        return name.replace("classifier.1", "fc")

    return net, {renamed(name): value for name, value in net.state_dict().items()}


@pytest.mark.inventory("backbone-cnn", by="models.main.name: a folder of published weights")
@pytest.mark.parametrize("name", ["vgg", "vgg-bn", "googlenet", "resnet-basic", "resnet-bottleneck"])
def test_weights_under_published_names_give_the_outputs_of_the_network_they_are_of(name):
    if name.startswith("resnet"):
        net, state = resnet(name.removeprefix("resnet-"))
    else:
        net = shaken(GoogLeNet() if name == "googlenet" else vgg(norm=name == "vgg-bn"))
        state = net.state_dict()
    found = recognised(state)
    assert found is not None
    assert found.classes == 5
    x = torch.randn(2, 3, 63, 70)
    with torch.no_grad():
        want = net(x).logits if name.startswith("resnet") else net(x)
        torch.testing.assert_close(found.build()(x), want, rtol=1e-5, atol=1e-6)


@pytest.mark.inventory("backbone-cnn", by="models.main.name: a folder of published weights")
def test_resnet20_of_the_shared_weights_has_the_accuracy_that_is_known_of_it(shared_data):
    folder = shared_data("weights_resnet20_cifar10")
    dataset = load(DataSpec(path=str(shared_data("cifar10_jpg")), image="img", label="label"))
    prepare = ImagePreprocessor.from_model(folder, column="img")
    rows = torch.arange(0, 1000, 4).numpy()
    encoded = encode_split(dataset, "test", prepare, rows=rows)
    network = read_known(folder).build()
    with torch.no_grad():
        guesses = network(encoded.collate(torch.arange(250).numpy())["x"]).argmax(1).numpy()
    accuracy = (guesses == dataset.targets("test")[rows]).mean()
    assert abs(accuracy - 0.804) < 0.06, "of all 1,000 images it is 0.804; these are 250 of them"


def test_squeezenet_of_the_shared_weights_is_read_with_its_thousand_classes(shared_data):
    folder = shared_data("weights_squeezenet1_0_imagenet")
    found = read_known(folder)
    assert (found.classes, found.side, sum(p.numel() for p in found.build().parameters())) == (1000, 227, 1_248_424)
    assert len(load_backbone(str(folder), modality="image").boundaries()) >= 8


@pytest.mark.inventory("backbone-cnn", by="models.main.sha256")
def test_a_name_under_the_models_folder_is_found_and_its_hash_is_checked(tmp_path, monkeypatch):
    (tmp_path / "tiny-vgg").mkdir()
    save_file(shaken(vgg(norm=True)).state_dict(), tmp_path / "tiny-vgg" / "model.safetensors")
    monkeypatch.setenv("REGRAFT_MODELS", str(tmp_path))
    backbone = load_backbone("tiny-vgg", modality="image")
    assert [place.channels for place in backbone.boundaries()] == [4, 6, 10]
    good = weights_sha256(tmp_path / "tiny-vgg")
    require_hash(tmp_path / "tiny-vgg", good.upper())
    with pytest.raises(ModelError, match=f"must be {'0' * 64}, as the recipe says, and is {good}"):
        require_hash(tmp_path / "tiny-vgg", "0" * 64)
    with pytest.raises(ModelError, match="is an image network, but the data is of modality text"):
        require_encoder("tiny-vgg", modality="text")


def test_tensors_of_no_known_network_are_refused(tmp_path):
    save_file(
        {"layer1.0.conv1.weight": torch.ones(3, 3, 3, 3), "fc.weight": torch.ones(2, 2)}, tmp_path / "model.safetensors"
    )
    with pytest.raises(ModelError, match="are of no ResNet, VGG, GoogLeNet or SqueezeNet"):
        load_backbone(str(tmp_path), modality="image")


@pytest.mark.inventory("backbone-cnn", by="models.main.network: ResNet, VGG, Inception, SqueezeNet")
@pytest.mark.parametrize("name", ["ResNet", "VGG", "Inception", "SqueezeNet"])
def test_a_fresh_network_of_each_family_learns_and_is_a_function_of_its_seed(name):
    from regraft.config.catalogue import find

    spec = find("network", name)()
    network, twin = (spec.build((3, 32, 32), 3, seed=1) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), twin.parameters(), strict=True))
    torch.manual_seed(0)
    y = torch.arange(12) % 3
    x = torch.randn(12, 3, 32, 32) + 2.0 * torch.eye(3)[y][:, :, None, None]
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_images_too_small_for_a_vgg_are_refused():
    from regraft.models.conv_networks import VGG

    with pytest.raises(ModelError, match=r"VGG.stages: 3 stages halve images of at least 8 pixels, got 4"):
        VGG().build((3, 4, 4), 2)


def write_pictures(folder, shared_data) -> None:
    """Twelve pictures of two classes as files."""
    import pyarrow.parquet as pq

    table = pq.read_table(shared_data("cifar10_jpg") / "train.parquet").slice(0, 400).to_pylist()
    for label in (0, 1):
        (folder / str(label)).mkdir(parents=True)
        for index, row in enumerate([row for row in table if row["label"] == label][:12]):
            (folder / str(label) / f"{index}.jpg").write_bytes(row["img"]["bytes"])


@pytest.mark.inventory("backbone-cnn", by="regraft adapt --model FOLDER")
def test_the_path_reads_a_recipe_that_names_such_weights(tmp_path, shared_data):
    from regraft.config.recipe import parse_recipe
    from regraft.models.save import load_model, save_model
    from regraft.phases.build import assemble

    write_pictures(tmp_path / "pictures", shared_data)
    model = shared_data("weights_resnet20_cifar10")
    recipe = {
        "data": {"main": {"path": str(tmp_path / "pictures")}},
        "models": {"main": {"name": str(model), "sha256": weights_sha256(model)}},
        "stages": [{"name": "adapt", "steps": 1}],
        "techniques": [{"LastK": {"blocks": 1}}],
    }
    made = assemble(parse_recipe(json.dumps(recipe)))
    batch = next(iter(made.recipe.stages[0].source.batches(made.base)))
    made.base.eval()
    save_model(made.base, tmp_path / "saved", preprocessor_json={"kind": "t"}, labels=["a", "b"], task="binary")
    again, _ = load_model(tmp_path / "saved")
    with torch.no_grad():
        assert torch.equal(again(x=batch["x"]), made.base(x=batch["x"]))
    recipe["models"]["main"]["sha256"] = "f" * 64
    with pytest.raises(ModelError, match="the sha256 of its weights must be ffff"):
        assemble(parse_recipe(json.dumps(recipe)))


@pytest.mark.parametrize(("make", "first"), [(GoogLeNet, -1.0), (lambda: vgg(norm=True), -0.485 / 0.229)])
def test_images_are_normalised_as_the_published_weights_were_trained(tmp_path, make, first):
    save_file(shaken(make()).state_dict(), tmp_path / "model.safetensors")
    prepare = ImagePreprocessor.from_model(tmp_path, column="img")
    black = -prepare.mean[0] / prepare.std[0]
    assert black == pytest.approx(first)
