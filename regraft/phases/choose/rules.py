"""Which strategies enter the race and in which order: the rules people know, each with its reason.

The rules set the order and the priors; the measurements decide.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from regraft.config.parse import parse_one
from regraft.config.recipe import CandidateSpec, TrainSpec
from regraft.core.descent import Precision
from regraft.errors import ConfigError, suggest

STRATEGIES = ("probe", "last-k", "thaw", "norm", "lora", "adapter", "full")
# of a full step; all weights of texts train without their embeddings, the last stage of a thaw with them
RELATIVE_COST = {"last-k": 0.7, "thaw": 0.95, "norm": 0.8, "lora": 0.85, "adapter": 0.85, "full": 1.0}
SMALL = {"text": 50_000_000, "image": 5_000_000}  # parameters of a backbone below which it is a small network
# rates of AdamW, by benchmarks/default_rates.py; of those that are level the lower one (see the results)
RATES = {"text": 1e-4, "image": 3e-4}  # for all or the upper weights
LIGHT_RATES = {"text": 5e-4, "image": 1e-3}  # for few weights, or added ones
LIGHT = frozenset({"norm", "lora", "adapter"})
# for all weights of a small network, where a training ends; in the middle of one they stand badly. The case for texts is
# `sst2, whole` of the same script; its result file has only shorter trainings of texts yet
SMALL_FULL = {"text": 2e-4, "image": 1e-2}
FEW_ROWS = 1000
FAR = 0.75  # of the height: where the probe is best below it, the backbone's domain is far from that of the data
PARTLY_FROZEN, STORED_FROM = (
    ("last-k", "thaw"),
    2,
)  # strategies with a frozen prefix; epochs from which a store of it pays


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the rules look at."""

    modality: Literal["text", "image", "table"]
    rows: int  # training rows
    num_blocks: int
    best_depth: float  # best single depth over the top depth, 1 means the last layer
    gap: float = 0.0  # what the probe scores there, less what it scores on the last layer
    parameters: int | None = None  # of the backbone; None where it is not known
    mirror_safe: bool = False  # images may be mirrored without changing their label
    precision: Precision = "fp32"

    @property
    def far(self) -> bool:
        """Does the backbone's last layer suit the data badly? Then its domain is far from the data's."""
        return self.best_depth < FAR

    @property
    def small(self) -> bool:
        """Too few rows to move all weights safely."""
        return self.rows < FEW_ROWS


def order(facts: Facts) -> list[tuple[str, str]]:
    """(strategy, why) in the order in which they deserve a try, without the probe."""
    if facts.modality == "table":
        return [
            ("full", "a table has no pretrained network, so all weights of a fresh one train from the linear model on")
        ]
    if facts.small and facts.far:
        first = ["adapter", "full", "lora", "last-k", "thaw", "norm"]
        why = f"small data ({facts.rows:,} rows) and a distant backbone (best depth at {facts.best_depth:.0%} of its height)"
        says = "adapters with strong augmentation first"
    elif facts.small:
        first = ["last-k", "lora", "full", "adapter", "norm", "thaw"]
        why, says = f"small data ({facts.rows:,} rows) near the backbone's own", "few trainable parameters first"
    elif facts.far:
        first = ["full", "thaw", "adapter", "lora", "last-k", "norm"]
        why = f"{facts.rows:,} rows, and the best depth is at {facts.best_depth:.0%} of the backbone's height"
        says = "lower layers have to move, so full fine-tuning with discriminative rates first"
    else:
        first = ["full", "last-k", "lora", "thaw", "adapter", "norm"]
        why = f"{facts.rows:,} rows, near the backbone's own domain"
        says = "full fine-tuning with discriminative rates first"
    if _is_small_network(facts, "image"):
        first.sort(key=lambda name: name != "full")
        why, says = f"{why}, and a network of {facts.parameters:,} parameters only", "all weights first, at a high rate"
    return [(name, f"{why}: {says}") for name in first]


def candidate(strategy: str, facts: Facts, *, steps: int, why: str) -> CandidateSpec:
    """A strategy as techniques and training options.

    Args:
        strategy: its name.
        facts: what the rules look at.
        steps: of its training.
        why: it takes part.

    Raises:
        ConfigError: no strategy has that name.
    """
    if strategy not in STRATEGIES:
        raise ConfigError(f"--strategy: no strategy is called {strategy!r}{suggest(strategy, STRATEGIES)}")
    if strategy == "probe":
        return CandidateSpec(
            name="probe", steps=0, why="the baseline: a head on frozen features, fitted to convergence"
        )
    options = _options(strategy, facts)
    nodes = _techniques(strategy, facts)
    if not options.augment and strategy in PARTLY_FROZEN and steps * options.batch_size >= STORED_FROM * facts.rows:
        nodes.append({"CachePrefix": {"keep": "disk"}})
    techniques = tuple(parse_one(node, "technique") for node in nodes)
    return CandidateSpec(name=strategy, steps=steps, techniques=techniques, train=options, why=why)


def _techniques(strategy: str, facts: Facts) -> list[Any]:
    half = max(1, facts.num_blocks // 2)
    slow_head = {"Discriminative": {"decay": 0.9, "head": 0.1, "embeddings": "frozen"}}
    if facts.modality == "table":
        return []
    return {
        "last-k": [{"LastK": {"blocks": half}}, {"Discriminative": {"decay": 0.9, "head": 0.1}}],
        "thaw": [{"StagedThaw": {"groups_per_stage": "even", "shares": [0.1, 0.3, 0.6]}}],
        "norm": [{"NormOnly": {"biases": True}}],
        "lora": [{"LoRA": {"rank": 8}}],
        "adapter": [{"Adapter": {"width": 32}}],
        "full": [slow_head],
    }[strategy]


def _is_small_network(facts: Facts, modality: str) -> bool:
    return facts.modality == modality and facts.parameters is not None and facts.parameters < SMALL[modality]


def rate_of(strategy: str, facts: Facts) -> float:
    """The rate of AdamW that a strategy begins with, as measured on small sets of its kind."""
    if strategy == "full" and _is_small_network(facts, facts.modality):
        return SMALL_FULL[facts.modality]
    return (LIGHT_RATES if strategy in LIGHT else RATES)[facts.modality]


def _options(strategy: str, facts: Facts) -> TrainSpec:
    if facts.modality == "table":
        return TrainSpec(
            batch_size=128 if facts.rows > 2000 else 32,
            optimizer=parse_one({"AdamW": {"lr": 1e-3, "weight_decay": 0.01}}, "optimizer"),
            schedule=parse_one({"Cosine": {"warmup": 0.05}}, "schedule"),
            precision=facts.precision,
        )
    rate = rate_of(strategy, facts)
    return TrainSpec(
        batch_size=32 if facts.modality == "text" or facts.rows < 5000 else 64,
        optimizer=parse_one({"AdamW": {"lr": rate, "weight_decay": 0.01}}, "optimizer"),
        schedule=parse_one({"Linear": {"warmup": 0.06}}, "schedule"),
        precision=facts.precision,
        steady=True,
        augment=facts.modality == "image",
        flip=facts.mirror_safe,
    )
