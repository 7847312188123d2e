"""What each strategy of transfer promises: feature extraction, full fine-tuning, gradual unfreezing, rates by depth."""

from __future__ import annotations

import pytest
import torch
import toy
from torch import nn

from regraft.core import Hook, compile, explain, fit
from regraft.core.checkpoint import Checkpointer, load
from regraft.models.blocks import layer_groups
from regraft.models.parts import parts_of
from regraft.optim.optimizers import Adam, AdamW
from regraft.techniques.transfer.cache_prefix import CachePrefix
from regraft.techniques.transfer.discriminative import Discriminative
from regraft.techniques.transfer.last_k import LastK
from regraft.techniques.transfer.staged_thaw import StagedThaw


def convolutional() -> nn.Sequential:
    """Two blocks of convolution, batch norm and dropout, and a head."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        blocks = [
            nn.Sequential(nn.Conv2d(channels, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5))
            for channels in (1, 4)
        ]
        return nn.Sequential(nn.Unflatten(1, (1, 2, 4)), *blocks, nn.Flatten(), nn.Linear(32, 4))


def decayed(**options):
    return toy.descent(AdamW(lr=0.01, weight_decay=0.5), **options)


@pytest.mark.inventory("feature-extraction", by="technique LastK with blocks: 0")
@pytest.mark.parametrize("more", [[], [CachePrefix()]], ids=["plain", "stored"])
def test_feature_extraction_leaves_every_bit_of_the_backbone_with_the_statistics_of_batch_norm(more):
    model = convolutional()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    recipe = compile(toy.recipe(toy.stage(model, steps=20, update=decayed())), [LastK(blocks=0), *more])
    fit(recipe)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"4.weight", "4.bias"}
    assert {"1.1.running_mean", "2.1.running_var", "2.1.num_batches_tracked"} <= before.keys() - changed


class Counting(nn.Module):
    """A linear layer that counts the rows it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.rows = nn.Linear(8, 16), 0

    def forward(self, x):
        self.rows += len(x)
        return torch.relu(self.linear(x))


@pytest.mark.inventory("feature-cache", by="technique CachePrefix")
def test_with_stored_features_the_second_epoch_does_not_run_the_backbone_and_the_result_is_the_same():
    def trained(techniques, epochs):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = nn.Sequential(Counting(), nn.Linear(16, 4))
        steps = epochs * 8  # 256 rows in batches of 32
        recipe = compile(toy.recipe(toy.stage(model, steps=steps, update=decayed())), techniques)
        seen = model[0].rows
        fit(recipe)
        return model, model[0].rows - seen

    one, two = (trained([LastK(blocks=0), CachePrefix()], epochs) for epochs in (1, 2))
    assert two[1] == one[1], "the second epoch runs nothing that the first has not"
    assert one[1] < 2 * 256
    plain, rows = trained([LastK(blocks=0)], 2)
    assert rows >= 512
    assert all(
        torch.equal(a, b) for a, b in zip(plain.state_dict().values(), two[0].state_dict().values(), strict=True)
    )


@pytest.mark.inventory("full-ft", by="train without techniques, or regraft adapt --strategy full")
def test_in_full_fine_tuning_every_parameter_has_a_gradient_and_moves():
    model = toy.mlp()
    before = {name: value.clone() for name, value in model.named_parameters()}
    touched = set()
    for name, parameter in model.named_parameters():
        parameter.register_hook(lambda gradient, name=name: touched.add(name) if gradient.abs().sum() > 0 else None)
    fit(compile(toy.recipe(toy.stage(model, steps=3)), []))
    assert touched == before.keys()
    assert all(not torch.equal(value, before[name]) for name, value in model.named_parameters())


