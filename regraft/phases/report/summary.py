"""A run in five lines: what was asked, what won, what it gained, how far its probabilities can be trusted, what it cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from regraft.phases.report.read import UNEXPECTED_FORM, RunFiles, read_run
from regraft.phases.report.words import (
    clean,
    decimal,
    flops,
    is_number,
    metric_name,
    percent,
    scaled,
    seconds,
    short,
    signed,
    size_of,
    value_of,
    whole,
)

TASKS = {
    "binary": "one of two classes",
    "multiclass": "one of {count} classes",
    "multilabel": "any of {count} labels",
    "regression": "a number",
}


def text_summary(run: Path) -> list[str]:
    """The five lines of a run directory for the terminal; a line whose numbers are not there says so."""
    return [f"{title}: {line}" for title, line in five_lines(read_run(run))]


def five_lines(run: RunFiles) -> list[tuple[str, str]]:
    """(title, sentence) five times: Asked, Won, Gained, Calibrated, Cost."""
    lines = (("Asked", _asked), ("Won", _won), ("Gained", _gained), ("Calibrated", _calibrated), ("Cost", _cost))
    return [(title, _line(run, write)) for title, write in lines]


def _line(run: RunFiles, write: Callable[[RunFiles], str]) -> str:
    """One line, or the reason why there is none."""
    try:
        return write(run)
    except UNEXPECTED_FORM as error:
        return f"Not known: a file of the run has not the expected form ({type(error).__name__}: {clean(error)})."


def headline_split(metrics: Mapping[str, Any]) -> str:
    """The split whose numbers count: test, else the last one that was scored."""
    final = metrics.get("final") or {}
    return "test" if "test" in final else next(reversed(list(final)), "test")


def with_interval(metrics: Any, name: str) -> str:
    """`0.941 (0.932 to 0.949)`, or the value alone where it has no interval."""
    value = value_of(metrics, name)
    entry = metrics.get(name) if isinstance(metrics, Mapping) else None
    if isinstance(entry, Mapping) and is_number(entry.get("low")) and is_number(entry.get("high")):
        return f"{decimal(value)} ({decimal(entry['low'])} to {decimal(entry['high'])})"
    return decimal(value)


def named(value: Any, *keys: str) -> str:
    """The first of `keys` in a mapping, or the value itself where it is a string; empty where there is neither."""
    if isinstance(value, Mapping):
        return next((str(value[key]) for key in keys if value.get(key)), "")
    return str(value) if isinstance(value, str) else ""


def total_of(run: RunFiles, key: str) -> float | None:
    """The sum of one column of the ledger; None where no entry has it."""
    values = [entry[key] for entry in run.ledger if is_number(entry.get(key))]
    return sum(values) if values else None


def _asked(run: RunFiles) -> str:
    metrics, data = run.metrics, run.metrics.get("data") or {}
    source = named(run.manifest.get("data"), "name", "path") or "the data"
    model = named(run.manifest.get("model"), "name", "path") or "the model given"
    task = TASKS.get(str(metrics.get("task")), "a task that metrics.json does not name")
    rows = f" {whole(data['train'])} rows to learn from" if is_number(data.get("train")) else ""
    seen = data.get("seen_share")
    part = f" ({percent(seen)} of them seen)" if is_number(seen) and seen < 1 else ""
    part += _left_out(data.get("bad_samples") or {})
    what = task.format(count=len(metrics.get("classes") or ()))
    return f"Predict {what} for {short(source, 80)} with {short(model, 80)}{';' if rows else ''}{rows}{part}."


def _left_out(facts: Mapping[str, Any]) -> str:
    """How many bad rows were left out, of what kinds, and the first of them; empty where there are none."""
    if not is_number(facts.get("rows")) or not facts["rows"]:
        return ""
    each = [
        f"{split} {whole(count)} {kind}"
        for split, kinds in (facts.get("counts") or {}).items()
        for kind, count in kinds.items()
    ]
    first = short(str((facts.get("first") or [""])[0]), 120)
    return f"; {whole(facts['rows'])} of {whole(facts.get('of'))} rows are bad and were left out ({', '.join(each)}; {first})"


def _won(run: RunFiles) -> str:
    metrics, split = run.metrics, headline_split(run.metrics)
    scores = (metrics.get("final") or {}).get(split)
    if not scores:
        return "Nothing yet: metrics.json holds no final scores."
    primary = str(metrics.get("primary", "accuracy"))
    rows, uses = value_of(scores, "n"), metrics.get("test_uses")
    on = f" on {whole(rows)} {split} rows" if rows else f" on {split}"
    once = f", used {'once' if uses == 1 else f'{whole(uses)} times'}" if split == "test" and is_number(uses) else ""
    winner = short(metrics.get("winner") or "the model", 60)
    name = metric_name(primary)
    name = name if name.isupper() or not name.isalpha() else name.lower()
    measured = f"{name} {with_interval(scores, primary)}{on}{once}"
    return f"{winner[0].upper()}{winner[1:]}, with {measured}; in brackets the 95 % interval."


def _gained(run: RunFiles) -> str:
    metrics, split = run.metrics, headline_split(run.metrics)
    primary, versus = str(metrics.get("primary", "accuracy")), metrics.get("versus_probe") or {}
    final = value_of((metrics.get("final") or {}).get(split), primary)
    parts = []
    for key, words in (("probe", "the probe on all depths"), ("last_layer_probe", "a probe on the last layer")):
        base = value_of((metrics.get(key) or {}).get(split), primary)
        if final is None or base is None:
            continue
        between = ""
        if key == "probe" and is_number(versus.get("low")) and is_number(versus.get("high")):
            between = f" ({signed(versus['low'])} to {signed(versus['high'])})"
        parts.append(f"{signed(final - base)}{between} over {words} ({decimal(base)})")
    return "; ".join(parts) + "." if parts else "Not known: no probe was scored on the same rows."


def _calibrated(run: RunFiles) -> str:
    metrics = run.metrics
    calibration = metrics.get("calibration") or {}
    if not calibration:
        return "No: the calibrate phase has left nothing in metrics.json."
    test = value_of((metrics.get("final") or {}).get(headline_split(metrics)), "ece")
    if calibration.get("kind") == "residual":
        parameters = calibration.get("parameters") or {}
        held = percent(calibration.get("cross_fitted_coverage"))
        width = decimal(parameters.get("half_width"))
        return f"± {width} around each prediction held {held} of validation rows left out of the fit."
    kind = str(calibration.get("kind", "unknown")).replace("_", " ")
    before, after = (value_of(calibration.get(key), "ece") for key in ("before", "after"))
    changed = "Left as they were" if kind == "identity" else f"By {kind}"
    valid = (
        f"; calibration error {decimal(before)} before, {decimal(after)} after, on validation rows left out of the fit"
    )
    return f"{changed}{valid if after is not None else ''}{f'; {decimal(test)} on test' if test is not None else ''}."


def _cost(run: RunFiles) -> str:
    size, speed = run.metrics.get("size") or {}, run.metrics.get("latency") or {}
    wall, cpu, work = (total_of(run, key) for key in ("seconds", "cpu_seconds", "flops"))
    peaks = [entry["peak_bytes"] for entry in run.ledger if is_number(entry.get("peak_bytes"))]
    parts = []
    if wall is not None:
        parts.append(seconds(wall) + (f" ({seconds(cpu)} of processor time)" if cpu is not None else ""))
    if peaks:
        parts.append(f"{size_of(max(peaks))} of memory at most")
    if work:
        parts.append(flops(work))
    if is_number(size.get("parameters")):
        stored = f", {size_of(size['bytes'])}" if is_number(size.get("bytes")) else ""
        parts.append(f"a model of {scaled(size['parameters'], '')} parameters{stored}")
    if is_number(speed.get("p50_ms")):
        parts.append(f"{decimal(speed['p50_ms'], 1)} ms a prediction (p95 {decimal(speed.get('p95_ms'), 1)} ms)")
    return "; ".join(parts) + "." if parts else "Not known: there is no ledger."
