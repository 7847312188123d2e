from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from regraft.config.recipe import parse_recipe
from regraft.errors import ConfigError, ModelError
from regraft.layers.packing import fullest_rows, layout_of, plan_rows
from regraft.models.backbone import Backbone
from regraft.models.graft import Graft
from regraft.models.load import example_inputs
from regraft.models.packing import Packing, proved_packing
from regraft.models.save import load_model, save_model

SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
TEXT = SMALL | {"vocab_size": 100, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2}
DECODER = TEXT | {"use_cache": False}
RELATIVE = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "norm_rel_ebd": "layer_norm"}
LOCAL = {"local_attention": 8, "global_attn_every_n_layers": 2, "pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2}


def network(name, **options):
    """A tiny transformers model with random weights, in eval mode."""
    import transformers

    base = DECODER if name in ("Llama", "GPT2", "Mistral") else TEXT
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**base | options))
    module.set_attn_implementation("eager")
    return module.eval()


def batch(lengths=(11, 4, 7, 2, 9, 1)):
    """Padded examples of these lengths."""
    length = max(lengths)
    mask = (torch.arange(length) < torch.tensor(lengths).unsqueeze(1)).long()
    ids = torch.randint(4, 90, mask.shape, generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids * mask, "attention_mask": mask}


def grafted(module, **options):
    """A graft that reads all depths of a text model by mean and maximum."""
    example = example_inputs(module.config, "text")
    backbone = Backbone(module=module, name="tiny", modality="text", inputs=tuple(example), example=example)
    depths = [place.depth for place in backbone.boundaries()]
    return Graft(backbone, **{"depths": depths, "pools": ["mean", "max"], "num_outputs": 3} | options).eval()


# ---- planning rows


@given(st.lists(st.integers(0, 40), max_size=60), st.integers(40, 90))
def test_each_example_is_in_one_row_and_no_row_is_over_its_capacity(lengths, capacity):
    rows = plan_rows(lengths, capacity)
    assert sorted(example for row in rows for example in row) == list(range(len(lengths)))
    assert all(sum(lengths[example] for example in row) <= capacity for row in rows)
    assert rows == plan_rows(lengths, capacity)


@given(st.lists(st.integers(1, 12), max_size=40), st.integers(12, 20))
def test_rows_are_those_of_first_fit_decreasing_looked_for_one_by_one(lengths, capacity):
    rows = []
    for example in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        fitting = (row for row in rows if sum(lengths[i] for i in row) + lengths[example] <= capacity)
        row = next(fitting, None)
        if row is None:
            rows.append(row := [])
        row.append(example)
    assert plan_rows(lengths, capacity) == rows


def test_an_example_longer_than_a_row_is_refused():
    with pytest.raises(ValueError, match="an example has 9 tokens, a row only 8"):
        plan_rows([3, 9], 8)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=40))
def test_the_fullest_rows_have_no_more_places_than_rows_of_the_longest_or_than_padding(lengths):
    rows = fullest_rows(lengths)
    assert sorted(example for row in rows for example in row) == list(range(len(lengths)))

    def places(plan):
        return len(plan) * max(sum(lengths[example] for example in row) for row in plan)

    assert places(rows) <= places(plan_rows(lengths, max(lengths))) <= len(lengths) * max(lengths)


def test_real_lengths_leave_less_than_a_twentieth_of_the_places_empty(shared_data):
    lines = (shared_data("sst2") / "train.tsv").read_text().splitlines()[1:3201]
    lengths = [len(line.split()) + 1 for line in lines]
    places = 0
    for at in range(0, len(lengths), 32):
        part = lengths[at : at + 32]
        rows = fullest_rows(part)
        places += len(rows) * max(sum(part[example] for example in row) for row in rows)
    assert sum(lengths) / places >= 0.95


# ---- packing and unpacking


@settings(deadline=None)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=12), st.integers(12, 30), st.randoms(use_true_random=False))
def test_unpacking_what_was_packed_gives_the_examples_back_with_zeros_at_padding(lengths, capacity, random):
    length = max(lengths) + random.randint(0, 2)
    mask = torch.zeros(len(lengths), length, dtype=torch.long)
    for row, count in zip(mask, lengths, strict=True):
        row[sorted(random.sample(range(length), count))] = 1  # padding may be anywhere
    values = torch.arange(mask.numel() * 2, dtype=torch.float32).reshape(*mask.shape, 2) + 1
    layout = layout_of(mask, capacity)
    assert torch.equal(layout.unpack(layout.pack(values)), values * mask.unsqueeze(-1))
    ids = layout.pack(values[..., 0], fill=-7)
    assert torch.equal(ids == -7, layout.segments == -1)
    assert int((layout.segments >= 0).sum()) == sum(lengths)


