"""What a step costs with a technique, as benchmarks/technique_cost.py measured it: technique_costs.json beside this file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any, cast


@cache
def _costs() -> Mapping[str, dict[str, Any]]:
    text = (files("regraft.config") / "technique_costs.json").read_text(encoding="utf-8")
    return cast(Mapping[str, dict[str, Any]], json.loads(text)["costs"])


def cost_of(name: str) -> dict[str, Any] | None:
    """`{ratio, low, high, on}`: seconds of a step with a technique over those without it; None where it was not measured."""
    known = _costs().get(name)
    return known if known is not None and "ratio" in known else None


def cost_sentence(cost: Mapping[str, Any]) -> str:
    """A cost for people."""
    return (
        f"A step cost {cost['ratio']:g} times one without it ({cost['low']:g} to {cost['high']:g}) on {cost['on']}; measured by "
        "benchmarks/technique_cost.py."
    )
