"""The recipes that the lab interrupts: what trains, by which technique, with which randomness, with batches made ahead or not.

Every recipe has two stages of seven steps over three batches an epoch, and takes each batch in two slices.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from regraft.config.recipe import RecipeSpec, recipe_from_tree

STEPS, BATCH, ROWS = 7, 16, 48
NOISES = ("dropout", "augmentation", "MixUp")


@dataclass(frozen=True)
class Variant:
    """What is trained and how, apart from where its randomness comes from."""

    techniques: tuple[Any, ...] = ()
    train: dict[str, Any] = field(default_factory=dict)
    models: dict[str, Any] = field(default_factory=dict)
    others: dict[str, Any] = field(default_factory=dict)  # entries of `data:` beside main
    changes: dict[str, Any] = field(default_factory=dict)
    network: str = "MLP"
    noises: tuple[str, ...] = NOISES
    prefetch: tuple[bool, ...] = (False, True)
    judged: bool = True  # is it validated?


TASKS = {"ways": 3, "shots": 2, "queries": 2, "tasks": 2}
SLOW_SGD = {"optimizer": {"SGD": {"lr": 0.05, "momentum": 0.9, "nesterov": True}}}
VARIANTS = {
    "SGD": Variant(train=SLOW_SGD),
    "AdamW": Variant(train={"schedule": {"Cosine": {}}}),
    "bf16": Variant(train={"precision": "bf16"}),
    "patience": Variant(changes={"validate": {"times": 7, "patience": 3}}),
    "SAM": Variant(({"SAM": {"rho": 0.1}},), train=SLOW_SGD),
    "WeightAverage": Variant(({"WeightAverage": {"decay": 0.9}},)),
    "uniform average": Variant(({"WeightAverage": {"kind": "uniform", "last": 0.6}},)),
    "LoRA": Variant(({"LoRA": {"rank": 2}},)),
    "Adapter": Variant(({"Adapter": {"width": 4}},)),
    "StagedThaw": Variant(({"StagedThaw": {"shares": [0.4, 0.6]}}, {"Discriminative": {"decay": 0.5}})),
    "store in memory": Variant(({"LastK": {"blocks": 1}}, "CachePrefix"), noises=("dropout", "fixed views")),
    "store on disk": Variant(
        ({"LastK": {"blocks": 1}}, {"CachePrefix": {"keep": "disk"}}), noises=("dropout", "fixed views")
    ),
    "staged store": Variant(
        ({"StagedThaw": {"shares": [0.5, 0.5]}}, {"CachePrefix": {"dtype": "bf16"}}), noises=("dropout", "fixed views")
    ),
    "AdaptiveBackprop": Variant(({"AdaptiveBackprop": {"rho": 0.5, "weigh": 0.4}},)),
    "Distillation": Variant(
        ({"Distillation": {"teacher": "teacher"}},), models={"teacher": {"network": {"MLP": {"width": 24, "depth": 1}}}}
    ),
    "EWC": Variant(({"EWC": {"weight": 100.0, "samples": 16}},)),
    "DANN": Variant(({"DANN": {"target": "field", "width": 8}},), others={"field": {}}),
    "GAN": Variant(("GAN",), network="GenerativePair", noises=("latents",), judged=False),
    "MAML": Variant(({"MAML": TASKS},), noises=("dropout",)),
    "GRPO": Variant(({"GRPO": {"group_size": 4, "epochs": 2, "kl_weight": 0.1}},), noises=("dropout", "augmentation"),
                    prefetch=(False,)),
}  # fmt: skip


def network(variant: Variant, noise: str) -> dict[str, Any]:
    """The main model."""
    if variant.network == "GenerativePair":
        return {"network": {"GenerativePair": {"latent": 4, "width": 16}}}
    return {"network": {"MLP": {"width": 16, "depth": 2, "dropout": 0.2 if noise == "dropout" else 0.0}}}


def spec(variant: Variant, noise: str, *, prefetch: bool, every: int = 1000) -> RecipeSpec:
    """The recipe of a variant with its randomness, saved every so many steps."""
    images = noise in ("augmentation", "fixed views")
    data = {"path": "digits" if images else "wine", "limit": ROWS, "limit_valid": 24, "limit_test": 24}
    train = {"batch_size": BATCH, "micro": 2, "optimizer": {"AdamW": {"lr": 3e-3}}} | variant.train
    if images:
        train |= {"augment": True} | ({"views": 2} if noise == "fixed views" else {})
    techniques = list(variant.techniques)
    techniques += [{"MixUp": {"alpha": 0.4}}] if noise == "MixUp" else []
    techniques += [{"Prefetch": {"batches": 2}}] if prefetch else []
    side = {"image_size": 8} if images else {}
    models = {"main": network(variant, noise) | side, **{name: each | side for name, each in variant.models.items()}}
    tree = {
        "data": {"main": data, **{name: data | other for name, other in variant.others.items()}},
        "models": models,
        "train": train,
        "stages": [{"name": "earlier", "steps": STEPS}, {"name": "later", "steps": STEPS}],
        "techniques": techniques,
        "checkpoint": {"every_steps": every},
        "validate": {"times": 2},
    }
    return recipe_from_tree(tree | variant.changes)


def grid() -> dict[str, Callable[[int], RecipeSpec]]:
    """Every recipe by its name, given the steps between two checkpoints."""
    made: dict[str, Callable[[int], RecipeSpec]] = {}
    for name, variant in VARIANTS.items():
        for noise, prefetch in product(variant.noises, variant.prefetch):

            def make(
                every: int, variant: Variant = variant, noise: str = noise, prefetch: bool = prefetch
            ) -> RecipeSpec:
                return spec(variant, noise, prefetch=prefetch, every=every)

            made[f"{name} / {noise} / {'ahead' if prefetch else 'in turn'}"] = make
    return made
