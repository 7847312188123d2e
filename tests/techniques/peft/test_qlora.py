"""QLoRA: the numbers of its 4 and 8 bits, gradients that reach the changes alone, and the memory that it saves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import torch
import toy
from scipy.stats import norm
from techniques.peft import tiny
from torch import nn

from regraft.core import compile, fit
from regraft.errors import ConfigError
from regraft.layers import quantised
from regraft.layers.quantised import (
    BLOCK,
    QuantisedBase,
    QuantisedLinear,
    change_parameters,
    from_4_bits,
    normal_float,
    quantised_layers,
    to_4_bits,
    to_8_bits,
)
from regraft.techniques.peft.qlora import QLoRA

PAPER = [  # Dettmers et al. 2023, arXiv:2305.14314, appendix E
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
]  # fmt: skip
BITS = pytest.mark.parametrize("bits", [4, 8])


def weights(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.05


@pytest.mark.inventory("qlora", by="technique QLoRA")
def test_the_16_values_are_the_papers_and_normal_quantiles():
    # theirs come from a rounded probability
    torch.testing.assert_close(normal_float(), torch.tensor(PAPER), rtol=0, atol=3e-7)
    top = 1 - (1 / 32 + 1 / 30) / 2
    up = [norm.ppf(0.5 + (top - 0.5) * i / 8) for i in range(1, 9)]
    down = [-norm.ppf(0.5 + (top - 0.5) * i / 7) for i in range(1, 8)]
    by_scipy = torch.tensor(sorted([*down, 0.0, *up])) / max(up)
    torch.testing.assert_close(normal_float(), by_scipy.float(), rtol=0, atol=1e-7)


@pytest.mark.inventory("qlora", by="technique QLoRA")
def test_4_bits_take_the_nearest_of_the_16_values_times_the_largest_of_the_block():
    weight = weights(8, 50)  # 400 weights: the last block is not full
    codes, scales = to_4_bits(weight)
    assert (codes.dtype, len(codes)) == (torch.uint8, 256)
    got = from_4_bits(codes, scales, (8, 50)).flatten()
    for start in range(0, 400, BLOCK):
        block = weight.flatten()[start : start + BLOCK]
        values = torch.tensor(PAPER) * block.abs().max()
        nearest = values[(block[:, None] - values).abs().argmin(1)]
        torch.testing.assert_close(got[start : start + BLOCK], nearest, rtol=1e-6, atol=0)


@pytest.mark.inventory("qlora", by="technique QLoRA: {bits: 8}")
def test_8_bits_are_off_by_half_a_step_of_their_output_at_most():
    weight = weights(6, 40)
    codes, steps = to_8_bits(weight)
    assert codes.dtype == torch.int8
    assert codes.abs().amax(1).tolist() == [127] * 6
    assert ((codes.float() * steps - weight).abs() <= steps * 0.5001).all()


def test_the_scales_of_blocks_are_off_by_half_a_step_of_their_own():
    layer = nn.Linear(64, 300)
    single, double = (QuantisedLinear(layer, bits=4, double=double) for double in (False, True))
    assert torch.equal(single.codes, double.codes)
    off = (double.block_scales() - single.scales).abs()
    steps = double.scale_steps.flatten().repeat_interleave(256)[:300]
    assert (off <= 0.501 * steps).all()
    assert off.max() > 0


def test_zero_weights_stay_zero():
    layer = nn.Linear(64, 4)
    nn.init.zeros_(layer.weight)
    for bits in (4, 8):
        whole = QuantisedLinear(layer, bits=bits, double=False).whole()
        assert torch.equal(whole, torch.zeros(4, 64))


@pytest.mark.inventory("qlora", by="technique QLoRA")
@BITS
@pytest.mark.parametrize("kind", tiny.ALL)
def test_codes_stay_and_only_changes_and_head_train(kind, bits):
    recipe = compile(toy.recipe(tiny.stage(kind)), [QLoRA(bits=bits, rank=2)])
    assert len(quantised_layers(recipe.model)) == {"gpt2": 12, "llama": 21}.get(kind, 18)
    changed = tiny.changed(recipe, lambda: fit(recipe))
    assert changed == change_parameters(recipe.model) | {"head.weight", "head.bias"}
    with_gradient = {name for name, p in recipe.model.named_parameters() if p.grad is not None}
    assert with_gradient <= changed


@pytest.mark.inventory("qlora", by="technique QLoRA")
@BITS
@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_outputs_and_gradients_are_those_of_peft_on_the_whole_weights(kind, bits):
    model = compile(toy.recipe(tiny.stage(kind)), [QLoRA(bits=bits, rank=2, alpha=6)]).model.eval()
    plain = tiny.graft(kind)
    plain.backbone.load_state_dict(quantised.whole_weights(model.backbone), strict=False)
    names = [name.removeprefix("backbone.") for name in quantised_layers(model)]
    config = peft.LoraConfig(r=2, lora_alpha=6, target_modules=names, fan_in_fan_out=kind == "gpt2")
    peft.inject_adapter_in_model(config, plain.backbone)
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name in names:
            ours, theirs = (m.backbone.get_submodule(name) for m in (model, plain))
            ours.lora_B.weight.normal_(0, 0.2, generator=g)
            theirs.lora_A["default"].weight.copy_(ours.lora_A.weight)
            theirs.lora_B["default"].weight.copy_(ours.lora_B.weight)
    given = tiny.inputs(kind)
    outputs = [m(**given) for m in (model, plain)]
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-5, atol=1e-6)
    for out in outputs:
        out.square().sum().backward()
    for name in names:
        ours, theirs = (m.backbone.get_submodule(name) for m in (model, plain))
        torch.testing.assert_close(ours.lora_A.weight.grad, theirs.lora_A["default"].weight.grad, rtol=1e-4, atol=1e-5)


@BITS
def test_the_first_output_is_the_quantised_bases_and_near_the_bases(bits):
    model = compile(toy.recipe(tiny.stage("bert")), [QLoRA(bits=bits)]).model.eval()
    plain = tiny.graft("bert")
    before = plain(**tiny.inputs("bert"))
    plain.backbone.load_state_dict(quantised.whole_weights(model.backbone), strict=False)
    torch.testing.assert_close(model(**tiny.inputs("bert")), plain(**tiny.inputs("bert")), rtol=1e-5, atol=1e-6)
    assert 0 < (plain(**tiny.inputs("bert")) - before).abs().max() < 0.1


def test_the_gradient_of_a_gradient_is_right():
    layer = QuantisedLinear(nn.Linear(64, 5), bits=4).double()
    x = torch.randn(3, 64, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,), atol=1e-5)
    assert torch.autograd.gradgradcheck(lambda x: layer(x).square(), (x,), atol=1e-5)
    per_row = torch.func.vmap(torch.func.grad(lambda row: layer(row).square().sum()))(x.detach())
    whole = torch.autograd.grad(layer(x).square().sum(), x)[0]
    torch.testing.assert_close(per_row, whole)


MEASURE = """
import gc, json, sys
import toy, torch
from torch import nn
from regraft.core import compile
from regraft.layers.quantised import quantised_layers
from regraft.techniques.peft.qlora import QLoRA

