"""What the first half of the report shows: the summary, the audit, what was tried, the grafting height, the curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from regraft.phases.report.figures import Line, Range, interval_chart, line_chart
from regraft.phases.report.landscape import around
from regraft.phases.report.read import Absent, RunFiles
from regraft.phases.report.summary import five_lines, headline_split, named, total_of, with_interval
from regraft.phases.report.words import (
    decimal,
    flops,
    is_number,
    listed,
    metric_name,
    percent,
    scaled,
    seconds,
    short,
    size_of,
    value_of,
    whole,
)

SEVERITIES = ("error", "warning", "info")
MOST_STAGES = 6  # curves in one figure


def summary(run: RunFiles) -> dict[str, Any]:
    """Five lines, the numbers that matter as tiles, and the model against both probes."""
    metrics, split = run.metrics, headline_split(run.metrics)
    scores = (metrics.get("final") or {}).get(split) or {}
    return {
        "lines": five_lines(run),
        "tiles": _tiles(run, scores, split),
        "figure": _against_probes(metrics, split),
        "metrics": _metric_table(metrics),
    }


def title(run: RunFiles) -> str:
    """Data set and model, as the head of the page."""
    data, model = (named(run.manifest.get(key), "name", "path") for key in ("data", "model"))
    return " × ".join(short(part, 60) for part in (data, model) if part) or run.path.name


def _tiles(run: RunFiles, scores: Mapping[str, Any], split: str) -> list[dict[str, str]]:
    """Big numbers with what they are and their margin; those that are not there are left out."""
    metrics, size, speed = run.metrics, run.metrics.get("size") or {}, run.metrics.get("latency") or {}
    primary = str(metrics.get("primary", "accuracy"))
    tiles = []
    for name in dict.fromkeys((primary, "macro_f1", "ece", "mae")):
        if value_of(scores, name) is not None:
            value, _, margin = with_interval(scores, name).partition(" ")
            shown = {"ece": "ECE", "mae": "MAE"}.get(name, metric_name(name))
            tiles.append({"value": value, "name": f"{shown}, {split}", "note": margin.strip("()")})
    if is_number(speed.get("p50_ms")):
        note = f"p95 {decimal(speed.get('p95_ms'), 1)} ms"
        tiles.append({"value": f"{decimal(speed['p50_ms'], 1)} ms", "name": "One prediction", "note": note})
    if is_number(size.get("bytes")):
        note = f"{scaled(size.get('parameters'), '')} parameters"
        tiles.append({"value": size_of(size["bytes"]), "name": "Model", "note": note})
    if (wall := total_of(run, "seconds")) is not None:
        work = total_of(run, "flops")
        tiles.append({"value": seconds(wall), "name": "Whole run", "note": flops(work) if work else ""})
    return tiles


def _against_probes(metrics: Mapping[str, Any], split: str) -> Any:
    """The finished model, the probe on all depths and the probe on the last layer, with their intervals."""
    primary, rows = str(metrics.get("primary", "accuracy")), []
    named_rows = (
        ("final", f"Model ({short(metrics['winner'], 40)})" if metrics.get("winner") else "Model", "main"),
        ("probe", "Probe, all depths", "second"),
        ("last_layer_probe", "Probe, last layer only", "faint"),
    )
    for key, name, kind in named_rows:
        entry = ((metrics.get(key) or {}).get(split) or {}).get(primary) or {}
        if isinstance(entry, Mapping) and all(is_number(entry.get(k)) for k in ("value", "low", "high")):
            rows.append(Range(name=name, value=entry["value"], low=entry["low"], high=entry["high"], kind=kind))
    if not rows:
        return None
    described = f"{metric_name(primary)} on {split} with 95 % intervals: " + "; ".join(
        f"{r.name} {decimal(r.value)}" for r in rows
    )
    return interval_chart(rows, x_label=f"{metric_name(primary)} on {split}, 95 % interval", described=described)


def _metric_table(metrics: Mapping[str, Any]) -> dict[str, Any] | None:
    """Every metric of the finished model and of the probes, one column for each model and split."""
    columns = []
    for key, name in (("final", "Model"), ("probe", "Probe"), ("last_layer_probe", "Last layer")):
        for split in ("test", "valid"):
            scores = (metrics.get(key) or {}).get(split)
            if scores and (split == "test" or key == "final"):
                columns.append((f"{name}, {split}", scores))
    names = dict.fromkeys(
        name for _, scores in columns for name in scores if name not in ("n", "excluded", "resamples")
    )
    rows = [
        {
            "name": metric_name(name),
            "cells": [with_interval(s, name) for _, s in columns],
            "note": _reason(columns, name),
        }
        for name in names
    ]
    counts = [whole(value_of(scores, "n")) for _, scores in columns]
    return {"columns": [name for name, _ in columns], "rows": rows, "counts": counts} if rows else None


def _reason(columns: Sequence[tuple[str, Mapping[str, Any]]], name: str) -> str:
    """Why a metric has no value, where it says so."""
    entries = (scores.get(name) for _, scores in columns)
    return next((str(e["reason"]) for e in entries if isinstance(e, Mapping) and e.get("reason")), "")


def audit(run: RunFiles) -> dict[str, Any]:
    """Findings by severity with their first rows, and the facts that are single values."""
    run.need("audit")
    if not isinstance(run.audit.get("findings"), Sequence):
        raise Absent("audit.json holds no list of findings.")
    findings = sorted(
        run.audit["findings"], key=lambda f: SEVERITIES.index(f["severity"]) if f["severity"] in SEVERITIES else 3
    )
    shown = [
        {
            "severity": f["severity"],
            "kind": str(f["kind"]).replace("-", " ").replace("_", " "),
            "where": " · ".join(str(f[key]) for key in ("split", "file", "column") if f.get(key)),
            "count": whole(len(f.get("rows") or ())) if f.get("rows") else "–",
            "rows": listed(f.get("rows") or ()),
            "message": f.get("message", ""),
        }
        for f in findings
    ]
    counts = {s: sum(f["severity"] == s for f in findings) for s in SEVERITIES}
    tables = [name for name in ("audit.csv", "findings.csv") if (run.path / name).is_file()]
    facts = run.audit.get("facts") or {}
    plain = [(str(key).replace("_", " "), _fact(value)) for key, value in facts.items() if _fact(value)]
    return {"findings": shown, "counts": counts, "csv": tables, "facts": plain}


def _fact(value: Any) -> str:
    """A fact as one short text; empty for what is too deep to be one."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return whole(value)
    if isinstance(value, float):
        return decimal(value)
    if isinstance(value, str):
        return short(value, 300)
    if isinstance(value, Mapping) and value and all(isinstance(v, int | float | str) for v in value.values()):
        return listed([f"{k} {_fact(v)}" for k, v in value.items()], 12)
    if isinstance(value, list) and value and all(isinstance(v, int | float | str) for v in value):
        return (
            listed(value, 12) if max(len(str(v)) for v in value) < 30 else " ".join(short(v, 300) for v in value[:12])
        )
    return ""


