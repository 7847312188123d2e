from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
import torch
from torch import nn

from regraft.errors import ModelError
from regraft.layers.bottleneck import Bottlenecks, insert
from regraft.layers.low_rank import LowRank, find_targets, inject
from regraft.models.backbone import plain_backbone
from regraft.models.graft import Graft, count_parameters
from regraft.models.load import load_backbone
from regraft.models.networks import MLP, ConvNet
from regraft.models.save import describe_model, load_model, save_model
from regraft.models.standard import load_standard

ABOUT = {"preprocessor_json": {"kind": "test"}, "task": "multiclass"}
LABELS = ["a", "b", "c"]


def logits(model, batch):
    model.eval()
    with torch.no_grad():
        return model(**batch)


def run_readme(folder):
    """Logits of the README's code, run in a process of its own inside the folder; and its number of lines."""
    code = re.search(r"```python\n(.*?)\n```", (folder / "README.md").read_text(), re.DOTALL).group(1)
    assert "regraft" not in code
    script = f"{code}\nprint('BATCH', json.dumps({{k: v.tolist() for k, v in batch.items()}}))"
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    batch = {key: torch.tensor(value) for key, value in json.loads(lines[-1].removeprefix("BATCH ")).items()}
    return torch.tensor(json.loads(lines[-2])), batch, len(code.splitlines())


