"""Does an augmentation change what an example is? A trained model answers before and after, and the classes that flip are named.

Shorten and Khoshgoftaar, 2019, doi:10.1186/s40537-019-0197-0, call an augmentation safe where the label survives it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from regraft.config.recipe import MAIN, RecipeSpec
from regraft.core import Batch, Source, Stage, forward
from regraft.core.modes import eval_mode
from regraft.core.protocols import layers
from regraft.data.changed import Changed, Redrawn
from regraft.data.encoded import Encoded
from regraft.data.retold import Retold, name_of
from regraft.data.sources import Examples
from regraft.errors import ConfigError, RunError
from regraft.phases.build import assemble
from regraft.phases.entries import Entry
from regraft.phases.resolve import resolved
from regraft.phases.teachers import earlier_run, from_earlier_run

MOST = 0.1  # share of a class that may be answered as one other class before the augmentation is called unsafe
FEWEST = 20  # answers about a class that say something
SURE = 1.645  # standard deviations: a share is above a limit with 95 % probability


@dataclass(frozen=True, kw_only=True)
class Flip:
    """A class whose augmented examples are taken for another one."""

    was: str
    becomes: str
    count: int  # augmented examples of `was`, answered rightly before, that were answered `becomes`
    of: int  # of so many
    least: float  # lower end of the 95 % interval of their share (Wilson)


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What a trained model says of one augmentation."""

    name: str
    examples: int  # looks at training rows that the model answers rightly without it
    changed: float  # share of them that it answers otherwise with it
    flips: tuple[Flip, ...]  # of more than `MOST` of a class into one other, worst first

    @property
    def safe(self) -> bool:
        """Is no class taken for another?"""
        return not self.flips

    def sentence(self) -> str:
        """What was found, and what to do about it."""
        said = (
            f"{self.name}: the model changes its answer on {self.changed:.1%} of {self.examples:,} augmented examples"
        )
        if self.safe:
            return f"{said}, and no class becomes another"
        worst = self.flips[0]
        return (
            f"{said}; {worst.count} of {worst.of} examples of {worst.was!r} become {worst.becomes!r}"
            f"{f', and {len(self.flips) - 1} more pairs' if len(self.flips) > 1 else ''}: narrow its range or leave it out"
        )


def check_augment(spec: RecipeSpec, run: str, *, looks: int = 2000, most: float = MOST) -> list[Checked]:
    """Each augmentation of a recipe, by itself, as a trained model sees it.

    Training rows of the first stage are drawn as in training. Only those that the model answers rightly as they are count:
    on these a change of the answer is the augmentation's doing. An augmentation is unsafe where the share of a class that is
    answered as one other class is above `most`, with 95 % probability.

    Args:
        spec: a recipe to train, with augmentations.
        run: the folder of a run, whose model knows the recipe's classes and reads what its main model reads.
        looks: examples drawn, about.
        most: share of a class that may become another.

    Raises:
        ConfigError: the recipe has no augmentation, or no classes.
        RunError: there is no model at `run`.
        RegraftError: as `regraft train` would for the same recipe.
    """
    folder = earlier_run(run)
    if folder is None:
        raise RunError(f"{run} has no model that could be asked; give the folder of a run that is finished")
    made = assemble(resolved(spec))
    main, stage = made.entries[MAIN], made.recipe.stages[0]
    if main.task not in ("binary", "multiclass"):
        raise ConfigError(f"check-augment: asks for the class of each example, and the task is {main.task}")
    judge = from_earlier_run(folder, "run", main)
    plain, changes = _parts(stage)
    return [_checked(name, source, plain, judge, main, looks=looks, most=most) for name, source in changes]


