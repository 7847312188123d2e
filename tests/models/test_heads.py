"""The output layer is found and replaced, whoever built the network."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from regraft.errors import ModelError
from regraft.models.heads import head_name, replace_head


class LikeTimm(nn.Module):
    """As timm builds a vision transformer: blocks in a Sequential, a norm, a head called `head`."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, 8, 4, 4)
        self.blocks = nn.Sequential(
            *[nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0) for _ in range(2)]
        )
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 10)

    def forward(self, x):
        return self.head(self.norm(self.blocks(self.patch_embed(x).flatten(2).transpose(1, 2))).mean(1))


class Convolutional(nn.Module):
    """As timm and torchvision build a convolutional network: `fc` last."""

    def __init__(self) -> None:
        super().__init__()
        self.layer1, self.fc = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU()), nn.Linear(6, 10)

    def forward(self, x):
        return self.fc(self.layer1(x).mean((2, 3)))


def transformers_model(kind: str) -> nn.Module:
    import transformers

    small = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "num_labels": 10,
    }
    torch.manual_seed(0)
    if kind == "Bert":
        config = transformers.BertConfig(vocab_size=30, max_position_embeddings=16, **small)
        return transformers.BertForSequenceClassification(config).eval()
    return transformers.ViTForImageClassification(transformers.ViTConfig(image_size=16, patch_size=8, **small)).eval()


IDS = torch.ones(2, 5, dtype=torch.long)
PICTURE = {"pixel_values": torch.zeros(2, 3, 16, 16)}
NETWORKS = {  # name -> (builds it, its head, calls it)
    "transformers-bert": (lambda: transformers_model("Bert"), "classifier", lambda m: m(IDS).logits),
    "transformers-vit": (lambda: transformers_model("ViT"), "classifier", lambda m: m(**PICTURE).logits),
    "timm-transformer": (LikeTimm, "head", lambda m: m(PICTURE["pixel_values"])),
    "timm-convolutional": (Convolutional, "fc", lambda m: m(PICTURE["pixel_values"])),
    "plain": (lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 10)), "2", lambda m: m(torch.zeros(2, 4))),
}  # fmt: skip


@pytest.mark.inventory("head-replacement", by="regraft adapt: a head for the classes of the data")
@pytest.mark.parametrize("name", NETWORKS)
def test_the_head_is_found_and_replaced_for_the_new_classes_and_nothing_else_changes(name):
    build, head, call = NETWORKS[name]
    model = build()
    assert head_name(model) == head
    assert call(model).shape == (2, 10)
    before = {name: value.clone() for name, value in model.state_dict().items() if not name.startswith(f"{head}.")}
    replaced = replace_head(model, 3, seed=1)
    assert replaced is model
    assert call(model).shape == (2, 3)
    assert next(iter(model.get_submodule(head).weight.shape)) == 3
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert after.keys() == before.keys() | {f"{head}.weight", f"{head}.bias"}


@pytest.mark.inventory("head-replacement", by="regraft adapt: a head for the classes of the data")
def test_a_head_of_another_shape_is_refused_and_a_network_without_one_too():
    from regraft.models.graft import put_linear

    with pytest.raises(ModelError, match=r"the head takes a weight of shape \(3, 8\), got \(3, 7\)"):
        put_linear(nn.Linear(8, 3), torch.zeros(3, 7), torch.zeros(3))
    with pytest.raises(ModelError, match=r"no nn\.Linear"):
        head_name(nn.Sequential(nn.Conv2d(3, 3, 3)))