def tried(run: RunFiles) -> dict[str, Any]:
    """Candidates, best validation score first, the reasons in words."""
    metrics = run.metrics
    candidates, primary = run.need("metrics", "candidates"), str(metrics.get("primary", "accuracy"))
    lower = primary in ("mse", "rmse", "mae", "nll")
    scored = [(value_of(c.get("valid"), primary), c) for c in candidates]
    scored.sort(key=lambda pair: (pair[0] is None, (1 if lower else -1) * (pair[0] or 0)))
    known = [score for score, _ in scored if score is not None]
    best, worst = (known[0], known[-1]) if known else (1, 0)
    rows = [
        {
            "name": c.get("name", "unnamed"),
            "techniques": [_technique(t) for t in c.get("techniques") or ()],
            "score": decimal(score, 4),
            "share": 0.0 if score is None else 0.15 + 0.85 * ((score - worst) / (best - worst) if best != worst else 1),
            "steps": whole(c.get("steps")),
            "seconds": seconds(c.get("seconds")),
            "flops": flops(c.get("flops")),
            "rung": "–" if c.get("rung") is None else str(c["rung"]),
            "status": c.get("status", ""),
            "rule": c.get("rule") or "",
            "reason": c.get("reason") or "",
        }
        for score, c in scored
    ]
    return {"rows": rows, "metric": metric_name(primary), "reasons": list(metrics.get("reasons") or ())}


def _technique(value: Any) -> str:
    """`LoRA(rank=16)` of a name, or of `{name: {field: value}}` as in a recipe."""
    if isinstance(value, Mapping) and len(value) == 1:
        (name, fields), *_ = value.items()
        inside = (
            ", ".join(f"{key}={each}" for key, each in fields.items()) if isinstance(fields, Mapping) else str(fields)
        )
        return short(f"{name}({inside})", 120)
    return short(value, 120)


