"""A recipe file: what is trained on what, by which techniques, for how many steps. YAML and `RecipeSpec` say the same.

    seed: 0
    data: {main: {path: tickets.csv}}
    models: {main: {name: sentence-transformers/all-MiniLM-L6-v2}}
    train: {batch_size: 32, optimizer: {AdamW: {lr: 3.0e-4}}}
    stages: [{name: adapt, steps: 900}]
    techniques: [{LoRA: {rank: 8}}, SAM]

`regraft plan` adds `probe:` and `race:`: everything the main job does, as counted work.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field

from regraft.config.data import DataSpec
from regraft.config.parse import (
    AnyLoss,
    AnyNetwork,
    AnyOptimizer,
    AnySchedule,
    AnyTechnique,
    dump_fields,
    load_yaml,
    override,
)
from regraft.config.search import SearchSpec
from regraft.config.secrets import secret_fields
from regraft.config.spec import Spec, shown
from regraft.errors import ConfigError

FORMAT = "regraft.recipe/1"
MAIN = "main"  # the entry of `data:` and `models:` that is adapted; the others are teachers, targets and the like


def _default(name: str) -> Any:
    """A field whose default is the named part with its own defaults; it is looked up when the recipe is made."""
    return Field(default=name)


class ModelSpec(Spec):
    """A pretrained model by name, or a plain network to be trained from scratch."""

    name: str | None = None  # hub id, local Hugging Face folder, or "minilm"
    network: AnyNetwork | None = None  # MLP for tables, ConvNet for small images, GenerativePair for GAN
    head: Literal["depths", "last", "standard"] = (
        "depths"  # read all block boundaries, the last one, or keep the model's own head
    )
    depths: tuple[int, ...] = ()  # boundaries the head reads; empty: chosen by the probe
    pools: tuple[str, ...] = ()  # how tokens or positions are pooled; empty: chosen by the probe
    max_length: int | None = Field(default=None, ge=4)  # text: tokens kept of each example
    image_size: int | None = Field(default=None, ge=1)  # image: side in pixels; default the model's own
    allow_pickled_weights: bool = (
        False  # weights of a .bin, .pt or .pth file: read once without running code, kept as safetensors
    )
    sha256: str | None = Field(
        default=None, pattern="^[0-9a-fA-F]{64}$"
    )  # of the weights, checked when they are loaded
    weights: Literal["pretrained", "fresh"] = "pretrained"  # of a model with a `name`; fresh: its network, from scratch
    commercial: bool = False  # refuse weights whose licence forbids commercial use, or does not say that it is allowed
    packing: bool = (
        False  # text: examples of a batch share rows, so that almost nothing is padding in any order of examples
    )


class ScaleSpec(Spec):
    """The batch size that the learning rate was found for. Goyal et al., 2017, arXiv:1706.02677, section 2.1."""

    batch_size: int = Field(ge=1)
    rule: Literal["linear", "sqrt"] = "linear"  # the rate grows with the batch, or with its root (for Adam and its kin)


class TrainSpec(Spec):
    """How each step is made."""

    batch_size: int = Field(default=32, ge=1)
    scale_from: ScaleSpec | None = None  # the rate is given for another batch size, and is scaled to this one
    micro: int = Field(default=1, ge=1)  # slices a batch is cut into; the gradient is that of the whole batch
    optimizer: AnyOptimizer = _default("AdamW")
    schedule: AnySchedule = _default("Constant")
    loss: AnyLoss | None = None  # what outputs and labels are compared by; default the usual one of the task
    max_norm: float | None = Field(default=1.0, gt=0)  # gradients are scaled down to this global norm
    max_value: float | None = Field(default=None, gt=0)  # entries of gradients are cut off at this size before that
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"  # of both passes; weights and their updates stay fp32
    steady: bool = False  # train the weights in eval mode: dropout off, running statistics still
    augment: bool = False  # images: small random crops, shifts and changes of brightness
    views: int | None = Field(
        default=None, ge=2
    )  # with augment: as many fixed looks of each image, which can be stored; default a new one each time
    flip: bool = False  # images: mirror at random; only where left and right mean the same


class ValidateSpec(Spec):
    """When validation is run, and when training stops for lack of progress."""

    times: int = Field(default=4, ge=1)  # evaluations in a stage, evenly spaced; the last is at its end
    patience: int | None = Field(default=None, ge=1)  # evaluations without a better result before the stage stops


class CheckpointSpec(Spec):
    """How often a run can be resumed from, and which checkpoints are kept."""

    every_steps: int = Field(default=200, ge=1)
    keep_last: int = Field(default=2, ge=1)  # the newest ones
    keep_best: int = Field(default=0, ge=0)  # those with the best validation scores too, saved when they were measured


class StageSpec(Spec):
    """One phase of training."""

    name: str
    steps: int = Field(ge=1)
    data: str = MAIN


class ProbeSpec(Spec):
    """The probe on frozen features: what is read and how the head is chosen, out of fold."""

    folds: int = Field(default=5, ge=2)
    views: int | None = Field(
        default=None, ge=0
    )  # images: augmented views of each example the head is fitted on as well
    depths: Literal["all", "last"] = "all"  # compare every height, or read the last layer only
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # of the forward passes; auto is measured once, by the plan


class CandidateSpec(Spec):
    """One strategy of the race: its techniques, its training options and its counted work."""

    name: str
    steps: int = Field(ge=0)  # of the full adaptation, should it win; 0 for the probe
    techniques: tuple[AnyTechnique, ...] = ()
    train: TrainSpec = Field(default_factory=TrainSpec)
    why: str = ""  # the rule that put it here


class RaceSpec(Spec):
    """Successive halving: after each rung the better half goes on. Jamieson and Talwalkar, 2016, arXiv:1502.07943."""

    candidates: tuple[CandidateSpec, ...]
    rungs: tuple[int, ...] = ()  # steps of the short training that every candidate still in the race makes in each rung


class RecipeSpec(Spec):
    """A whole recipe. Every field has its place in the YAML file under the same name."""

    format: str = FORMAT
    seed: int = 0
    data: dict[str, DataSpec]
    models: dict[str, ModelSpec]
    train: TrainSpec = Field(default_factory=TrainSpec)
    stages: tuple[StageSpec, ...] = ()
    techniques: tuple[AnyTechnique, ...] = ()
    validate_: ValidateSpec = Field(default_factory=ValidateSpec, alias="validate")
    checkpoint: CheckpointSpec = Field(default_factory=CheckpointSpec)
    processes: int = Field(default=1, ge=1, le=64)  # that make each step of `regraft train` together, on this machine
    probe: ProbeSpec | None = None
    race: RaceSpec | None = None
    search: SearchSpec | None = None  # fields to be searched over by `regraft search`
    budget_s: float | None = Field(default=None, gt=0)  # seconds the plan turns into counted work
    strategy: str | None = None  # skips the race: probe, last-k, thaw, norm, lora, adapter or full
    constraint: Literal["edge", "dynamic"] | None = (
        None  # small hardware, a domain that changes: the plan says what to do
    )
    ignore_audit_errors: bool = False
    reasons: tuple[str, ...] = ()  # why the plan is as it is, a sentence each

    def main_data(self) -> DataSpec:
        """The data set that is adapted to."""
        return self.data[MAIN]

    def main_model(self) -> ModelSpec:
        """The model that is adapted."""
        return self.models[MAIN]


def parse_recipe(text: str, *, where: str = "recipe.yaml", overrides: Sequence[str] = ()) -> RecipeSpec:
    """The recipe a YAML text holds, with `path.to.field=value` overrides applied.

    Raises:
        ConfigError: not YAML, an unknown name or field (with the nearest valid one), or a value out of its domain.
    """
    tree = load_yaml(text, where)
    for assignment in overrides:
        override(tree, assignment)
    return recipe_from_tree(tree, where)


def recipe_from_tree(tree: dict[str, Any], where: str = "recipe.yaml") -> RecipeSpec:
    """As `parse_recipe`, from plain values."""
    held = next(secret_fields(tree), None)
    if held is not None:
        raise ConfigError(
            f"{where}: {held} holds a token, key or password, and a recipe is copied into the run; take it out, and put a "
            "hub token into the environment variable HF_TOKEN"
        )
    if tree.get("format", FORMAT) != FORMAT:
        raise ConfigError(
            f"{where}: format must be {FORMAT!r}, got {shown(tree['format'])}; it was written by another version of regraft"
        )
    tree = tree | {"techniques": _named(tree.get("techniques"), f"{where}: techniques")}
    try:
        spec = RecipeSpec(**tree)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    for section, entries in (("data", spec.data), ("models", spec.models)):
        if MAIN not in entries:
            raise ConfigError(f"{where}: `{section}:` must have an entry called 'main', got {sorted(entries)}")
    return spec


def _named(nodes: Any, where: str) -> Any:
    """Techniques parsed one by one, so that an error says which entry of the list it is in."""
    from regraft.config.parse import parse_one

    if nodes is None:
        return ()
    if not isinstance(nodes, list | tuple):
        raise ConfigError(f"{where}: must be a list of techniques, got {shown(nodes)}")
    return tuple(parse_one(node, "technique", f"{where}[{i}]") for i, node in enumerate(nodes))  # pyright: ignore


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> RecipeSpec:
    """The recipe in a file.

    Raises:
        ConfigError: the file cannot be read or is not a valid recipe.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as a recipe ({error})") from None
    return parse_recipe(text, where=str(path), overrides=overrides)


def dump_recipe(spec: RecipeSpec) -> str:
    """The recipe as YAML, without the fields that stand at their defaults. `parse_recipe` gives the same recipe back."""
    tree = {"format": spec.format} | dump_fields(spec)
    if "validate_" in tree:
        tree["validate"] = tree.pop("validate_")
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=110)