def resident():
    gc.collect()
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 1e6

def layers():
    return nn.Sequential(*(nn.Linear(2048, 2048, bias=False) for _ in range(6)), nn.Linear(2048, 4))

bits = int(sys.argv[1])
data = {"x": torch.zeros(32, 2048), "y": torch.zeros(32).long()}
compile(toy.recipe(toy.stage()), [QLoRA()])  # what is imported and set up once
before = resident()
model = layers()
full = resident() - before
recipe = compile(toy.recipe(toy.stage(model, data=data)), [QLoRA(bits=bits)])
adapted = recipe.model
del model, recipe
now, saved = resident() - before, []
with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
    adapted(torch.randn(2, 2048)).sum().backward()
counted = sum(layer.num_bytes for layer in quantised_layers(adapted).values())
print(json.dumps({"full": full, "now": now, "saved": max(saved), "counted": counted / 1e6}))
"""


@pytest.mark.inventory("qlora", by="technique QLoRA: {bits: 4}")
@pytest.mark.parametrize(("bits", "most"), [(4, 4.2), (8, 8.1)])
def test_memory_falls_as_counted_and_no_whole_weights_are_kept_for_the_backward_pass(bits, most):
    if not Path("/proc/self/statm").exists():
        pytest.skip("this system does not say how much memory a process holds")
    own = {"PYTHONPATH": str(Path(toy.__file__).parent), "MALLOC_MMAP_THRESHOLD_": "65536"}  # freed means given back
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, str(bits)],
        env=os.environ | own,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    found = json.loads(result.stdout.splitlines()[-1])
    weights = 6 * 2048**2
    assert bits < 8 * found["counted"] * 1e6 / weights < most
    assert found["full"] == pytest.approx(4 * weights / 1e6, abs=3), "the weights in 32 bits are not there"
    changes = 6 * 2 * 8 * 2048 * 4 / 1e6
    assert found["now"] == pytest.approx(found["counted"] + changes, abs=3), f"of {found}"
    assert found["saved"] < 2048**2, "weights made whole are kept for the backward pass"


@pytest.mark.inventory("qlora", by="technique QLoRA")
def test_the_memory_is_told():
    recipe = compile(toy.recipe(tiny.stage("bert")), [QLoRA(bits=8, rank=2)])
    notes = fit(recipe).notes
    now = sum(layer.num_bytes for layer in quantised_layers(recipe.model).values())
    count = 3 * (4 * 16 * 16 + 2 * 16 * 32)
    assert (
        f"QLoRA: the weights of 18 linear layers take {now / 1e6:,.2f} MB ({8 * now / count:.2f} bits each)" in notes[0]
    )


def test_the_description_rebuilds_it_with_the_same_codes():
    model = compile(toy.recipe(tiny.stage("gpt2")), [QLoRA(rank=2, targets="c_attn", blocks=1)]).model.eval()
    description = quantised.describe(model)
    assert len(description.layers) == 12
    assert description.targets == ("backbone.h.2.attn.c_attn",)
    assert QuantisedBase.from_json(description.to_json()) == description
    again = quantised.insert(tiny.graft("gpt2"), description).eval()
    assert torch.equal(again(**tiny.inputs("gpt2")), model(**tiny.inputs("gpt2")))


def test_what_cannot_be_quantised_is_refused_in_a_sentence():
    with pytest.raises(ConfigError, match=r"QLoRA.rank: must be at most 8 \(the smaller side of 0\), got 9"):
        compile(toy.recipe(toy.stage()), [QLoRA(rank=9)])
    with pytest.raises(ConfigError, match="no quantised layer is among `targets`"):
        compile(toy.recipe(tiny.stage("bert")), [QLoRA(targets="layer.0.*.query", blocks=1)])
    convolutions = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(ConfigError, match="QLoRA: the blocks of the Sequential hold no linear layers to quantise"):
        compile(toy.recipe(toy.stage(convolutions)), [QLoRA()])
