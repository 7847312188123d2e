"""Two runs side by side: metrics with the interval of their difference, cost, and the recipe fields that differ."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from regraft.config.plain_yaml import NotPlainYaml, plain_yaml
from regraft.config.recipe import recipe_from_tree
from regraft.config.spec import Named
from regraft.errors import ConfigError, RunError
from regraft.phases.evaluate.metrics import LOWER_IS_BETTER
from regraft.phases.report.read import RunFiles, read_run
from regraft.phases.report.summary import headline_split, named, total_of
from regraft.phases.report.words import is_number, value_of


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One line of a comparison. `difference` is b minus a, with its 95 % interval for metrics."""

    section: Literal["note", "metric", "cost", "recipe"]
    name: str
    a: Any
    b: Any
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    better: Literal["a", "b"] | None = None  # only where the interval, or a cost that was counted, leaves no doubt

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


def diff_runs(a: Path, b: Path) -> list[Difference]:
    """What differs between two run directories: notes first, then test metrics, cost and recipe fields.

    The interval of a difference is put together from those of the two runs by squaring and adding (Newcombe 1998; Zou and
    Donner 2008). It takes the runs as independent, which is too wide where both scored the same rows.
    """
    first, second = read_run(a), read_run(b)
    changed = _recipes(first, second)
    notes = [*_notes(first, second), *_several(changed)]
    return [*notes, *_metrics(first, second), *_costs(first, second), *changed]


def _notes(a: RunFiles, b: RunFiles) -> list[Difference]:
    """What makes the numbers of two runs hard to compare."""
    prints = [named(run.manifest.get("data"), "fingerprint") for run in (a, b)]
    tasks = [run.metrics.get("task") for run in (a, b)]
    notes = []
    if tasks[0] != tasks[1]:
        notes.append(
            Difference(section="note", name="the tasks differ, so metrics do not compare", a=tasks[0], b=tasks[1])
        )
    if prints[0] != prints[1]:
        notes.append(
            Difference(
                section="note",
                name="the data differ, so differences are not of the model alone",
                a=prints[0],
                b=prints[1],
            )
        )
    return notes


def _metrics(a: RunFiles, b: RunFiles) -> list[Difference]:
    """The metrics that both runs have on the split that counts."""
    splits = [headline_split(run.metrics) for run in (a, b)]
    if splits[0] != splits[1]:
        return [Difference(section="note", name="different splits were scored", a=splits[0], b=splits[1])]
    ours, theirs = ((run.metrics.get("final") or {}).get(splits[0]) or {} for run in (a, b))
    shared = [name for name in ours if name in theirs and name not in ("n", "excluded", "resamples")]
    return [_metric(f"{splits[0]}/{name}", ours, theirs) for name in shared]


def _metric(path: str, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Difference:
    """One metric of both runs with the interval of b - a."""
    name = path.partition("/")[2]
    x, y = value_of(ours, name), value_of(theirs, name)
    if x is None or y is None:
        return Difference(section="metric", name=path, a=x, b=y)
    limits = [
        each.get(key) for each in (ours[name], theirs[name]) if isinstance(each, Mapping) for key in ("low", "high")
    ]
    if len(limits) != 4 or not all(is_number(limit) for limit in limits):
        return Difference(section="metric", name=path, a=x, b=y, difference=y - x)
    x_low, x_high, y_low, y_high = (float(limit) for limit in limits if is_number(limit))
    low = y - x - math.hypot(y - y_low, x_high - x)
    high = y - x + math.hypot(y_high - y, x - x_low)
    better = None
    if low > 0 or high < 0:
        better = "b" if (low > 0) != (name in LOWER_IS_BETTER) else "a"
    return Difference(section="metric", name=path, a=x, b=y, difference=y - x, low=low, high=high, better=better)


def _costs(a: RunFiles, b: RunFiles) -> list[Difference]:
    """Sums of the ledger, size and latency."""
    pairs: list[tuple[str, Any, Any]] = [
        (key, total_of(a, key), total_of(b, key)) for key in ("seconds", "cpu_seconds", "flops")
    ]
    for section, key in (("size", "parameters"), ("size", "bytes"), ("latency", "p50_ms"), ("latency", "p95_ms")):
        x, y = ((run.metrics.get(section) or {}).get(key) for run in (a, b))
        pairs.append((f"{section}.{key}", x, y))
    out = []
    for name, x, y in pairs:
        if is_number(x) and is_number(y):
            counted = name in ("flops", "size.parameters", "size.bytes")  # times depend on what else the machine did
            better: Literal["a", "b"] | None = ("a" if x < y else "b") if counted and x != y else None
            out.append(Difference(section="cost", name=name, a=x, b=y, difference=y - x, better=better))
    return out


def _recipes(a: RunFiles, b: RunFiles) -> list[Difference]:
    """Dotted fields of recipe.yaml whose values differ, defaults included; sentences under `reasons:` follow from the others.

    Where a part has another name, such as an optimizer, its own fields are not listed as well.
    """
    ours, theirs = (_values(run) for run in (a, b))
    changed = [name for name in dict.fromkeys([*ours, *theirs]) if ours.get(name) != theirs.get(name)]
    return [
        Difference(section="recipe", name=name, a=ours.get(name), b=theirs.get(name))
        for name in changed
        if not name.startswith("reasons") and not any(name.startswith(f"{part}.") for part in changed)
    ]


def _values(run: RunFiles) -> dict[str, Any]:
    """Every field of the recipe by its dotted name; those that are written where this version cannot read it as a recipe."""
    tree = _recipe(run)
    try:
        return dict(_fields(_plain(recipe_from_tree(tree))))
    except (ConfigError, AttributeError, TypeError):
        return dict(_fields(tree))


class _Part(dict[str, Any]):
    """The fields of a part that has a name."""

    name = ""


def _plain(value: Any) -> Any:
    """Specs as mappings of all their fields; parts with a name as `_Part`."""
    if isinstance(value, BaseModel):
        fields = {name: _plain(getattr(value, name)) for name in type(value).model_fields}
        if not isinstance(value, Named):
            return fields
        part = _Part({type(value).__name__: fields})
        part.name = type(value).__name__
        return part
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def _several(changed: list[Difference]) -> list[Difference]:
    """A warning where more than one key was changed at a time."""
    if len(changed) < 2:
        return []
    which = f"warning: {len(changed)} keys of the recipes differ, so which of them made a difference is not known"
    return [Difference(section="note", name=f"{which}; change one at a time", a=None, b=None)]


def _recipe(run: RunFiles) -> Any:
    """The recipe as plain values."""
    try:
        return plain_yaml(run.recipe)
    except NotPlainYaml as error:
        raise RunError(f"{run.path / 'recipe.yaml'}: must be YAML, but {error}") from None


def _fields(value: Any, path: str = "") -> Any:
    """(dotted path, value) of every leaf of nested mappings and lists."""
    if isinstance(value, _Part):
        yield path, value.name
    if isinstance(value, Mapping) and value:
        for key, each in value.items():
            yield from _fields(each, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and value:
        for i, each in enumerate(value):
            yield from _fields(each, f"{path}[{i}]")
    elif path:
        yield path, value
