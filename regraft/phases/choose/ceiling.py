"""What training few weights cost or gained against full fine-tuning, where both raced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

FEW = frozenset({"Adapter", "BitFit", "LoRA", "NormOnly", "PTuning", "PrefixTuning", "PromptTuning", "QLoRA"})
FULL = "full"


def against_full(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence for each candidate that trains few weights, where full fine-tuning raced too; none where it did not.

    Scores are those each had at the last rung it reached, so the steps are told with them. What few weights can learn is
    limited by how many they are and where they stand (Houlsby et al. 2019, arXiv:1902.00751, figure 6: the higher blocks matter
    more), so a gap comes with the way to close it.

    Args:
        entries: of the race, as metrics.json has them.
    """
    scored = {entry["name"]: entry for entry in entries if "score" in entry["valid"]}
    full = scored.get(FULL)
    if full is None:
        return []
    said: list[str] = []
    for name, entry in scored.items():
        used = sorted(FEW & {_name(node) for node in entry["techniques"]})
        if not used:
            continue
        gap = float(full["valid"]["score"]) - float(entry["valid"]["score"])
        told = f"{name} ({', '.join(used)}) stood at {_score(entry)}, full fine-tuning at {_score(full)}"
        if gap > 0:
            told += f": {gap:.4f} below it; more weights or other places may close that: search over `{_places(used)}`"
        else:
            told += f": {-gap:.4f} above it" if gap else ": no difference"
        said.append(told)
    return said


def _score(entry: Mapping[str, Any]) -> str:
    return f"{float(entry['valid']['score']):.4f} on validation after {int(entry['steps']):,} steps"


def _name(node: Any) -> str:
    """Name of a technique as recipes write it: alone, or with its fields."""
    return str(next(iter(node))) if isinstance(node, Mapping) else str(node)


def _places(used: Sequence[str]) -> str:
    """The fields that say how many weights train, and where."""
    fields = {
        "Adapter": "Adapter.blocks, Adapter.width",
        "LoRA": "LoRA.targets, LoRA.blocks, LoRA.rank",
        "PTuning": "PTuning.tokens",
        "PrefixTuning": "PrefixTuning.blocks, PrefixTuning.tokens",
        "PromptTuning": "PromptTuning.tokens",
        "QLoRA": "QLoRA.targets, QLoRA.blocks, QLoRA.rank",
    }
    return "; ".join(fields.get(name, "TrainOnly") for name in used)