def _parts(stage: Stage[nn.Module]) -> tuple[Examples, list[tuple[str, Source]]]:
    """The examples that a stage draws, and each augmentation around them alone."""
    found = list(layers(stage.source))
    plain = next((layer for layer in found if isinstance(layer, Examples)), None)
    changes: list[tuple[str, Source]] = []
    if plain is not None:
        for layer in found:
            if isinstance(layer, Redrawn):
                changes.append((type(layer.change).__name__, Redrawn(_bare(plain), layer.change, seed=layer.seed)))
            elif isinstance(layer, Retold):
                changes += [(name_of(change), Retold(_bare(plain), layer.texts, (change,))) for change in layer.changes]
            elif (
                isinstance(layer, Changed) and hasattr(layer, "spec") and not getattr(layer, "mixes", False)
            ):  # of sounds
                alone: Any = copy.copy(layer)
                alone.base = _bare(plain)
                changes.append((type(alone.spec).__name__, alone))
        if plain.views is not None:
            changes.append(("train.augment", plain))
    if plain is None or not changes:
        raise ConfigError(
            "check-augment: the recipe has no augmentation to check; give it one, such as `techniques: [ImageGeometry]` or "
            "`train: {augment: true}`"
        )
    return plain, changes[::-1]


def _bare(source: Examples) -> Examples:
    """The same examples in the same order, as they are."""
    return Examples(
        source.encoded, source.targets, batch_size=source.order.batch_size, seed=source.seed, rows=source.rows
    )


def _checked(
    name: str, source: Source, plain: Examples, judge: nn.Module, main: Entry, *, looks: int, most: float
) -> Checked:
    """The answers about one augmentation, counted."""
    before, after, labels = _answers(source, plain, judge, looks)
    right = before == labels
    before, after = before[right], after[right]
    names = main.materials.dataset.schema.classes
    flips: list[Flip] = []
    for was in np.unique(before):
        answers = after[before == was]
        for becomes, count in zip(*np.unique(answers, return_counts=True), strict=True):
            least = wilson_lower(int(count), len(answers))
            if becomes != was and len(answers) >= FEWEST and least > most:
                flips.append(
                    Flip(was=names[was], becomes=names[becomes], count=int(count), of=len(answers), least=least)
                )
    changed = float((before != after).mean()) if len(before) else 0.0
    ordered = tuple(sorted(flips, key=lambda flip: -flip.least))
    return Checked(name=name, examples=len(before), changed=changed, flips=ordered)


def _answers(
    source: Source, plain: Examples, judge: nn.Module, looks: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Classes (N,) without and with the augmentation, and the labels (N,)."""
    columns: list[tuple[Tensor, Tensor, Tensor]] = []
    batches = cast(Iterator[Batch], source.batches(judge, 0))
    answer = _answer(judge)
    with eval_mode(judge), torch.inference_mode():
        while sum(len(labels) for *_, labels in columns) < looks:
            batch = next(batches)
            columns.append((answer(_as_they_are(plain, batch["id"])), answer(batch), batch["y"]))
    found = [torch.cat(parts).numpy() for parts in zip(*columns, strict=True)]
    return found[0], found[1], found[2]


def _as_they_are(plain: Examples, ids: Tensor) -> Batch:
    """The examples with these ids, without augmentation."""
    views = plain.views.fixed if plain.views is not None and plain.views.fixed else 1
    encoded: Encoded = plain.encoded
    return encoded.collate(ids.numpy() // views)


def _answer(judge: nn.Module) -> Callable[[Batch], Tensor]:
    return lambda batch: forward(judge, batch).argmax(1)


def wilson_lower(count: int, of: int, *, deviations: float = SURE) -> float:
    """The lower end of the interval for a share of `count` in `of`. Wilson, 1927, JASA 22; one-sided 95 % by default."""
    share, spread = count / of, deviations**2 / of
    middle = share + spread / 2
    half = deviations * np.sqrt(share * (1 - share) / of + spread / (4 * of))
    return float(max(0.0, (middle - half) / (1 + spread)))


def sentences(found: Sequence[Checked]) -> list[str]:
    """A line for each augmentation, `warning:` before those that are unsafe."""
    return [one.sentence() if one.safe else f"warning: {one.sentence()}" for one in found]
