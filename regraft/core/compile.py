"""From techniques to plain objects: order them, apply them, and refuse what would have no effect."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from regraft.core.stage import SLOTS, Recipe, Stage
from regraft.core.technique import Technique
from regraft.errors import Conflict

PLACES = ("provider", "inner", "middle", "outer")


def compile(recipe: Recipe, techniques: Sequence[Technique]) -> Recipe:
    """The recipe with every technique applied, providers before wrappers and model surgery first.

    Args:
        recipe: stages without techniques.
        techniques: in any order, which changes nothing; only those of one class are applied as they are listed.

    Returns:
        A recipe of plain objects: at run time nothing asks which technique is on.

    Raises:
        Conflict: two techniques provide one slot, one would have no effect beside another, or the source does not yield
            what a technique reads.
        TypeError: a technique changed a slot that it does not declare (a fault of the technique).
    """
    refuse_without_effect(techniques)
    for technique in sorted(techniques, key=rank):
        before, recipe = recipe, technique.apply(recipe)
        if not technique.splits:
            _hold_to_declaration(technique, before, recipe)
    for technique in techniques:
        for stage in recipe.stages:
            _refuse_missing_inputs(technique, stage)
    return recipe


def rank(technique: Technique) -> tuple[int, int, str]:
    """Sorting key: model surgery first, then providers, then wrappers from the inside out; within each by slot, then by name."""
    slots = technique.provides | technique.wraps
    slot = min((SLOTS.index(slot) for slot in slots), default=len(SLOTS))
    if slot == 0 and technique.place != "outer":
        return (-1, PLACES.index(technique.place), type(technique).__name__)
    place = "provider" if technique.provides else technique.place
    return (PLACES.index(place), slot, type(technique).__name__)


def refuse_without_effect(techniques: Sequence[Technique]) -> None:
    """Raise a Conflict for two providers of one slot, and for users of a slot that another technique never calls."""
    for slot in SLOTS:
        providers = [name(t) for t in techniques if slot in t.provides]
        if len(providers) > 1:
            raise Conflict(f"{' and '.join(providers)} both provide the {slot}; keep one")
        for ignorer in (t for t in techniques if slot in t.ignores):
            users = [name(t) for t in techniques if slot in t.provides | t.wraps and t is not ignorer]
            if users:
                raise Conflict(f"{name(ignorer)} never calls the {slot}, so {' and '.join(users)} would have no effect")


def _hold_to_declaration(technique: Technique, before: Recipe, after: Recipe) -> None:
    if len(before.stages) != len(after.stages):
        raise TypeError(f"{name(technique)} changed the number of stages without declaring `splits`")
    for old, new in zip(before.stages, after.stages, strict=True):
        changed = {slot for slot in SLOTS if getattr(old, slot) is not getattr(new, slot)}
        undeclared = changed - technique.provides - technique.wraps
        if undeclared:
            raise TypeError(
                f"{name(technique)} changed {sorted(undeclared)} of stage {old.name!r} without declaring it"
            )


def _refuse_missing_inputs(technique: Technique, stage: Stage[Any]) -> None:
    yielded = stage.source.inputs
    missing = sorted(role for role in technique.reads if not _has_role(role, yielded))
    if missing:
        wanted = " and ".join(f"{role}_*" if role else "plain examples" for role in missing)
        raise Conflict(
            f"{name(technique)} reads {wanted}, but the source of stage {stage.name!r} yields {sorted(yielded)}"
        )


ROLES = ("support", "query", "target")


def _has_role(role: str, keys: Iterable[str]) -> bool:
    if role:
        return any(key.startswith(f"{role}_") for key in keys)
    return any(not key.startswith(tuple(f"{r}_" for r in ROLES)) for key in keys)


def name(technique: Technique) -> str:
    """The technique's name in YAML and in Python."""
    return type(technique).__name__


# ---- explain


def explain(recipe: Recipe) -> str:
    """The compiled nest, a block a stage: what wraps what, from the outside in."""
    return "\n".join(_stage_lines(stage, recipe.model) for stage in recipe.stages)


def _stage_lines(stage: Stage[Any], whole: nn.Module) -> str:
    shown: Mapping[str, object] = {
        "model": stage.model, "source": stage.source, "objective": stage.objective, "update": stage.update, "step": stage.step,
    }  # fmt: skip
    count = sum(p.numel() for p in _trainable(stage))
    of = sum(p.numel() for p in whole.parameters())
    share = f" ({count / of:.2%} of {of:,})" if count < of else ""
    lines = [f"stage {stage.name}: {stage.steps:,} steps, {count:,} trainable parameters{share}"]
    lines += [f"  {slot:<10}{nest(part)}" for slot, part in shown.items()]
    hooks = ", ".join(nest(hook) for hook in stage.hooks) or "none"
    return "\n".join([*lines, f"  {'hooks':<10}{hooks}"])


def _trainable(stage: Stage[Any]) -> list[nn.Parameter]:
    """What the stage will train once it is prepared."""
    if stage.trains is None:
        return list(stage.trainable().values())
    own = stage.objective.parameters() if isinstance(stage.objective, nn.Module) else ()
    return [p for name, p in stage.model.named_parameters() if name in stage.trains] + list(own)


def nest(part: object) -> str:
    """`Outer(Inner(core))` for objects that hold what they wrap as `base` or `source`; `describe()` where one has it."""
    describe = getattr(part, "describe", None)
    if callable(describe):
        return str(describe())
    label = getattr(part, "__name__", type(part).__name__).strip("_")
    base = getattr(part, "base", getattr(part, "source", None))
    return f"{label}({nest(base)})" if base is not None and not isinstance(part, type) else label
