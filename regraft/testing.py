"""What every technique promises, as tests to inherit: a plug-in runs the same suite as the techniques in this repository.

    from regraft.testing import Case, TechniqueContract

    class TestMyTechnique(TechniqueContract):
        case = Case(MyTechnique(weight=0.5), neutral=MyTechnique(weight=0))

Each promise is checked on two short stages over toy data, in well under a second. pytest is needed (the `dev` extra).
"""

from __future__ import annotations

import pickle
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from regraft.config.catalogue import find
from regraft.config.parse import dump_one, parse_one
from regraft.config.recipe import recipe_from_tree
from regraft.core import (
    Batch,
    Clock,
    Loss,
    Objective,
    Recipe,
    Report,
    Stage,
    Technique,
    compile,
    fit,
    forward,
    trainable,
)
from regraft.core.checkpoint import Checkpointer, load
from regraft.core.protocols import Encoded
from regraft.core.seeding import generator
from regraft.core.stage import SLOTS
from regraft.data.sources import Examples
from regraft.data.toys import Rows
from regraft.data.toys import ToyPictures as ToyPictures
from regraft.data.toys import ToySounds as ToySounds
from regraft.data.toys import ToyTexts as ToyTexts
from regraft.errors import Conflict
from regraft.losses.supervised import cross_entropy
from regraft.losses.tasks import TaskLosses
from regraft.optim.build import DescentBuilder
from regraft.optim.optimizers import SGD, Adam, Optimizer

# ---- toy data and models


Shows = Callable[[Tensor], Encoded]  # rows (N, 8) as encoded examples: Rows, ToyPictures, ToyTexts, ToySounds


def blobs(
    *, n: int = 128, classes: int = 4, width: int = 8, shift: float = 0.0, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Gaussian blobs around the same centres for every seed: x (n, width) and class ids (n,)."""
    centres = 1.5 * torch.randn(classes, width, generator=generator(7))
    random = generator(seed, 1)
    y = torch.randint(classes, (n,), generator=random)
    return centres[y] + torch.randn(n, width, generator=random) + shift, y


def examples(*, shift: float = 0.0, seed: int = 0, batch_size: int = 32, shows: Shows = Rows) -> Examples:
    """A source over blobs."""
    x, y = blobs(shift=shift, seed=seed)
    return Examples(shows(x), y, batch_size=batch_size, seed=seed)


def network(dropout: float = 0.0, *, seed: int = 0) -> nn.Module:
    """Four linear layers from 8 inputs to 4 classes, one normalised; the same weights for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(8, 16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 16), nn.LayerNorm(16), nn.ReLU(),
            nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4),
        )  # fmt: skip


class Players(nn.Module):
    """A generator and a discriminator of rows with 8 columns."""

    latent = 3

    def __init__(self, dropout: float = 0.0, *, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.generator = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 8))
            self.discriminator = nn.Sequential(nn.Linear(8, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1))

    def forward(self, x: Tensor) -> Tensor:
        """The discriminator's logits (N, 1)."""
        return self.discriminator(x)


class EachClass:
    """An objective with four tasks: each class against the rest."""

    task_names = ("a", "b", "c", "d")

    def tasks(self, model: nn.Module, batch: Batch, clock: Clock) -> TaskLosses:
        """Binary cross-entropy of each logit."""
        logits = forward(model, batch).float()
        each = F.binary_cross_entropy_with_logits(logits, F.one_hot(batch["y"], 4).float(), reduction="none")
        return TaskLosses(each.mean(0), len(each))

    def __call__(self, model: nn.Module, batch: Batch, clock: Clock) -> Loss:
        """The mean over the tasks."""
        return self.tasks(model, batch, clock).mean()


Network = Callable[[float], nn.Module]  # dropout -> a model with the same weights at each call