@pytest.mark.inventory("full-ft", by="train without techniques, or regraft adapt --strategy full")
def test_full_fine_tuning_has_the_highest_ceiling_on_a_near_domain_with_rows_enough():
    def ceiling(techniques, seed):
        """Accuracy on fresh rows of a network pretrained on blobs, fine-tuned to tell blobs by their radius too."""

        def near(n, seed):
            data = toy.blobs(n=n, seed=seed)
            outer = (data["x"].norm(dim=1) > 4.2).long()
            return {"x": data["x"], "y": 2 * (data["y"] // 2) + outer}

        model = toy.mlp(seed=seed)
        fit(compile(toy.recipe(toy.stage(model, data=toy.blobs(n=512, seed=seed), steps=100)), []))
        fit(compile(toy.recipe(toy.stage(model, data=near(1024, seed + 10), steps=300)), techniques))
        fresh = near(1024, seed + 20)
        with torch.no_grad():
            return float((model.eval()(fresh["x"]).argmax(1) == fresh["y"]).float().mean())

    means = [
        sum(ceiling(techniques, seed) for seed in range(3)) / 3
        for techniques in ([], [LastK(blocks=1)], [LastK(blocks=0)])
    ]
    assert means[0] > means[1] > means[2] + 0.02, means


@pytest.mark.inventory("partial-ft", by="technique LastK")
def test_partial_fine_tuning_changes_the_chosen_names_only():
    model = toy.bert_graft(blocks=3, depths=(3,))
    stage = compile(toy.recipe(toy.stage(model)), [LastK(blocks=2)]).stages[0]
    groups = layer_groups(model)
    assert stage.trains == {name for group in groups[2:] for name in group}


class Seen(Hook):
    """What stood at the first step after a resume: who requires gradients, and the optimizer's momenta."""

    def on_start(self, run):
        if not hasattr(self, "trains"):
            update = run.step.updates["all"]
            while hasattr(update, "base"):
                update = update.base
            self.stage = run.stage.name
            self.trains = {name for name, p in run.stage.model.named_parameters() if p.requires_grad}
            names = {id(p): name for name, p in run.stage.model.named_parameters()}
            self.momenta = {names[id(p)]: s["exp_avg"].clone() for p, s in update.optimizer.state.items()}


@pytest.mark.inventory("gradual-unfreeze", by="technique StagedThaw")
def test_a_thaw_that_is_resumed_midway_trains_the_same_parameters_with_the_same_momenta(tmp_path):
    def built():
        stage = toy.stage(toy.mlp(), steps=12, update=toy.descent(Adam(lr=0.01)))
        return compile(toy.recipe(stage), [StagedThaw(shares=(1, 1, 1))])

    whole = built()
    report = fit(whole, hooks=[Checkpointer(tmp_path, every=1, keep=100)])
    listed = [note for note in report.notes if " layers: " in note]
    assert listed == [
        "toy-head trains 1 of 3 layers: 4",
        "toy-thaw1 trains 2 of 3 layers: 2, 4",
        "toy-thaw2 trains 3 of 3 layers: 0, 2, 4",
    ]
    midway = next(
        state
        for state in map(load, sorted(tmp_path.iterdir()))
        if state["stage_name"] == "toy-thaw1" and state["step"] == 2
    )
    again, seen = built(), Seen()
    fit(again, hooks=[seen], resume=midway)
    assert seen.stage == "toy-thaw1"
    assert seen.trains == {"2.weight", "2.bias", "4.weight", "4.bias"}
    assert seen.momenta.keys() == seen.trains
    assert all(bool(momentum.abs().sum() > 0) for momentum in seen.momenta.values())
    for a, b in zip(whole.model.state_dict().values(), again.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.inventory("layer-freeze-rule", by="techniques LastK, StagedThaw, Discriminative")
def test_layers_are_ordered_from_general_to_specific_by_the_module_tree():
    parts = parts_of(toy.bert_graft(blocks=3, depths=(1, 3)))
    assert all("embeddings" in name for name in parts.stem)
    for number, block in enumerate(parts.blocks):
        assert all(f"layer.{number}." in name for name in block)
    assert set(parts.head) == {"head.weight", "head.bias"}


@pytest.mark.inventory("discriminative-lr", by="technique Discriminative")
def test_the_rate_of_every_layer_is_printed_and_rises_with_depth():
    model = toy.bert_graft(blocks=3, depths=(3,))
    recipe = compile(
        toy.recipe(toy.stage(model, update=toy.descent(AdamW(lr=0.001)))), [Discriminative(decay=0.5, head=2.0)]
    )
    (line,) = [line for line in explain(recipe).splitlines() if "ScaledRates" in line]
    printed = [part.rsplit(" ", 1) for part in line.partition("), ")[2].split(", ")]
    rates = [float(rate) for _, rate in printed]
    assert rates == pytest.approx([0.000125, 0.00025, 0.0005, 0.001, 0.002])
    assert rates == sorted(rates)
    assert next(name for name, _ in printed) == "stem"
    assert [name for name, _ in printed][-1] == "head"
