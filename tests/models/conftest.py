"""Tiny models of many architectures with random weights: no download."""

from __future__ import annotations

import pytest
import torch

SMALL = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64}
TEXT = SMALL | {"vocab_size": 100, "max_position_embeddings": 64}
IMAGE = SMALL | {"image_size": 32, "patch_size": 8}
CONV = {"hidden_sizes": [8, 16, 32, 64], "depths": [1, 2, 2, 1]}
DISTIL = {"vocab_size": 100, "dim": 32, "n_layers": 4, "n_heads": 4, "hidden_dim": 64, "max_position_embeddings": 64}
RELATIVE = {
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_buckets": 8,
    "norm_rel_ebd": "layer_norm",
}
SWIN = {"embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "image_size": 64, "patch_size": 4, "window_size": 4}
SPECS = {  # name -> configuration, number of blocks, size of images (0: text)
    "Bert": (TEXT, 4, 0),
    "Roberta": (TEXT, 4, 0),
    "DistilBert": (DISTIL, 4, 0),
    "Electra": (TEXT | {"embedding_size": 16}, 4, 0),
    "MPNet": (TEXT, 4, 0),
    "DebertaV2": (TEXT | RELATIVE, 4, 0),
    "ViT": (IMAGE, 4, 32),
    "DeiT": (IMAGE, 4, 32),
    "Beit": (IMAGE, 4, 32),
    "Dinov2": (IMAGE, 4, 32),
    "ResNet": ({"embedding_size": 8} | CONV, 6, 32),
    "ConvNext": (CONV | {"image_size": 32}, 6, 32),
    "MobileNetV1": ({"depth_multiplier": 0.25, "image_size": 32}, 26, 32),
    "MobileNetV2": ({"depth_multiplier": 0.35, "image_size": 32}, 16, 32),
    "Swin": (SWIN, 4, 64),
}


def make(name):
    """A tiny headless model in eval mode and a batch of two for it."""
    import transformers

    options, _, size = SPECS[name]
    torch.manual_seed(0)
    module = getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**options)).eval()
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[1, 7:] = 0
    text = {"input_ids": torch.randint(5, 90, (2, 12)), "attention_mask": mask}
    return module, {"pixel_values": torch.randn(2, 3, size, size)} if size else text


@pytest.fixture(params=SPECS)
def architecture(request):
    """(name, number of blocks, module, batch) of each architecture."""
    return request.param, SPECS[request.param][1], *make(request.param)


@pytest.fixture
def tiny():
    """`tiny("Bert")` is a `Backbone` of a tiny model."""
    from regraft.models.backbone import Backbone

    def build(name):
        module, batch = make(name)
        modality = "image" if SPECS[name][2] else "text"
        return Backbone(module=module, name=name, modality=modality, inputs=tuple(batch), example=batch)

    return build
