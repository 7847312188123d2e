"""The run directory: the one object of the main job that persists. Every phase reads and writes here."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from regraft.core.run import Record
from regraft.errors import RunError

RECIPE, MANIFEST, AUDIT, METRICS, LEDGER, EVENTS = (
    "recipe.yaml",
    "manifest.json",
    "audit.json",
    "metrics.json",
    "ledger.json",
    "events.jsonl",
)
REPORT, FINDINGS, PHASES = "report.html", "findings.csv", "phases"
STATE_FORMAT = "regraft.phase/1"


class RunDirectory:
    """Paths and small files of one run. A phase is done when its file in `phases/` is there; it is written last."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path) -> RunDirectory:
        """A new run directory.

        Raises:
            RunError: the path holds a run or other files already, or cannot be written.
        """
        if (path / RECIPE).exists():
            raise RunError(
                f"{path}: holds a run already; continue it with `regraft resume {path}`, or give another --out"
            )
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise RunError(
                f"{path}: must be a new or empty folder for a run, and holds other files; give another --out"
            )
        try:
            (path / PHASES).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"{path}: the run directory cannot be made ({error.strerror}); give another --out") from None
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """The run directory of an earlier run.

        Raises:
            RunError: there is none at `path`.
        """
        if not (path / RECIPE).is_file():
            raise RunError(f"{path}: is not a run directory (it has no {RECIPE}); give the folder that --out named")
        return cls(path)

    # ---- files

    def write_text(self, name: str, text: str) -> None:
        """Write a file whole or not at all."""
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.partial")
        try:
            with partial.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(target)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise RunError(f"{target}: cannot be written ({error.strerror}); make room there and resume") from error

    def write_json(self, name: str, content: Any) -> None:
        """Write JSON whole or not at all; numbers that JSON does not know are refused."""
        self.write_text(name, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False))

    def read_json(self, name: str) -> Any:
        """The content of a JSON file.

        Raises:
            RunError: it is missing or damaged.
        """
        try:
            return json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunError(
                f"{self.path / name}: cannot be read ({error}); the run is not complete, resume it"
            ) from None

    # ---- phases

    def done(self, phase: str) -> dict[str, Any] | None:
        """What a finished phase noted down, or None."""
        if not (self.path / PHASES / f"{phase}.json").exists():
            return None
        return dict(self.read_json(f"{PHASES}/{phase}.json"))

    def finish(self, phase: str, notes: Mapping[str, Any]) -> dict[str, Any]:
        """Mark a phase as done with what later phases need to know of it."""
        content = {"format": STATE_FORMAT, **notes}
        self.write_json(f"{PHASES}/{phase}.json", content)
        return content

    def add_cost(self, line: Mapping[str, Any]) -> None:
        """Append a line to the ledger."""
        lines = self.read_json(LEDGER) if (self.path / LEDGER).exists() else []
        self.write_json(LEDGER, [*lines, dict(line)])


class EventLog:
    """events.jsonl: every logged number of a run, one JSON object a line. On resume it is cut back to the checkpoint."""

    def __init__(self, path: Path, *, candidate: str) -> None:
        self.path, self.candidate = path, candidate

    def write(self, records: Sequence[Record], /) -> None:
        """Append records of consecutive steps."""
        with self.path.open("a", encoding="utf-8") as file:
            for record in records:
                file.write(json.dumps({"candidate": self.candidate, **record}) + "\n")

    def rewind(self, stage: int, step: int, /) -> None:
        """Drop this candidate's lines of later steps; `stage` is the index of the stage the step belongs to."""
        if not self.path.exists():
            return
        kept: list[str] = []
        seen: list[str] = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            if record.get("candidate") == self.candidate:
                if record["stage"] not in seen:
                    seen.append(record["stage"])
                index = seen.index(record["stage"])
                if index > stage or (index == stage and record["step"] > step):
                    continue
            kept.append(line)
        self.path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
