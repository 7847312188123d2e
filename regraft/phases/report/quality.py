"""What the report shows of the finished model: confusion, classes, reliability, the hardest and the slowest examples."""

from __future__ import annotations

from typing import Any

import numpy as np

from regraft.phases.evaluate.examine import confused_pairs, most_confused_classes
from regraft.phases.report.figures import Line, heat_map, line_chart, reliability_chart
from regraft.phases.report.read import Absent, RunFiles
from regraft.phases.report.words import decimal, is_number, percent, short, value_of, whole

LARGEST_MAP = 20  # classes in the picture
FIRST_CLASSES, FIRST_EXAMPLES = 12, 8  # rows of a table before the part that opens on demand


def confusion(run: RunFiles) -> dict[str, Any]:
    """The matrix of all classes, or of the 20 with the most errors, and the pairs most often taken for each other."""
    _needs_classes(run)
    counts = np.asarray(run.need("metrics", "confusion"), dtype=np.int64)
    classes = [str(name) for name in run.need("metrics", "classes")]
    if counts.shape != (len(classes), len(classes)):
        raise Absent(f"The confusion matrix is {counts.shape}, but there are {len(classes)} classes.")
    ids = list(range(len(classes)))
    if len(classes) > LARGEST_MAP:
        ids = most_confused_classes(counts, LARGEST_MAP) or ids[:LARGEST_MAP]
    names = [classes[i] for i in ids]
    part = counts[np.ix_(ids, ids)]
    wrong = int(counts.sum() - np.trace(counts))
    described = (
        f"Confusion matrix of {len(ids)} of {len(classes)} classes: {wrong:,} of {int(counts.sum()):,} rows are wrong"
    )
    pairs = run.metrics.get("confused_pairs") or confused_pairs(counts, classes)
    return {
        "figure": heat_map(part.tolist(), names, described=described),
        "shown": len(ids),
        "all": len(classes),
        "wrong": whole(wrong),
        "rows": whole(int(counts.sum())),
        "hidden": whole(wrong - int(part.sum() - np.trace(part))),
        "pairs": [pair | {"count": whole(pair["count"]), "share": percent(pair["share"])} for pair in pairs],
    }


def _needs_classes(run: RunFiles) -> None:
    """`Absent` for tasks in which a row has not exactly one class."""
    task = run.metrics.get("task")
    if task in ("regression", "multilabel"):
        what = "a number has no classes" if task == "regression" else "a row can have several labels"
        raise Absent(f"Not for this task: {what}.")


def classes(run: RunFiles) -> dict[str, Any]:
    """Precision, recall, F1 and support of each class, the weakest first."""
    _needs_classes(run)
    rows = sorted(run.need("metrics", "per_class"), key=lambda row: (row.get("f1") is None, row.get("f1") or 0.0))
    shown = [
        {
            "name": row["class"],
            "f1": decimal(row.get("f1")),
            "precision": decimal(row.get("precision")),
            "recall": decimal(row.get("recall")),
            "support": whole(row.get("support")),
            "share": row["f1"] if is_number(row.get("f1")) else 0.0,
        }
        for row in rows
    ]
    return {"first": shown[:FIRST_CLASSES], "rest": shown[FIRST_CLASSES:], "count": len(shown)}


def reliability(run: RunFiles) -> dict[str, Any]:
    """Reliability diagrams before and after calibration, with the numbers and the sentences of the calibrate phase."""
    section = run.metrics.get("calibration") or {}
    bins = run.metrics.get("reliability") or section.get("reliability") or {}
    if not bins and not section:
        run.need("metrics", "reliability")
    figures = []
    for key, title in (("before", "Before calibration"), ("after", "After calibration")):
        if any(b.get("count") for b in bins.get(key) or ()):
            worst = max((b for b in bins[key] if b.get("count")), key=lambda b: abs(b["accuracy"] - b["confidence"]))
            described = (
                f"{title}: the furthest bin states {decimal(worst['confidence'])} and is right {decimal(worst['accuracy'])}"
                f" of {whole(worst['count'])} rows"
            )
            figures.append(reliability_chart(bins[key], title=title, described=described))
    table = [
        {
            "name": name,
            "before": decimal(value_of(section.get("before"), key), 4),
            "after": decimal(value_of(section.get("after"), key), 4),
        }
        for key, name in (
            ("ece", "ECE"),
            ("ece_adaptive", "Adaptive ECE"),
            ("nll", "NLL (nats)"),
            ("brier", "Brier score"),
        )
        if value_of(section.get("before"), key) is not None
    ]
    sentences = list(section.get("sentences") or ())
    if not (figures or table or sentences):
        raise Absent("metrics.json holds neither reliability bins nor what the calibrate phase did.")
    return {"figures": figures, "table": table, "sentences": sentences, "split": bins.get("split", "valid")}


def forgetting(run: RunFiles) -> dict[str, Any]:
    """The source metric before and after training, and how far the features of each depth have drifted."""
    section = run.need("metrics", "forgetting")
    if not section["measured"]:
        raise Absent(str(section["why"]))
    drift, source = section["drift"], section["source"]
    facts = [
        ("Drift of the top layer", f"{decimal(drift['top'], 3)} ({drift['measure']}, {whole(drift['rows'])} rows)")
    ]
    if source is not None:
        facts = [
            (
                "Source domain, before",
                f"{decimal(source['before'], 4)} ({source['metric']}, {whole(source['rows'])} rows)",
            ),
            ("Source domain, after", f"{decimal(source['after'], 4)} ({decimal(source['change'], 4)})"),
            *facts,
        ]
    points = [(float(depth), float(value)) for depth, value in drift["by_depth"].items()]
    ends = f"{decimal(points[0][1], 3)} at the lowest, {decimal(points[-1][1], 3)} at the top"
    described = f"Drift of the features by depth: {ends}"
    line = Line(name="drift", points=points, kind="main", marks=points)
    figure = line_chart([line], x_label="Depth (block boundary)", y_label="1 - CKA", described=described)
    return {"facts": facts, "figure": figure if len(points) > 1 else None, "why": section.get("why", "")}


def examples(run: RunFiles) -> dict[str, Any]:
    """The rows with the highest loss, and those that took longest."""
    metrics = run.metrics
    hard = [
        {
            "row": example.get("row", "–"),
            "what": short(example.get("text") or example.get("file") or "", 240),
            "label": _label(example.get("label")),
            "predicted": _label(example.get("predicted")),
            "probability": decimal(example.get("probability")),
        }
        for example in metrics.get("hard_examples") or ()
    ]
    slow = [
        {
            "row": e.get("row", "–"),
            "what": short(e.get("text") or e.get("file") or "", 160),
            "time": f"{decimal(e.get('milliseconds'), 1)} ms",
        }
        for e in metrics.get("slow_examples") or ()
    ]
    if not hard and not slow:
        run.need("metrics", "hard_examples")
    first, rest = hard[:FIRST_EXAMPLES], hard[FIRST_EXAMPLES:]
    return {
        "hard": first,
        "rest": rest,
        "slow": slow,
        "regression": metrics.get("task") == "regression",
        "split": metrics.get("detailed_split", "test"),
    }


def _label(value: Any) -> str:
    """A class name, several of them, or a number."""
    if isinstance(value, list):
        return ", ".join(short(each, 60) for each in value) or "none"
    return decimal(value) if is_number(value) else short("–" if value is None else value, 80)