def toy_recipe(
    model: nn.Module,
    *,
    steps: int = 5,
    micro: int = 1,
    precision: Literal["fp32", "bf16"] = "fp32",
    optimizer: Optimizer | None = None,
    frozen: bool = False,
    shows: Shows = Rows,
    objective: Objective = cross_entropy,
) -> Recipe:
    """Two stages over different blobs, with a `teacher` among the models and a `target` among the sources.

    Args:
        model: is trained.
        steps: of each stage.
        micro: slices of a batch.
        precision: of the forward pass.
        optimizer: default Adam.
        frozen: the model's first layer does not train.
        shows: how rows are shown, such as `ToyPictures`.
        objective: of both stages.
    """
    model = _seeing(model, shows)
    if frozen:
        first = next(module for module in model.modules() if isinstance(module, nn.Linear))
        first.requires_grad_(False)
    update = DescentBuilder(optimizer=optimizer or Adam(lr=0.01), micro=micro, precision=precision)
    stages = tuple(
        Stage(
            name=name,
            model=model,
            source=examples(seed=seed, shows=shows),
            objective=objective,
            update=update,
            steps=steps,
        )
        for seed, name in enumerate(("first", "second"))
    )
    target, teacher = examples(shift=1.5, seed=4, shows=shows), _seeing(network(seed=3), shows)
    return Recipe(model=model, stages=stages, models={"teacher": teacher}, sources={"target": target})


def _seeing(model: nn.Module, shows: Shows) -> nn.Module:
    """The model, taking pictures where rows are shown as such."""
    return nn.Sequential(nn.Flatten(), *model.children()) if shows is ToyPictures else model


def state_of(recipe: Recipe) -> dict[str, Tensor]:
    """Every tensor of the model and of the last stage's objective, copied."""
    objective = recipe.stages[-1].objective
    own = objective.state_dict() if isinstance(objective, nn.Module) else {}
    tensors = {**recipe.model.state_dict(), **{f"objective.{name}": value for name, value in own.items()}}
    return {name: value.clone() for name, value in tensors.items() if isinstance(value, Tensor)}


