"""What counts as the best validation result, and that its weights come back bit for bit."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import nn

from regraft.core.values import Clock, Loss
from regraft.phases.training import Validate, takes_the_place


def best_of(results: list[tuple[float, float]], rows: int = 200) -> tuple[float, nn.Module]:
    """(step of the best of (score, loss) results, the model after `restore`); the weight at a step is its number."""
    model = nn.Linear(1, 1, bias=False)
    waiting = iter(results)
    valid = SimpleNamespace(
        split="valid",
        targets=torch.zeros(rows),
        measure=lambda _: dict(zip(("score", "loss"), next(waiting), strict=True)),
    )
    hook = Validate(valid, at=range(1, len(results) + 1))  # type: ignore[arg-type]
    stage = SimpleNamespace(steps=len(results))
    for step in range(1, len(results) + 1):
        nn.init.constant_(model.weight, step)
        run = SimpleNamespace(
            recipe=SimpleNamespace(model=model, stages=[stage]), index=0, clock=Clock(step, 9), log=None, judged=print
        )
        hook.on_step(run, Loss(torch.tensor(0.0)))  # type: ignore[arg-type]
    restored = hook.restore(model)
    assert restored is not None
    return restored["step"], model


def test_a_row_more_does_not_outweigh_a_lower_loss():
    step, model = best_of([(0.560, 1.20), (0.535, 1.19), (0.550, 1.18), (0.555, 1.17)])
    assert step == 4
    assert model.weight.item() == 4


def test_a_clearly_higher_score_outweighs_any_loss():
    assert best_of([(0.50, 0.9), (0.70, 1.5), (0.68, 1.6)])[0] == 2
    assert best_of([(0.70, 1.5), (0.50, 0.9)])[0] == 1


def test_the_noise_shrinks_with_the_rows():
    assert best_of([(0.560, 1.20), (0.550, 1.10)], rows=200)[0] == 2
    assert best_of([(0.560, 1.20), (0.550, 1.10)], rows=20_000)[0] == 1


def test_the_lower_loss_decides_between_scores_that_are_level():
    def replaces(new, old, rows):
        named = ({"score": score, "loss": loss} for score, loss in (new, old))
        return takes_the_place(*named, high=max(new[0], old[0]), rows=rows)

    assert replaces((0.934, 0.25), (0.935, 0.29), 1000)  # half a standard error on 1,000 rows is 0.004
    assert not replaces((0.934, 0.25), (0.935, 0.29), 1_000_000)
    assert not replaces((0.935, 0.25), (0.935, 0.25), 1000)
    assert replaces((0.935, 0.9), (0.80, 0.1), 1000)


def test_a_best_result_that_is_level_no_longer_gives_way_to_the_newest():
    assert best_of([(0.800, 0.50), (0.815, 0.60), (0.830, 0.90)])[0] == 3  # half a standard error: 0.014, 0.013