def height(run: RunFiles) -> dict[str, Any]:
    """Validation score of a probe on each depth alone, the depths that were chosen marked."""
    curve, probe = run.need("metrics", "depth_curve"), run.metrics.get("probe") or {}
    chosen = {float(d) for d in probe.get("depths") or ()}
    points = [(float(p["depth"]), float(p["score"])) for p in curve]
    marked = [p for p in points if p[0] in chosen]
    best, last = max(points, key=lambda p: p[1]), points[-1]
    described = f"Score of a probe on each depth: best {decimal(best[1])} at depth {best[0]:g}"
    described += f", {decimal(last[1])} at the last, {last[0]:g}"
    lines = [Line(name="one depth alone", points=points, kind="faint", marks=points)]
    if marked:
        lines.append(Line(name="chosen", points=marked[:0], kind="main", marks=marked))
    facts = [("Chosen depths", listed(sorted(int(d) for d in chosen), 30) or "none")]
    pools = probe.get("pools")
    facts += [("Pooling", listed(pools) if isinstance(pools, list) else str(pools))] if pools else []
    facts += [("L2 penalty", decimal(probe["l2"]))] if is_number(probe.get("l2")) else []
    unused = last[0] - max(chosen) if chosen else 0
    if unused > 0:
        facts.append(("Cut", f"The {unused:g} blocks above depth {max(chosen):g} are not used."))
    label = "Held-out score"
    return {
        "figure": line_chart(lines, x_label="Depth (block boundary)", y_label=label, described=described),
        "facts": facts,
    }


def curves(run: RunFiles) -> dict[str, Any]:
    """Training loss and validation score against the step, a line for each stage, the finished one in front."""
    run.need("curves")
    primary = str(run.metrics.get("primary", "accuracy"))
    stages = list(dict.fromkeys(stage for stage, _ in run.curves))
    winner = str(run.metrics.get("winner") or "")
    front = next((s for s in reversed(stages) if winner and winner in s), stages[-1])
    shown = [*[s for s in stages if s != front][-(MOST_STAGES - 1) :], front]
    wanted = (
        ("Training loss", ("loss", "train/loss")),
        (f"{metric_name(primary)} on validation", (f"valid/{primary}", "valid/score", "valid/accuracy", "valid/loss")),
    )
    figures = []
    for label, names in wanted:
        lines = []
        for stage in shown:
            points = next((run.curves[stage, n] for n in names if run.curves.get((stage, n))), [])
            marks = points if len(points) <= 30 and "validation" in label else []
            if points:
                lines.append(Line(name=stage, points=points, kind="main" if stage == front else "faint", marks=marks))
        if lines:
            end = lines[-1].points[-1]
            described = (
                f"{label} over {len(lines)} stages; {front} ends at {decimal(end[1])} after {whole(end[0])} steps"
            )
            figures.append(line_chart(lines, x_label="Step", y_label=label, described=described))
    if not figures:
        raise Absent("events.jsonl holds neither a training loss nor a validation score.")
    left_out = len(stages) - len(shown)
    note = f"{left_out} earlier stages are left out of the figure; events.jsonl holds them all." if left_out else ""
    return {
        "figures": figures,
        "front": front,
        "others": len(shown) - 1,
        "note": " ".join(each for each in (note, best_step(run, front)) if each),
        "around": around(run),
    }


def best_step(run: RunFiles, stage: str) -> str:
    """At which step and epoch validation was best, as a sentence; empty where it was not measured."""
    scores = run.curves.get((stage, "valid/score")) or []
    losses = dict(run.curves.get((stage, "valid/loss")) or [])
    if not scores:
        return ""
    at = max(scores, key=lambda point: (point[1], -losses.get(point[0], 0.0)))[0]
    found = next((c for c in run.metrics.get("candidates") or () if c.get("name") == run.metrics.get("winner")), {})
    epochs, steps = found.get("epochs"), found.get("steps")
    passes = ""
    if is_number(epochs) and is_number(steps) and steps:
        passes = f", epoch {decimal(epochs * at / steps, 1)}"
    return f"Validation was best at step {whole(at)} of {whole(scores[-1][0])}{passes}."


def seen(run: RunFiles) -> str:
    """How much of the training data was used, in words; empty where it is not known."""
    share = (run.metrics.get("data") or {}).get("seen_share")
    return f"{percent(share)} of the training rows were seen." if is_number(share) else ""
