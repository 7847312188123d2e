"""What a recipe leaves open about the learning rate, settled: a rate for fine-tuning, and a rate scaled with the batch.

A recipe comes back with the values in place and a sentence in `reasons:` for each of them, so that the recipe.yaml of a run says
what was trained with and where it came from. What it comes back with is left as it is the next time.
"""

from __future__ import annotations

from typing import Any, cast

from regraft.config.recipe import RecipeSpec, TrainSpec
from regraft.core import Technique
from regraft.optim.optimizers import Optimizer

FINE_TUNING = 0.1  # times the rate for training from scratch, at most
LARGE = 1024  # examples from which on a batch is very large
LEAST_BETA2 = 0.95


def resolved(spec: RecipeSpec) -> RecipeSpec:
    """The recipe with its learning rate settled, and why."""
    train, first = _fine_tuned(spec)
    train, second = scaled(train)
    said = [*first, *second]
    return spec.replaced(train=train, reasons=(*spec.reasons, *said)) if said else spec


def _fine_tuned(spec: RecipeSpec) -> tuple[TrainSpec, list[str]]:
    """A tenth of the optimizer's own rate where pretrained weights train and the recipe names none."""
    optimizer = cast(Optimizer, spec.train.optimizer)
    if "lr" in optimizer.model_fields_set or not _moves_pretrained(spec):
        return spec.train, []
    rate = float(f"{optimizer.lr * FINE_TUNING:.12g}")
    sentence = (
        f"train.optimizer.lr is {rate:g}: pretrained weights are fine-tuned at a tenth of the rate for training from scratch, "
        f"{optimizer.lr:g} for {type(optimizer).__name__} (Devlin et al., 2019, arXiv:1810.04805, appendix A.3)"
    )
    return spec.train.replaced(optimizer=optimizer.replaced(lr=rate)), [sentence]


def _moves_pretrained(spec: RecipeSpec) -> bool:
    """Does the recipe train weights of the backbone, rather than what a technique adds to it, and no small part of them?"""
    if spec.main_model().name is None or spec.main_model().weights == "fresh":
        return False
    chosen = [t for t in spec.techniques if "trains" in cast(Technique, t).provides]
    return not chosen or any(type(t).__name__ in ("LastK", "StagedThaw") for t in chosen)


def scaled(train: TrainSpec) -> tuple[TrainSpec, list[str]]:
    """The options with the rate, and beta2 where the batch is very large, scaled from the batch that `scale_from` names."""
    scale, optimizer = train.scale_from, cast(Optimizer, train.optimizer)
    if scale is None:
        return train, []
    times = train.batch_size / scale.batch_size
    factor = times if scale.rule == "linear" else times**0.5
    rate = float(f"{optimizer.lr * factor:.12g}")
    changes: dict[str, Any] = {"lr": rate}
    rule = f"the batch of {train.batch_size:,} is {times:g} times the {scale.batch_size:,} it was given for"
    said = [
        f"train.optimizer.lr is {rate:g}, {factor:g} times {optimizer.lr:g}: {rule} ({scale.rule} scaling, "
        + (
            "Goyal et al., 2017, arXiv:1706.02677)"
            if scale.rule == "linear"
            else "Malladi et al., 2022, arXiv:2205.10287)"
        )
    ]
    betas = getattr(optimizer, "betas", None)
    if betas is not None and "betas" not in optimizer.model_fields_set and train.batch_size >= LARGE and times > 1:
        beta2 = float(f"{max(LEAST_BETA2, 1 - times * (1 - betas[1])):.6g}")
        if beta2 < betas[1]:
            changes["betas"] = (betas[0], beta2)
            said.append(
                f"train.optimizer.betas has beta2 {beta2:g} instead of {betas[1]:g}: {train.batch_size:,} examples a step are "
                f"{times:g} times as many, so the mean of squares is to span fewer steps (1 - beta2 grows with the batch, down "
                f"to {LEAST_BETA2:g}; Malladi et al., 2022, arXiv:2205.10287; Liu et al., 2019, arXiv:1907.11692, section 3.1)"
            )
    return train.replaced(optimizer=optimizer.replaced(**changes), scale_from=None), said