def differing(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    """Names of tensors that are not equal bit for bit, or in one of the two only."""
    names = sorted(one.keys() | other.keys())
    return [n for n in names if n not in one or n not in other or not torch.equal(one[n], other[n])]


# ---- the contract


@dataclass(frozen=True, kw_only=True)
class _Options:
    neutral: Technique | None = None  # a setting that must change nothing, if there is one
    network: Network = network  # builds the model it trains
    effect: bool = True  # does it change the trained weights? CachePrefix must not
    noisy: bool = False  # draws random numbers in forward passes, others for slices of a batch than for the whole
    gentle: Optimizer = field(default_factory=lambda: SGD(lr=0.05))  # one that rounding in a gradient moves little
    objective: Objective = cross_entropy  # of the toy's stages; EachClass() has several tasks
    shows: Shows = Rows  # how the toy's rows are shown: as they are, as ToyPictures, as ToyTexts


@dataclass(frozen=True)
class Case(_Options):
    """A technique with an effect, and what its contract needs to know."""

    technique: Technique

    @property
    def name(self) -> str:
        """Its name in YAML."""
        return type(self.technique).__name__


class TechniqueContract:
    """The promises of one technique. Subclass it as `Test...`, and set `case`."""

    case: ClassVar[Case]

    def build(
        self, *techniques: Technique, dropout: float = 0.0, steps: int = 5, micro: int = 1,
        precision: Literal["fp32", "bf16"] = "fp32", optimizer: Optimizer | None = None, frozen: bool = False,
    ) -> Recipe:  # fmt: skip
        """A fresh compiled recipe, always with the same first weights."""
        model = self.case.network(dropout)
        recipe = toy_recipe(
            model, steps=steps, micro=micro, precision=precision, optimizer=optimizer, frozen=frozen, shows=self.case.shows,
            objective=self.case.objective,
        )  # fmt: skip
        return compile(recipe, techniques)

    def test_neutral_setting_is_the_identity_bit_for_bit(self) -> None:
        """Turned off, it is not there."""
        if self.case.neutral is None:
            pytest.skip(f"{self.case.name} has no neutral setting")
        plain, neutral = self.build(dropout=0.2), self.build(self.case.neutral, dropout=0.2)
        fit(plain)
        fit(neutral)
        assert differing(model_state(plain), model_state(neutral)) == []

    def test_it_has_an_effect(self) -> None:
        """Turned on, the trained weights are others; techniques that only save work leave them as they are."""
        plain, changed = self.build(), self.build(self.case.technique)
        fit(changed)
        if "objective" not in self.case.technique.ignores:  # else the model is none that the plain recipe can train
            fit(plain)
        same = differing(model_state(plain), model_state(changed)) == []
        assert same != self.case.effect

    def test_it_touches_only_the_slots_it_declares(self) -> None:
        """What it does not declare stays the same object, and the recipe it is given stays as it was."""
        technique = self.case.technique
        recipe = toy_recipe(
            self.case.network(0.0), frozen=True, shows=self.case.shows, objective=self.case.objective
        )  # fmt: skip
        slots = [{slot: getattr(stage, slot) for slot in SLOTS} for stage in recipe.stages]
        applied = technique.apply(recipe)
        for stage, before in zip(recipe.stages, slots, strict=True):
            assert all(getattr(stage, slot) is part for slot, part in before.items())
        assert technique.splits or len(applied.stages) == len(recipe.stages)
        if not technique.splits:
            pairs = list(zip(recipe.stages, applied.stages, strict=True))
            touched = {slot for old, new in pairs for slot in SLOTS if getattr(old, slot) is not getattr(new, slot)}
            assert touched <= technique.provides | technique.wraps

    def test_interrupted_equals_uninterrupted_bit_for_bit(self, tmp_path: Path) -> None:
        """Resumed from a checkpoint on disk after any step, the run ends with the same weights and the same log."""
        whole = self.build(self.case.technique, dropout=0.2)
        report = fit(whole, hooks=[Checkpointer(tmp_path / "whole", every=1, keep=100)], log_every=3)
        saved = sorted((tmp_path / "whole").iterdir())
        assert len(saved) == sum(report.steps.values()) - 1
        for number, folder in enumerate(saved):
            state = load(folder)
            again = self.build(self.case.technique, dropout=0.2)
            hook = Checkpointer(tmp_path / f"again-{number}", every=100)
            resumed = fit(again, hooks=[hook], resume=state, log_every=3)
            assert differing(state_of(whole), state_of(again)) == [], folder.name
            rest = of_stages(report, [stage.name for stage in again.stages[state["stage"] :]])
            made = [r for r in rest if r["stage"] == state["stage_name"] and int(r["step"]) <= state["step"]]
            assert resumed.history == rest[len(made) :]

    def test_accumulation_equals_the_full_batch(self) -> None:
        """A batch in four slices gives the step of the whole batch, up to rounding."""
        if self.case.noisy:
            pytest.skip(f"{self.case.name} draws other random numbers for slices of a batch")
        one, four = (self.build(self.case.technique, micro=micro, optimizer=self.case.gentle) for micro in (1, 4))
        fit(one)
        fit(four)
        for (name, a), b in zip(model_state(one).items(), model_state(four).values(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")

    def test_frozen_parameters_keep_their_bits(self) -> None:
        """What no stage trains is untouched by gradients, weight decay and the technique itself."""
        optimizer = Adam(lr=0.01, weight_decay=0.1)
        recipe = self.build(self.case.technique, frozen=True, optimizer=optimizer)
        names = frozen_names(recipe)
        before = {name: value.clone() for name, value in recipe.model.state_dict().items() if name in names}
        assert before
        fit(recipe)
        after = {name: value for name, value in recipe.model.state_dict().items() if name in names}
        assert differing(before, after) == []

    @pytest.mark.parametrize("precision", ["fp32", "bf16"])
    def test_losses_and_weights_are_finite(self, precision: Literal["fp32", "bf16"]) -> None:
        """In either precision; the weights move."""
        recipe = self.build(self.case.technique, precision=precision)
        before = model_state(recipe)
        report = fit(recipe)
        assert all(np.isfinite(float(record["loss"])) for record in report.history)
        assert all(bool(value.isfinite().all()) for value in model_state(recipe).values())
        assert differing(before, model_state(recipe))

    def test_yaml_gives_it_back(self) -> None:
        """Written to YAML and read again it is equal."""
        text = yaml.safe_dump(dump_one(self.case.technique))
        assert parse_one(yaml.safe_load(text), "technique") == self.case.technique

    def test_pickle_gives_it_back(self) -> None:
        """So that it can be sent to another process."""
        assert pickle.loads(pickle.dumps(self.case.technique)) == self.case.technique

    def test_cached_prefix_changes_nothing_or_is_refused(self) -> None:
        """With the frozen prefix stored, the weights are the same up to rounding, or a Conflict says why not."""
        cache = find("technique", "CachePrefix")()
        assert isinstance(cache, Technique)
        if self.case.name == "CachePrefix":
            pytest.skip("CachePrefix with itself is refused by its own tests")
        plain = self.build(self.case.technique, frozen=True)
        try:
            cached = self.build(self.case.technique, cache, frozen=True)
        except Conflict as refusal:
            assert_sentence(str(refusal))
            return
        fit(plain)
        fit(cached)
        for (name, a), b in zip(model_state(plain).items(), model_state(cached).values(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")

    def test_the_example_of_its_docstring_is_a_valid_recipe(self) -> None:
        """The YAML block parses, and names the technique."""
        tree = docstring_example(type(self.case.technique))
        main = {"data": {"main": {"path": "data.csv"}}, "models": {"main": {"name": "minilm"}}}
        spec = recipe_from_tree(tree | {key: entry | tree.get(key, {}) for key, entry in main.items()})
        assert self.case.name in [type(technique).__name__ for technique in spec.techniques]


def model_state(recipe: Recipe) -> dict[str, Tensor]:
    """Every tensor of the whole model, copied."""
    return {name: value.clone() for name, value in recipe.model.state_dict().items()}


def trained_names(recipe: Recipe) -> set[str]:
    """Names of the model's parameters that train in any stage."""
    chosen = [trainable(stage.model).keys() if stage.trains is None else stage.trains for stage in recipe.stages]
    return {name for names in chosen for name in names}


def frozen_names(recipe: Recipe) -> set[str]:
    """Names of parameters that no stage trains, and of the buffers in modules in which nothing trains."""
    trained, names = trained_names(recipe), set[str]()
    for prefix, module in recipe.model.named_modules():
        own = {f"{prefix}.{name}" if prefix else name for name, _ in module.named_parameters()}
        if own and not own & trained:
            names |= {f"{prefix}.{name}" if prefix else name for name in module.state_dict()}
    return names | {name for name, _ in recipe.model.named_parameters() if name not in trained}


def of_stages(report: Report, names: Sequence[str]) -> tuple[dict[str, float | int | str], ...]:
    """The records of some stages."""
    return tuple(record for record in report.history if record["stage"] in names)


def docstring_example(cls: type) -> dict[str, Any]:
    """The YAML block of a class's docstring, as plain values."""
    found = re.search(r"```yaml\n(.*?)\n *```", cls.__doc__ or "", re.DOTALL)
    assert found, f"the docstring of {cls.__name__} has no ```yaml block"
    return yaml.safe_load(textwrap.dedent(found[1]))


def assert_sentence(text: str) -> None:
    """A message is one line that is long enough to say what, why and the way out."""
    assert len(text) > 30, f"too short to help: {text!r}"
    assert "\n" not in text, f"more than a line: {text!r}"
