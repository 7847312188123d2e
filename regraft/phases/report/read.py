"""The files of a run directory as they are: whatever is missing or damaged is named, not raised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from regraft.config.plain_json import plain_json
from regraft.config.secrets import redact
from regraft.errors import RunError

# what reading a field of the wrong type raises: the files are data, possibly edited or of another version, and one wrong
# field must not cost the whole report
UNEXPECTED_FORM = (AttributeError, ArithmeticError, IndexError, KeyError, TypeError, ValueError)
MOST_POINTS = 400  # of one curve; more cannot be told apart at the width of a page


class Absent(Exception):
    """A section has nothing to show; the message is the line that says why."""


@dataclass(frozen=True, kw_only=True)
class RunFiles:
    """What a run directory holds. `problems` says of each file that is not there, or not readable, why."""

    path: Path
    audit: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    manifest: Mapping[str, Any] = field(default_factory=dict)
    ledger: Sequence[Mapping[str, Any]] = ()
    curves: Mapping[tuple[str, str], Sequence[tuple[float, float]]] = field(default_factory=dict)  # (stage, name)
    recipe: str = ""
    readme: str = ""
    problems: Mapping[str, str] = field(default_factory=dict)

    def need(self, file: str, *keys: str) -> Any:
        """The value at `keys` of one of the files; `Absent` with the reason where it is not there or empty."""
        value: Any = getattr(self, file)
        name = {"curves": "events.jsonl"}.get(file, f"{file}.json")
        if name in self.problems:
            raise Absent(self.problems[name])
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        if value is None or (isinstance(value, Sequence | Mapping) and not value):
            raise Absent(f"{name} holds no {'.'.join(keys) or 'entries'}.")
        return value


def read_run(run: Path) -> RunFiles:
    """Every file of a run directory that the report uses; `RunError` where there is no such directory or no run in it."""
    if not run.is_dir():
        raise RunError(
            f"{run}: must be a run directory, but there is no such directory; `regraft adapt DATA --out {run}` makes one"
        )
    problems: dict[str, str] = {}
    audit, metrics, manifest = (
        _json(run / f"{name}.json", dict, problems) for name in ("audit", "metrics", "manifest")
    )
    ledger = _json(run / "ledger.json", list, problems)
    curves = _curves(run / "events.jsonl", problems)
    if len(problems) == 5 and not (run / "recipe.yaml").exists():
        raise RunError(f"{run}: must be a run directory, but holds none of audit.json, metrics.json and recipe.yaml")
    return RunFiles(
        path=run,
        audit=audit,
        metrics=metrics,
        manifest=manifest,
        ledger=[entry for entry in ledger if isinstance(entry, Mapping)],
        curves=curves,
        recipe=_text(run / "recipe.yaml"),
        readme=_text(run / "model" / "README.md"),
        problems=problems,
    )


def _text(path: Path) -> str:
    """The text of a file without secrets, empty where there is none; bytes that are not UTF-8 become U+FFFD."""
    return redact(path.read_text(encoding="utf-8", errors="replace")) if path.is_file() else ""


def _json(path: Path, kind: type, problems: dict[str, str]) -> Any:
    """The content of a JSON file, or an empty one of that kind and a line in `problems`."""
    if not path.is_file():
        problems[path.name] = f"{path.name} is not in the run directory: its phase has not run."
        return kind()
    try:
        content = plain_json(_text(path))
    except ValueError as error:
        problems[path.name] = f"{path.name} is not valid JSON ({error})."
        return kind()
    if not isinstance(content, kind):
        problems[path.name] = f"{path.name} must hold a {kind.__name__}, but holds a {type(content).__name__}."
        return kind()
    return content


def _curves(path: Path, problems: dict[str, str]) -> dict[tuple[str, str], list[tuple[float, float]]]:
    """(stage, name) -> points (step, value), thinned to `MOST_POINTS`, from a file that may end in half a line."""
    if not path.is_file():
        problems[path.name] = f"{path.name} is not in the run directory: nothing was trained."
        return {}
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    unread = 0
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                logged = _numbers(plain_json(line, finite=False))
            except (ValueError, KeyError, TypeError, AttributeError):
                unread += 1  # a killed run leaves half a line; stages also log things that are not numbers
                continue
            for key, point in logged.items():
                if point[1] == point[1] and abs(point[1]) != float("inf"):
                    found.setdefault(key, []).append(point)
    if unread and not found:
        problems[path.name] = f"{path.name} holds no line with stage, step, name and value."
    return {key: thinned(sorted(points)) for key, points in found.items()}


def _numbers(event: Mapping[str, Any]) -> dict[tuple[str, str], tuple[float, float]]:
    """What one line of events.jsonl logs: one `name` with its `value`, or every number of a training step's record."""
    step, stage = float(event["step"]), str(event.get("candidate", event["stage"]))
    if "name" in event:
        return {(stage, str(event["name"])): (step, float(event["value"]))}
    if event.get("candidate") and event["stage"] != "adapt":
        stage = f"{stage}: {event['stage']}"
    names = [name for name in event if name not in ("stage", "candidate", "step", "weight")]
    return {(stage, name): (step, float(event[name])) for name in names}


def thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `MOST_POINTS` points at even distances, first and last included."""
    if len(points) <= MOST_POINTS:
        return points
    last = len(points) - 1
    return [points[round(i * last / (MOST_POINTS - 1))] for i in range(MOST_POINTS)]
