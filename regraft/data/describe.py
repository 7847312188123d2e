"""What was understood of a data set, in the few lines that the command line prints."""

from __future__ import annotations

from regraft.data.bad import KINDS
from regraft.data.bad_policy import bad_sample_facts
from regraft.data.dataset import LANGUAGE, SPLITS, Dataset


def describe(dataset: Dataset) -> list[str]:
    """Lines for people: rows of each split, columns, task and classes, what was left out, and how each was found."""
    schema = dataset.schema
    rows = [
        f"{name} {len(dataset.splits[name]):,}" + _source(dataset, name) for name in SPLITS if name in dataset.splits
    ]
    lines = [f"rows: {' · '.join(rows)}"]
    used = (
        f"{len(schema.inputs)} columns ({len(schema.numeric)} of numbers)"
        if schema.modality == "table"
        else " and ".join(schema.inputs)
    )
    lines.append(f"{schema.modality}: {used}")
    label = " and ".join(schema.label) or "none"
    if schema.task == LANGUAGE:
        lines.append("label: none (language model: each text is to be continued)")
    elif schema.task == "regression":
        lines.append(f"label: {label} (regression)")
    else:
        shown = ", ".join(schema.classes[:6]) + (", ..." if len(schema.classes) > 6 else "")
        lines.append(f"label: {label} ({schema.task}, {len(schema.classes)} classes: {shown})")
    lines += [f"{kind}: {column}" for kind, column in (("group", schema.group), ("time", schema.time)) if column]
    lines += [f"not used: {column} ({why})" for column, why in list(schema.ignored.items())[:8]]
    if len(schema.ignored) > 8:
        lines.append(f"not used: {len(schema.ignored) - 8} more columns")
    facts = bad_sample_facts(dataset)
    if facts["rows"]:
        each = [
            f"{split} {KINDS[kind]}: {count:,}"
            for split, kinds in facts["counts"].items()
            for kind, count in kinds.items()
        ]
        lines.append(f"left out: {facts['rows']:,} of {facts['of']:,} rows are bad ({', '.join(each)})")
    if dataset.problems:
        first = dataset.problems[0]
        more = f" and {len(dataset.problems) - 1} more" if len(dataset.problems) > 1 else ""
        lines.append(f"problems: {first.message}{more}; see the audit")
    return [*lines, *(f"- {reason}" for reason in schema.reasons)]


def _source(dataset: Dataset, split: str) -> str:
    return "" if split in dataset.given else " (cut from train)"
