"""The unit of extension: a technique is frozen data that edits a recipe before it runs."""

from __future__ import annotations

from typing import ClassVar, Literal

from regraft.config.spec import Named
from regraft.core.stage import Recipe


class Technique(Named):
    """Edits a recipe before it runs. The class is its own configuration; its name is its name in YAML.

    The declarations let `compile` order techniques and refuse combinations in which one would have no effect. Slots are
    "model", "trains", "source", "objective", "update", "step" and "hooks". Roles are what the batch must hold: "" is the examples
    themselves, "target" stands for keys such as `target_x`.
    """

    family: ClassVar[str] = "technique"

    provides: ClassVar[frozenset[str]] = frozenset()  # slots it fills itself; at most one technique per slot
    wraps: ClassVar[frozenset[str]] = frozenset()  # slots it builds on; any number of techniques, by their names
    ignores: ClassVar[frozenset[str]] = frozenset()  # slots that have no effect once it is applied
    reads: ClassVar[frozenset[str]] = (
        frozenset()
    )  # roles the source has to yield, as the technique's objective sees them
    place: ClassVar[Literal["inner", "middle", "outer"]] = (
        "middle"  # inner: changes what a batch is; outer: overwrites inputs
    )
    splits: ClassVar[bool] = False  # turns one stage into several

    def apply(self, recipe: Recipe) -> Recipe:
        """The edited recipe; the given one is left as it is."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it is applied")
