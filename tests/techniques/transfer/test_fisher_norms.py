"""FisherNorms trains the normalisation layers that per-example gradients choose."""

from __future__ import annotations

import pytest
import torch
import toy
from torch import nn

from regraft.core import compile, fit
from regraft.core.values import Clock
from regraft.errors import ConfigError
from regraft.losses.supervised import cross_entropy
from regraft.models.anatomy import norm_layers
from regraft.models.fisher import fisher_by_loop, fisher_by_vmap, mean_fisher
from regraft.optim.optimizers import AdamW
from regraft.techniques.transfer.fisher_norms import FisherNorms


def network() -> nn.Module:
    """Three normalisation layers; what the second gives is all but ignored, so its information is small."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(8, 16), nn.LayerNorm(16), nn.ReLU(), nn.Dropout(0.3), Faint(16), nn.Linear(16, 16), nn.LayerNorm(16),
            nn.ReLU(), nn.Linear(16, 4),
        )  # fmt: skip


class Faint(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, x):
        return x + 1e-3 * self.norm(x)


def compiled(technique, **options):
    update = toy.descent(AdamW(lr=0.01, weight_decay=0.5))
    return compile(toy.recipe(toy.stage(network(), steps=4, update=update, **options)), [technique])


def by_hand(model, samples: int) -> dict[str, float]:
    """Mean over examples and parameters of squared gradients, one backward pass an example, by layer."""
    stage = toy.stage(model)
    batch = next(iter(stage.source.batches(model)))
    model.eval()
    squares = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for row in range(samples):
        model.zero_grad()
        nn.functional.cross_entropy(model(batch["x"][row : row + 1]), batch["y"][row : row + 1]).backward()
        for name, p in model.named_parameters():
            squares[name] += p.grad.square()
    model.zero_grad(set_to_none=True)
    return {
        layer: float(torch.cat([squares[name] for name in names]).mean() / samples)
        for layer, names in norm_layers(model).items()
    }


@pytest.mark.inventory("fisher-selection", by="technique FisherNorms")
def test_the_layers_with_most_fisher_information_and_the_head_are_all_that_changes():
    recipe = compiled(FisherNorms(layers=2, samples=24))
    information = by_hand(network(), 24)
    best = sorted(information, key=information.get, reverse=True)[:2]
    assert best != list(information)[:2]
    assert "4.norm" not in best
    before = {name: value.clone() for name, value in recipe.model.state_dict().items()}
    report = fit(recipe)
    changed = {name for name, value in recipe.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {f"{layer}.{own}" for layer in [*best, "8"] for own in ("weight", "bias")}
    assert "FisherNorms trains 2 of 3 normalisation layers and the head" in report.notes[0]
    assert report.notes[0].endswith(", ".join(best))


@pytest.mark.inventory("fisher-selection", by="technique FisherNorms")
def test_the_vectorised_fisher_is_that_of_a_loop_over_examples():
    model = network().double()
    stage = toy.stage(model.eval())
    batch = next(iter(stage.source.batches(model)))
    batch = batch | {"x": batch["x"].double()}
    names = frozenset(name for group in norm_layers(model).values() for name in group)
    one, other = (way(cross_entropy, model, batch, Clock(0, 1), names) for way in (fisher_by_loop, fisher_by_vmap))
    for name in names:
        torch.testing.assert_close(other[name], one[name], rtol=1e-9, atol=0)
    mean = mean_fisher(toy.stage(network()), names, samples=24)
    for layer, value in by_hand(network(), 24).items():
        found = torch.cat([mean[name] for name in norm_layers(model)[layer]]).mean()
        assert float(found) == pytest.approx(value, rel=1e-4)


def test_the_choice_is_the_same_each_time_and_leaves_weights_modes_and_random_numbers_alone():
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    chosen = [compiled(FisherNorms(layers=1, samples=48)).stages[0].trains for _ in range(2)]
    assert chosen[0] == chosen[1]
    assert torch.equal(torch.random.get_rng_state(), state)
    recipe = compiled(FisherNorms(layers=1))
    assert recipe.model.training
    assert all(p.grad is None for p in recipe.model.parameters())


def test_a_share_is_rounded_up():
    for share, count in ((0.01, 1), (0.34, 2), (1.0, 3)):
        trains = compiled(FisherNorms(share=share, samples=4)).stages[0].trains
        assert len(trains) == 2 * (count + 1)


def test_more_layers_than_there_are_and_both_ways_of_saying_it_are_refused():
    with pytest.raises(ConfigError, match=r"FisherNorms.layers: must be at most 3 .* got 4"):
        compiled(FisherNorms(layers=4, samples=4))
    with pytest.raises(ConfigError, match="give `layers` or `share`, not both"):
        FisherNorms(layers=4, share=0.5)
    with pytest.raises(ConfigError, match="has no normalisation layers"):
        compile(toy.recipe(toy.stage()), [FisherNorms()])