def shaken(model):
    """The model with every parameter moved a little, as training would."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("name", ["Bert", "MPNet", "DebertaV2", "ViT", "ResNet", "ConvNext", "MobileNetV1", "Swin"])
@pytest.mark.parametrize("depth", ["top", "lower"])
def test_graft_reads_back_to_the_same_logits(tiny, tmp_path, name, depth):
    backbone = tiny(name)
    top = backbone.boundaries()[-1].depth
    depths = [1, top] if depth == "top" else [1, top - 1]
    graft = shaken(Graft(backbone, depths=depths, pools=["mean", "max"], num_outputs=3))
    graft.cut_above()
    want = logits(graft, backbone.example)
    save_model(graft, tmp_path / "model", labels=LABELS, **ABOUT)
    loaded, info = load_model(tmp_path / "model")
    torch.testing.assert_close(logits(loaded, backbone.example), want, rtol=1e-5, atol=1e-6)
    assert info["labels"] == LABELS
    assert info["preprocessing"] == {"kind": "test"}
    assert count_parameters(loaded.head) == count_parameters(graft.head)
    assert not [f for f in tmp_path.iterdir() if f.name.startswith(".")]
    assert {f.suffix for f in (tmp_path / "model").iterdir()} <= {".json", ".safetensors", ".md"}


@pytest.mark.parametrize("name", ["lora", "adapter"])
@pytest.mark.parametrize("architecture_name", ["Bert", "MobileNetV1"])
def test_what_was_put_into_a_cut_backbone_reads_back(tiny, tmp_path, name, architecture_name):
    backbone = tiny(architecture_name)
    graft = Graft(backbone, depths=[1, 2], pools=["mean"], num_outputs=3)
    graft.cut_above()
    if name == "lora":
        graft = inject(graft, LowRank(targets=find_targets(graft), rank=2, alpha=4.0))
    else:
        first = graft.boundary(1)
        graft = insert(
            graft, Bottlenecks(width=4, places={f"backbone.{first.name}": (first.channels, first.kind == "map")})
        )
    graft = shaken(graft)
    want = logits(graft, backbone.example)
    save_model(graft, tmp_path / "model", labels=LABELS, **ABOUT)
    loaded, info = load_model(tmp_path / "model")
    assert [item["kind"] for item in info["surgery"]] == [name]
    assert torch.allclose(logits(loaded, backbone.example), want, atol=1e-6)


@pytest.mark.parametrize("spec", [MLP(width=16), ConvNet(width=4)])
def test_plain_networks_and_grafts_on_them_read_back(tmp_path, spec):
    shape = (7,) if isinstance(spec, MLP) else (1, 8, 8)
    x = torch.randn(5, *shape)
    network = shaken(spec.build(shape, 3, seed=1))
    save_model(network, tmp_path / "network", labels=LABELS, **ABOUT)
    assert torch.equal(logits(load_model(tmp_path / "network")[0], {"x": x}), logits(network, {"x": x}))
    modality = "table" if isinstance(spec, MLP) else "image"
    graft = Graft(plain_backbone(network, x, modality=modality), depths=[1, 2], pools=["mean"], num_outputs=2)
    assert graft.cut_above() > 0
    want = logits(graft, {"x": x})
    save_model(graft, tmp_path / "graft", labels=["p", "q"], **ABOUT)
    assert torch.equal(logits(load_model(tmp_path / "graft")[0], {"x": x}), want)


def test_module_of_ones_own_needs_its_class_to_be_loaded(tmp_path):
    own = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    save_model(own, tmp_path / "m", labels=["p", "q"], **ABOUT)
    with pytest.raises(ModelError, match="pass an instance of it as `module`"):
        load_model(tmp_path / "m")
    other = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    x = torch.randn(2, 3)
    assert torch.equal(load_model(tmp_path / "m", module=other)[0](x), own(x))
    with pytest.raises(ModelError, match="does not hold the weights"):
        load_model(tmp_path / "m", module=nn.Sequential(nn.Linear(3, 5)))


def test_folder_is_replaced_whole_and_a_failed_write_leaves_the_old_one(tmp_path):
    first, second = MLP(width=8).build((3,), 2), MLP(width=12).build((3,), 2)
    save_model(first, tmp_path / "m", labels=["p", "q"], **ABOUT)
    with pytest.raises(TypeError):
        save_model(second, tmp_path / "m", labels=["p", "q"], preprocessor_json={"no json": object()}, task="binary")
    assert load_model(tmp_path / "m")[0].stem.out_features == 8
    save_model(second, tmp_path / "m", labels=["p", "q"], **ABOUT)
    assert load_model(tmp_path / "m")[0].stem.out_features == 12
    assert [f.name for f in tmp_path.iterdir()] == ["m"]


def test_readme_of_a_cut_minilm_graft_gives_its_logits_in_a_fresh_process(minilm, tmp_path):
    graft = Graft(
        load_backbone("minilm", modality="text"), depths=[1, 4], pools=["mean", "max", "first"], num_outputs=3
    )
    whole = count_parameters(graft)
    assert graft.cut_above() > 0.1 * whole
    save_model(graft, tmp_path / "model", labels=LABELS, **ABOUT)
    got, batch, lines = run_readme(tmp_path / "model")
    assert lines <= 20
    assert torch.allclose(got, logits(graft, batch), atol=1e-5)
    assert json.loads((tmp_path / "model" / "config.json").read_text())["num_hidden_layers"] == 4
    assert describe_model(graft)["licence"] == "apache-2.0"


@pytest.mark.parametrize("lora", [False, True])
def test_readme_of_a_cut_mobilenet_graft_gives_its_logits_in_a_fresh_process(shared_data, tmp_path, lora):
    folder = shared_data("weights_mobilenetv1_025_vww")
    graft = Graft(load_backbone(str(folder), modality="image"), depths=[3, 12], pools=["mean", "grid"], num_outputs=3)
    graft.cut_above()
    if lora:
        graft = inject(graft, LowRank(targets=find_targets(graft), rank=2, alpha=4.0))
        torch.manual_seed(0)
        for name, parameter in graft.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.1)
    save_model(graft, tmp_path / "model", labels=LABELS, **ABOUT)
    got, batch, lines = run_readme(tmp_path / "model")
    assert lines <= 20
    assert torch.allclose(got, logits(graft, batch), atol=1e-5)


def test_standard_head_loads_with_plain_transformers_to_the_same_logits(minilm, tmp_path):
    model = load_standard("minilm", modality="text", num_outputs=3, labels=LABELS)
    model.set_head(torch.randn(3, 384), torch.randn(3))
    save_model(model, tmp_path / "model", labels=LABELS, **ABOUT)
    script = (
        "import json, torch\nfrom transformers import AutoModelForSequenceClassification as A, AutoTokenizer as T\n"
        "m = A.from_pretrained('.').eval(); b = T.from_pretrained('.')(['an example'], return_tensors='pt')\n"
        "print(json.dumps([m(**b).logits.tolist(), b['input_ids'].tolist(), m.config.id2label[1]]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path / "model", capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    got, ids, label = json.loads(done.stdout.splitlines()[-1])
    batch = {"input_ids": torch.tensor(ids), "attention_mask": torch.ones(1, len(ids[0]), dtype=torch.long)}
    assert torch.allclose(torch.tensor(got), logits(model, batch), atol=1e-5)
    assert label == "b"
    assert torch.equal(logits(load_model(tmp_path / "model")[0], batch), logits(model, batch))


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks for it
def test_lora_on_a_standard_head_loads_with_plain_peft(minilm, tmp_path):
    import peft
    from transformers import AutoModelForSequenceClassification

    model = load_standard("minilm", modality="text", num_outputs=3, labels=LABELS)
    model = inject(model, LowRank(targets=find_targets(model, ["query", "value"]), rank=4, alpha=8.0))
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name or "classifier" in name:
            nn.init.normal_(parameter, std=0.1)
    save_model(model, tmp_path / "model", labels=LABELS, **ABOUT)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model" / "backbone")
    plain.classifier.reset_parameters()  # the head must come from the adapter folder
    loaded = peft.PeftModel.from_pretrained(plain, str(tmp_path / "model")).eval()
    batch = {"input_ids": torch.tensor([[101, 2023, 2003, 102]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
    with torch.no_grad():
        assert torch.allclose(loaded(**batch).logits, logits(model, batch), atol=1e-5)
    assert torch.allclose(logits(load_model(tmp_path / "model")[0], batch), logits(model, batch), atol=1e-6)