def test_positions_restart_and_a_token_sees_its_own_example_only():
    layout = layout_of(torch.tensor([[1, 1, 0], [1, 1, 1], [1, 0, 0]]), 3)
    assert layout.rows == (2, 3)
    assert layout.segments.tolist() == [[1, 1, 1], [0, 0, 2]]
    assert layout.positions.tolist() == [[0, 1, 2], [0, 1, 0]]
    assert layout.visible(causal=False)[1, 0].int().tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
    assert layout.visible(causal=True)[1, 0].int().tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 1]]


def test_gradients_pass_through_packing_and_unpacking():
    layout = layout_of(batch()["attention_mask"])
    values = torch.randn(*layout.shape, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: layout.unpack(layout.pack(x)).square(), values)


# ---- backbones


@pytest.mark.parametrize(
    ("name", "options", "way"),
    [
        ("Bert", {}, Packing(mask="blocks", causal=False)),
        ("Roberta", {}, Packing(mask="blocks", causal=False, padding_id=1)),
        ("MPNet", {}, Packing(mask="blocks", causal=False, padding_id=1)),
        ("Llama", {"num_key_value_heads": 2}, Packing(mask="own", causal=True)),
        ("GPT2", {}, Packing(mask="own", causal=True)),
        ("Mistral", {"num_key_value_heads": 2, "sliding_window": 8}, Packing(mask="own", causal=True)),
        ("OPT", {"word_embed_proj_dim": 32, "ffn_dim": 64}, Packing(mask="blocks", causal=True)),
    ],
)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_packed_features_and_gradients_equal_unpacked_ones_at_all_depths(name, options, way, attention):
    module = network(name, **options)
    module.set_attn_implementation(attention)
    graft, inputs = grafted(module), batch()
    want = {read: features.detach() for read, features in graft.all_features(**inputs).items()}
    plain = torch.autograd.grad(graft(**inputs).square().sum(), [*graft.parameters()], allow_unused=True)
    graft.pack()
    assert graft.packing == way
    rows = []
    handle = module.register_forward_pre_hook(
        lambda part, args, given: rows.append(given["input_ids"].shape), with_kwargs=True
    )
    got = graft.all_features(**inputs)
    packed = torch.autograd.grad(graft(**inputs).square().sum(), [*graft.parameters()], allow_unused=True)
    handle.remove()
    assert rows == [torch.Size([2, 17])] * 2  # 34 tokens in 34 places instead of 66
    for read, features in got.items():
        assert (features - want[read]).abs().max() <= 1e-5 * want[read].abs().max(), read
    for one, other in zip(plain, packed, strict=True):
        if one is not None:
            assert torch.allclose(one, other, rtol=1e-4, atol=1e-5 * float(one.abs().max()) + 1e-7)


