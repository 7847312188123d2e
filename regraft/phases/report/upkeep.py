"""What the last part of the report shows: the ledger, warnings, how to use the model, how to repeat the run, its limits."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from regraft.phases.report.read import Absent, RunFiles
from regraft.phases.report.summary import headline_split, total_of
from regraft.phases.report.words import decimal, flops, is_number, percent, seconds, short, size_of, value_of, whole

TRAINING = "training in"  # begins the sentence in which the plan compares steps in bf16 and fp32
FEW_ROWS = 10  # test rows of a class below which its numbers say little


def ledger(run: RunFiles) -> dict[str, Any]:
    """What each phase cost, in order, with its share of the time, and the sum."""
    entries = run.need("ledger")
    longest = max((e["seconds"] for e in entries if is_number(e.get("seconds"))), default=0) or 1
    rows = [
        {
            "phase": e.get("phase", "unnamed"),
            "share": e["seconds"] / longest if is_number(e.get("seconds")) else 0.0,
            "seconds": seconds(e.get("seconds")),
            "cpu": seconds(e.get("cpu_seconds")),
            "peak": size_of(e.get("peak_bytes")),
            "flops": flops(e.get("flops")),
            "bytes": size_of(e.get("bytes")),
        }
        for e in entries
    ]
    peaks = [e["peak_bytes"] for e in entries if is_number(e.get("peak_bytes"))]
    total = {
        "seconds": seconds(total_of(run, "seconds")),
        "cpu": seconds(total_of(run, "cpu_seconds")),
        "peak": size_of(max(peaks, default=None)),
        "flops": flops(total_of(run, "flops")),
    }
    gates = [e["gate"] | {"phase": e.get("phase", "")} for e in entries if isinstance(e.get("gate"), Mapping)]
    return {"rows": rows, "total": total, "gates": gates, "latency": _latency(run)}


def _latency(run: RunFiles) -> list[tuple[str, str]]:
    """Latency and size as label and value."""
    speed, size = run.metrics.get("latency") or {}, run.metrics.get("size") or {}
    facts = []
    if is_number(speed.get("p50_ms")):
        where = f", {speed['device']}" if speed.get("device") else ""
        where += f", {whole(speed['threads'])} threads" if is_number(speed.get("threads")) else ""
        value = f"p50 {decimal(speed['p50_ms'], 2)} ms, p95 {decimal(speed.get('p95_ms'), 2)} ms"
        facts.append(
            ("Latency", f"{value}, batch {whole(speed.get('batch', 1))}, {whole(speed.get('runs'))} runs{where}")
        )
    told = [reason for reason in run.metrics.get("reasons") or () if str(reason).startswith(TRAINING)]
    facts += [("Mixed precision", str(reason)) for reason in told]
    if is_number(size.get("parameters")):
        trained = f", of which {whole(size['trainable'])} were trained" if is_number(size.get("trainable")) else ""
        facts.append(("Parameters", f"{whole(size['parameters'])}{trained}"))
    if is_number(size.get("bytes")):
        facts.append(("Size on disk", size_of(size["bytes"])))
    return facts


def notes(run: RunFiles) -> dict[str, Any]:
    """Fallbacks and warnings of all phases."""
    lines = {key: [str(line) for line in run.metrics.get(key) or ()] for key in ("fallbacks", "warnings")}
    if not run.metrics:
        run.need("metrics")
    return lines


def use(run: RunFiles) -> dict[str, Any]:
    """Code that loads and uses the model, with this run's own path, and that of the model's README."""
    modality = (
        (run.manifest.get("data") or {}).get("modality") if isinstance(run.manifest.get("data"), Mapping) else None
    )
    example = {"image": '["photo.jpg"]', "audio": '["clip.wav"]', "table": '[{"column": 1.0}]'}.get(
        str(modality), '["a text to classify"]'
    )
    where = str(run.path)
    python = (
        f"import regraft as rg\n\nrun = rg.load({where!r})\nfor answer in run.predict({example}):\n    print(answer)"
    )
    shell = f"regraft predict {_quoted(where)} new.csv --json > answers.jsonl"
    return {"python": python, "shell": shell, "plain": _first_code(run.readme), "folder": (run.path / "model").is_dir()}


def _quoted(path: str) -> str:
    """A path as a shell takes it."""
    return path if re.fullmatch(r"[\w./-]+", path) else "'" + path.replace("'", "'\\''") + "'"


def _first_code(readme: str) -> str:
    """The first fenced Python block of a README, empty where there is none."""
    found = re.search(r"^```python\n(.*?)^```", readme, re.DOTALL | re.MULTILINE)
    return found.group(1).rstrip() if found else ""


def reproduce(run: RunFiles) -> dict[str, Any]:
    """The manifest as label and value, and the recipe."""
    manifest = run.need("manifest")
    rows = list(_flat(manifest))
    return {
        "rows": rows,
        "recipe": run.recipe,
        "command": f"regraft adapt {_quoted(str(run.path / 'recipe.yaml'))} --out AGAIN",
    }


def _flat(value: Mapping[str, Any], before: str = "") -> Any:
    """(dotted name, text) of every leaf."""
    for key, each in value.items():
        name = f"{before}{key}"
        if isinstance(each, Mapping):
            yield from _flat(each, f"{name}.")
        else:
            yield (
                name,
                ", ".join(str(e) for e in each) if isinstance(each, list) else "–" if each is None else str(each),
            )


def limits(run: RunFiles) -> dict[str, Any]:
    """What the numbers do not say, as far as they show it themselves, after what the phases wrote down."""
    metrics = run.metrics
    if not metrics.get("final"):
        raise Absent("metrics.json holds no final scores whose limits could be stated.")
    split, lines = headline_split(metrics), [str(line) for line in metrics.get("limits") or ()]
    scores = metrics["final"].get(split) or {}
    lines += [f"On a resume {sentence}." for sentence in run.manifest.get("resumed elsewhere") or ()]
    lines.append(
        f"Intervals say how the {split} rows could have fallen otherwise, not how another seed of the training would have ended."
    )
    if split != "test":
        lines.append(
            "No test split was scored; the numbers are of rows that also chose between candidates, so they flatter the model."
        )
    if is_number(metrics.get("test_uses")) and metrics["test_uses"] > 1:
        lines.append(
            f"The test split was used {whole(metrics['test_uses'])} times, so its numbers flatter the model a little."
        )
    if value_of(scores, "excluded"):
        lines.append(
            f"{whole(value_of(scores, 'excluded'))} {split} rows without a usable label are not in the numbers."
        )
    rare = [row["class"] for row in metrics.get("per_class") or () if row.get("support", FEW_ROWS) < FEW_ROWS]
    if rare:
        names = ", ".join(short(name, 40) for name in rare[:5]) + (" and others" if len(rare) > 5 else "")
        lines.append(
            f"{whole(len(rare))} classes have fewer than {FEW_ROWS} {split} rows ({names}); their scores say little."
        )
    if metrics.get("task") in ("binary", "multiclass"):
        lines.append(
            "Every input gets one of the known classes: the model has no answer for something it was never shown."
        )
    seen = (metrics.get("data") or {}).get("seen_share")
    if is_number(seen) and seen < 1:
        lines.append(
            f"The budget allowed {percent(seen)} of the training rows to be seen; more time may give a better model."
        )
    lines.append(
        "Probabilities hold for data like the validation rows; where the data moves, calibrate again on recent rows."
    )
    return {"lines": lines}
