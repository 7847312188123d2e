"""Grafts on tiny transformers with random weights, encoders and decoders of text and one of images, and rows to train them on."""

from __future__ import annotations

import numpy as np
import torch
import toy
from torch import nn

from regraft.data.sources import Columns, Examples
from regraft.data.text import EncodedText
from regraft.models.attention import use_plain_attention
from regraft.models.backbone import Backbone
from regraft.models.graft import Graft

SIZES = {
    "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32,
    "max_position_embeddings": 40,
}  # fmt: skip
QUIET = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def bare(kind: str) -> nn.Module:
    """`bert`, `roberta`, `gpt2`, `llama` or `vit` without a head, the same weights at each call."""
    import transformers as t

    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "bert":
            module = t.BertModel(t.BertConfig(**SIZES, **QUIET), add_pooling_layer=False)
        elif kind == "roberta":
            module = t.RobertaModel(t.RobertaConfig(**SIZES, **QUIET, pad_token_id=1), add_pooling_layer=False)
        elif kind == "llama":
            module = t.LlamaModel(t.LlamaConfig(**SIZES, num_key_value_heads=1, use_cache=False))
        elif kind == "gpt2":
            config = t.GPT2Config(
                vocab_size=50, n_embd=16, n_layer=3, n_head=2, n_positions=40, use_cache=False, bos_token_id=0, eos_token_id=0,
                resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
            )  # fmt: skip
            module = t.GPT2Model(config)
        elif kind == "opt":
            sizes = SIZES | {"ffn_dim": 32, "word_embed_proj_dim": 16, "dropout": 0.0}
            module = t.OPTModel(t.OPTConfig(**sizes, use_cache=False))
        elif kind == "bart":
            layers = {"encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "encoder_layers": 1, "decoder_layers": 1}
            heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "d_model": 16, "vocab_size": 50}
            module = t.BartModel(t.BartConfig(**layers, **heads, max_position_embeddings=40, use_cache=False))
        else:
            sizes = {key: SIZES[key] for key in SIZES if key not in ("vocab_size", "max_position_embeddings")}
            module = t.ViTModel(t.ViTConfig(**sizes, **QUIET, image_size=8, patch_size=4), add_pooling_layer=False)
    return module.eval()


TEXT = ("bert", "roberta", "gpt2", "llama")
ALL = (*TEXT, "vit")


def rows(kind: str, count: int = 32) -> dict[str, torch.Tensor]:
    """Inputs of a network, padded at the end where they are texts, and labels `y`."""
    g = torch.Generator().manual_seed(1)
    labels = {"y": torch.randint(4, (count,), generator=g)}
    if kind == "vit":
        return {"pixel_values": torch.rand(count, 3, 8, 8, generator=g)} | labels
    lengths = torch.randint(3, 11, (count,), generator=g)
    mask = (torch.arange(10) < lengths[:, None]).long()
    ids = torch.randint(4, 50, (count, 10), generator=g)
    return {"input_ids": torch.where(mask == 1, ids, 1 if kind == "roberta" else 0), "attention_mask": mask} | labels


def graft(kind: str, *, depths: tuple[int, ...] = (2, 3), pools: tuple[str, ...] = ("mean",)) -> Graft:
    """A graft on a tiny network, with the attention that jobs give it."""
    module = bare(kind)
    example = {key: value[:2] for key, value in rows(kind).items() if key != "y"}
    use_plain_attention(module, example)
    modality = "image" if kind == "vit" else "text"
    backbone = Backbone(module=module, name=f"tiny-{kind}", modality=modality, inputs=tuple(example), example=example)
    return Graft(backbone, depths=depths, pools=pools, num_outputs=4).eval()


def source(kind: str) -> Examples:
    """The rows of a network as a source, eight at a time."""
    columns = rows(kind)
    labels = columns.pop("y").numpy()
    if kind == "vit":
        return Examples(Columns(columns), labels, batch_size=8, seed=0)
    real = columns["attention_mask"].bool()
    flat, lengths = columns["input_ids"][real].numpy().astype(np.int32), real.sum(1).numpy()
    encoded = EncodedText(flat, lengths, np.zeros(len(lengths), bool), pad_id=1 if kind == "roberta" else 0)
    return Examples(encoded, labels, batch_size=8, seed=0)


def stage(kind: str, steps: int = 4, model: nn.Module | None = None, **changes):
    """Some steps of a graft on its rows, with decay, which would show on a weight that ought to be frozen."""
    from regraft.optim.optimizers import AdamW

    update = toy.descent(AdamW(lr=0.01, weight_decay=0.5))
    model = graft(kind) if model is None else model
    return toy.stage(model, source=source(kind), steps=steps, update=update, **changes)


def inputs(kind: str) -> dict[str, torch.Tensor]:
    """The rows as a graft is called on them."""
    return {key: value for key, value in rows(kind).items() if key != "y"}


def changed(recipe, run) -> set[str]:
    """Names of the tensors that `run()` changes."""
    before = {name: value.clone() for name, value in recipe.model.state_dict().items()}
    run()
    return {name for name, value in recipe.model.state_dict().items() if not torch.equal(value, before[name])}