class Forgetful(nn.Module):
    """Takes positions and ignores them."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.config, self.main_input_name = inner, inner.config, "input_ids"

    def forward(self, input_ids, attention_mask=None, position_ids=None, use_cache=None):
        return self.inner(input_ids=input_ids, attention_mask=attention_mask)


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("DebertaV2", RELATIVE, "it does not run on packed rows"),
        ("ModernBert", LOCAL, "packed it gives other numbers"),  # given one mask, it drops its windows
        ("RoFormer", {}, "it does not take positions, so examples in one row cannot be told apart"),
    ],
)
def test_backbones_that_cannot_be_packed_are_refused_with_the_reason(name, options, reason):
    with pytest.raises(ModelError, match=f"packing: tiny cannot be packed: {reason}.*; leave `packing` out"):
        grafted(network(name, **options)).pack()


def test_a_backbone_that_ignores_positions_is_found_out_by_its_numbers():
    with pytest.raises(ModelError, match="gives other numbers"):
        proved_packing(Forgetful(network("Bert")), name="forgetful")
    with pytest.raises(ModelError, match="gives other numbers"):
        proved_packing(Forgetful(network("GPT2")), name="forgetful")


def test_a_graft_that_reads_no_tokens_is_not_packed(tiny):
    graft = Graft(tiny("ViT"), depths=[1], pools=["mean"], num_outputs=2)
    with pytest.raises(ModelError, match="does not read texts token by token"):
        graft.pack()


def test_proving_leaves_the_modes_and_the_weights_of_the_backbone_alone():
    graft = grafted(network("Bert")).train()
    graft.backbone.embeddings.eval()
    state = copy.deepcopy(graft.state_dict())
    graft.pack()
    assert graft.backbone.training
    assert not graft.backbone.embeddings.training
    assert all(torch.equal(value, state[name]) for name, value in graft.state_dict().items())


# ---- grafts


def test_a_batch_with_little_to_save_is_run_as_it_is_bit_for_bit():
    graft = grafted(network("Bert"))
    batches = [batch((7, 7, 7)), batch((5,)), batch((20, 20, 20, 19))]
    want = [graft(**one) for one in batches]
    graft.pack()
    assert all(torch.equal(graft(**one), wanted) for one, wanted in zip(batches, want, strict=True))


def test_packing_is_kept_by_copies_pickles_other_heads_and_cuts():
    graft = grafted(network("Bert"), depths=[1])
    graft.pack()
    others = [
        copy.deepcopy(graft),
        pickle.loads(pickle.dumps(graft)),
        graft.reading(depths=[2], pools=["max"], num_outputs=2),
    ]
    assert all(other.packing == graft.packing for other in others)
    before = graft(**batch())
    assert graft.cut_above(1) > 0
    assert torch.equal(graft(**batch()), before)


def test_the_unpacked_form_shares_all_weights_and_gives_a_row_to_each_example():
    graft = grafted(network("Bert"))
    want = graft(**batch())
    graft.pack()
    plain = graft.unpacked()
    assert torch.equal(plain(**batch()), want)
    assert graft.packing is not None
    assert plain.unpacked() is plain
    assert all(one is other for one, other in zip(graft.parameters(), plain.parameters(), strict=True))


def test_types_of_the_two_texts_of_a_pair_are_packed_along():
    graft, inputs = grafted(network("Bert"), inputs=("input_ids", "attention_mask", "token_type_ids")), batch()
    inputs["token_type_ids"] = (torch.arange(11) > 3).long() * inputs["attention_mask"]
    want = graft(**inputs)
    graft.pack()
    assert torch.allclose(graft(**inputs), want, atol=1e-5)
    assert not torch.allclose(
        graft(**inputs | {"token_type_ids": torch.zeros_like(inputs["input_ids"])}), want, atol=1e-3
    )


def test_packed_numbers_under_bfloat16_are_as_near_as_its_rounding():
    for name in ("Bert", "Llama"):
        graft = grafted(network(name))
        with torch.autocast("cpu", torch.bfloat16):
            want = graft(**batch())
            graft.pack()
            got = graft(**batch())
        assert torch.allclose(got.float(), want.float(), atol=0.02)


def test_a_saved_packed_model_is_run_unpacked_with_the_same_numbers(tmp_path):
    graft = grafted(network("Bert"))
    graft.pack()
    save_model(graft, tmp_path / "m", preprocessor_json={}, labels=["a", "b", "c"], task="multiclass")
    loaded, _ = load_model(tmp_path / "m")
    assert loaded.packing is None
    assert torch.allclose(loaded(**batch()), graft(**batch()), atol=1e-5)


def test_the_recipe_says_whether_texts_are_packed():
    text = "data: {main: {path: t.csv}}\nmodels: {main: {name: minilm, packing: %s}}"
    assert parse_recipe(text % "true").main_model().packing
    assert not parse_recipe(text % "false").main_model().packing
    with pytest.raises(ConfigError, match="packing"):
        parse_recipe(text % "[1]")


def test_a_model_is_called_with_the_positions_of_its_own_examples():
    graft = grafted(network("Roberta"))
    graft.pack()
    given = {}
    graft.backbone.register_forward_pre_hook(lambda part, args, kwargs: given.update(kwargs), with_kwargs=True)
    with torch.no_grad():
        graft(**batch((3, 2, 1)))
    assert given["position_ids"].tolist() == [[2, 3, 4], [2, 3, 2]]
    assert given["attention_mask"].shape == (2, 1, 3, 3)
