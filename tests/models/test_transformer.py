"""The transformer for training from scratch: where its norms stand, how its branches are scaled, and what comes of it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from toy import adam, recipe, stage

from regraft.config.parse import parse_one
from regraft.core import fit
from regraft.core.seeding import generator
from regraft.errors import ModelError
from regraft.models.blocks import blocks
from regraft.models.networks import rebuilt
from regraft.models.save import load_model, save_model
from regraft.models.transformer import Transformer, TransformerBlock


def products(n=512):
    """Rows whose class is the largest of four products of columns."""
    x = torch.randn(n, 8, generator=generator(0))
    return {"x": x, "y": (x[:, :4] * x[:, 4:]).argmax(1)}


def last_losses(norm, scale, *, depth=12, steps=100, lr=3e-3):
    model = Transformer(width=32, depth=depth, heads=2, norm=norm, residual_scale=scale, dropout=0.0).build((8,), 4)
    history = fit(recipe(stage(model, steps=steps, data=products(), update=adam(lr)))).history
    return sum(record["loss"] for record in history[-10:]) / 10


@pytest.mark.inventory("pre-norm", by="network Transformer: norm")
def test_a_deep_pre_norm_transformer_trains_without_warm_up_where_post_norm_does_not():
    """12 blocks, Adam at its full rate from the first step; log 4 = 1.386 is the loss of knowing nothing."""
    pre, post = last_losses("pre", "none"), last_losses("post", "none")
    assert pre < 1.1 < 1.33 < post, (pre, post)


@pytest.mark.inventory("residual-scaling", by="network Transformer: residual_scale")
def test_deepnorm_makes_post_norm_train_there():
    assert last_losses("post", "deepnorm") < 1.1


def spread(norm, scale, depth):
    """Variance of what the last block hands on, with initial weights."""
    model = Transformer(width=64, depth=depth, heads=4, norm=norm, residual_scale=scale).build((16,), 4).eval()
    seen = []
    model.blocks[-1].register_forward_hook(lambda module, args, out: seen.append(float(out.detach().var())))
    model(torch.randn(64, 16, generator=generator(1)))
    return seen[0]


@pytest.mark.inventory("residual-scaling", by="network Transformer: residual_scale")
def test_the_variance_of_the_output_is_bounded_at_any_depth_only_where_branches_are_scaled():
    scaled, plain = ([spread("pre", scale, depth) for depth in (2, 8, 32)] for scale in ("depth", "none"))
    assert max(scaled) < 2 * min(scaled), scaled
    assert plain[2] > 2 * plain[1] > 3 * plain[0], plain
    assert [spread("post", scale, 32) for scale in ("none", "deepnorm")] == pytest.approx([1.0, 1.0], abs=0.02)


@pytest.mark.inventory("residual-scaling", by="network Transformer: residual_scale")
def test_branches_are_scaled_as_the_papers_say():
    made = {
        scale: Transformer(depth=8, norm="post", residual_scale=scale).build((3, 8, 8), 4).blocks[0]
        for scale in ("none", "depth", "deepnorm")
    }
    outs = {scale: [layer.weight for layer in block.branch_outputs()] for scale, block in made.items()}
    for at in (0, 1):
        torch.testing.assert_close(outs["depth"][at], outs["none"][at] / 16**0.5)
        torch.testing.assert_close(outs["deepnorm"][at], outs["none"][at] * 64**-0.25)
    torch.testing.assert_close(made["deepnorm"].up.weight, made["none"].up.weight * 64**-0.25)
    query_key, value = made["deepnorm"].query_key_value.weight.split((128, 64))
    torch.testing.assert_close(query_key, made["none"].query_key_value.weight[:128])
    torch.testing.assert_close(value, made["none"].query_key_value.weight[128:] * 64**-0.25)
    assert [block.skip for block in made.values()] == pytest.approx([1.0, 1.0, 2.0])


@pytest.mark.inventory("layernorm", by="network Transformer")
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_a_block_is_that_of_torch_with_the_same_weights(norm):
    ours = TransformerBlock(16, 4, dropout=0.0, norm=norm, skip=1.0).eval()
    theirs = nn.TransformerEncoderLayer(
        16, 4, 64, dropout=0.0, activation="gelu", batch_first=True, norm_first=norm == "pre"
    ).eval()
    names = {
        "self_attn.in_proj_": "query_key_value.", "self_attn.out_proj.": "attention_out.", "linear1.": "up.", "linear2.": "down.",
        "norm1.": "attention_norm.", "norm2.": "mlp_norm.",
    }  # fmt: skip
    own = ours.state_dict()
    state = {}
    for name in theirs.state_dict():
        start = next(prefix for prefix in names if name.startswith(prefix))
        state[name] = own[names[start] + name.removeprefix(start)]
    theirs.load_state_dict(state)
    x = torch.randn(3, 5, 16)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-6)


def test_it_takes_images_and_rows_is_found_block_by_block_and_comes_back_from_its_folder(tmp_path):
    spec = parse_one({"Transformer": {"width": 16, "heads": 2, "depth": 3, "patch": 4}}, "network")
    for shape, count in (((3, 8, 12), 6), ((10,), 10)):
        model = spec.build(shape, 5)
        assert model.positions.shape == (count, 16)
        x = torch.randn(2, *shape)
        assert model(x).shape == (2, 5)
        assert [block.name for block in blocks(model)] == ["blocks.0", "blocks.1", "blocks.2"]
        folder = save_model(model, tmp_path / str(count), preprocessor_json={}, labels=list("abcde"), task="multiclass")
        assert torch.equal(load_model(folder)[0](x), model.eval()(x))
        assert rebuilt(model.spec).state_dict().keys() == model.state_dict().keys()


def test_what_does_not_fit_is_refused_in_a_sentence():
    for fields, shape, sentence in (
        ({"width": 10, "heads": 4}, (8,), "must divide the width 10, got 4"),
        ({"patch": 3}, (3, 8, 8), "must divide both sides of the images, 8 x 8 pixels, got 3"),
        ({"residual_scale": "deepnorm"}, (8,), "needs `norm: post`"),
    ):
        with pytest.raises(ModelError, match=sentence):
            Transformer(**fields).build(shape, 2)
