"""The run directory: the one object of the main job that persists. Every phase reads and writes here."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from regraft.config.plain_json import plain_json
from regraft.config.secrets import redact
from regraft.core.files import discard, partial_of, replace_file, sha256, sync_file, sync_folder
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
REPORT, FINDINGS, PHASES, LOCK = "report.html", "findings.csv", "phases", ".lock"
STATE_FORMAT = "regraft.phase/1"


def _hardly_begun(folder: Path) -> bool:
    """Is the folder empty, or does it hold what a run leaves that was killed before its recipe was written, and no more?"""
    left = {
        each.name
        for each in folder.iterdir()
        if each not in (partial_of(folder / RECIPE), partial_of(folder / MANIFEST))
    }
    if MANIFEST in left and '"regraft.manifest/' not in (folder / MANIFEST).read_text(
        encoding="utf-8", errors="replace"
    ):
        return False
    empty = not (folder / PHASES).is_dir() or not any((folder / PHASES).iterdir())
    return left <= {LOCK, MANIFEST, PHASES} and empty


class RunDirectory:
    """Paths and small files of one run.

    A phase is done when its file `phases/NAME.json` is there; it is written last. Beside it, `phases/NAME.sha256` holds the
    sha256 of this file and of those the phase left for later ones, in the format of `sha256sum`. What was damaged since is
    noticed before it is used, and the phase runs again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.say: Callable[[str], None] = lambda sentence: None  # told of damage
        self._sound: set[str] = set()  # phases whose files were found to be what they were
        self.damaged: set[str] = set()  # phases whose files were not

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
        if path.exists() and not (path.is_dir() and _hardly_begun(path)):
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
        """Write a file whole or not at all, without the secrets that its text may hold."""
        with self._told(name) as target:
            replace_file(target, redact(text).encode())

    @contextmanager
    def making(self, name: str) -> Generator[Path]:
        """Where to write a file, which gets its name at the end of the block: it is there whole or not at all.

        Raises:
            RunError: it cannot be written.
        """
        with self._told(name) as target:
            partial = partial_of(target)
            try:
                yield partial
                sync_file(partial)
                os.rename(partial, target)
                sync_folder(target.parent)
            except BaseException:
                discard(partial)
                raise

    @contextmanager
    def _told(self, name: str) -> Generator[Path]:
        """The path of a file, its folder made; what goes wrong in the block is told as a sentence."""
        target = self.path / name
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            yield target
        except (OSError, SafetensorError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise RunError(f"{target}: cannot be written ({reason}); make room there and resume") from error

    def save_array(self, name: str, array: np.ndarray) -> None:
        """Write a .npy file whole or not at all."""
        with self.making(name) as path, path.open("wb") as file:
            np.save(file, array)

    def write_json(self, name: str, content: Any) -> None:
        """Write JSON whole or not at all; numbers that JSON does not know are refused."""
        self.write_text(name, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False))

    def read_json(self, name: str) -> Any:
        """The content of a JSON file.

        Raises:
            RunError: it is missing or damaged.
        """
        try:
            return plain_json((self.path / name).read_bytes())
        except (OSError, ValueError) as error:
            raise RunError(
                f"{self.path / name}: cannot be read ({error}); the run is not complete, resume it"
            ) from None

    # ---- phases

    def done(self, phase: str) -> dict[str, Any] | None:
        """What a finished phase noted down, or None where it has to run: it never did, or what it left is damaged."""
        if not (self.path / PHASES / f"{phase}.json").exists():
            return None
        if phase not in self._sound:
            damaged = self._damaged(phase)
            if damaged is not None:
                self.say(f"{self.path / damaged}: missing or damaged since it was written; {phase} runs again")
                self.forget(phase)
                self.damaged.add(phase)
                return None
            self._sound.add(phase)
        return dict(self.read_json(f"{PHASES}/{phase}.json"))

    def finish(self, phase: str, notes: Mapping[str, Any], *, files: Sequence[str] = ()) -> dict[str, Any]:
        """Mark a phase as done, with what later phases need to know of it.

        Args:
            phase: its name.
            notes: JSON values.
            files: what it left for later phases, as paths in the run directory; a folder stands for all that is in it.
        """
        content = {"format": STATE_FORMAT, **notes}
        found = [path for name in files for path in _files(self.path / name)]
        sums = [f"{sha256(path)}  {path.relative_to(self.path).as_posix()}\n" for path in found]
        text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
        own = f"{hashlib.sha256(text.encode()).hexdigest()}  {PHASES}/{phase}.json\n"
        self.write_text(f"{PHASES}/{phase}.sha256", "".join([*sums, own]))
        self.write_text(f"{PHASES}/{phase}.json", text)
        self._sound.add(phase)
        return content

    def forget(self, phase: str) -> None:
        """Have a phase run again."""
        (self.path / PHASES / f"{phase}.json").unlink(missing_ok=True)
        self._sound.discard(phase)

    def _damaged(self, phase: str) -> str | None:
        """The first file of a finished phase that is not what the phase left; None where all are."""
        sums = f"{PHASES}/{phase}.sha256"
        try:
            lines = (self.path / sums).read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError):
            return sums
        matches = [re.fullmatch(r"([0-9a-f]{64})  (.+)", line) for line in lines[:-1]]
        found = [match.groups() for match in matches if match is not None]
        if len(found) != len(matches) or lines[-1] or not found or found[-1][1] != f"{PHASES}/{phase}.json":
            return sums
        return next((name for expected, name in found if not self._is(name, expected)), None)

    def _is(self, name: str, expected: str) -> bool:
        try:
            return sha256(self.path / name) == expected
        except OSError:
            return False

    def add_cost(self, line: Mapping[str, Any]) -> None:
        """Append a line to the ledger."""
        lines = self.read_json(LEDGER) if (self.path / LEDGER).exists() else []
        self.write_json(LEDGER, [*lines, dict(line)])


def _files(path: Path) -> list[Path]:
    """The file, or all files below the folder, in one order on every machine."""
    return sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]


class EventLog:
    """events.jsonl: every logged number of a run, one JSON object a line. On resume it is cut back to the checkpoint."""

    def __init__(self, path: Path, *, candidate: str) -> None:
        self.path, self.candidate = path, candidate

    def write(self, records: Sequence[Record], /) -> None:
        """Append records of consecutive steps.

        Raises:
            RunError: the file cannot be written; a line that is only half there is dropped on resume.
        """
        lines = "".join(json.dumps({"candidate": self.candidate, **record}) + "\n" for record in records)
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(redact(lines))
        except OSError as error:
            raise RunError(f"{self.path}: cannot be written ({error.strerror}); make room there and resume") from error

    def notes(self) -> list[str]:
        """The sentences that hooks of this candidate's run have written, each once, also those from before a resume."""
        if not self.path.exists():
            return []
        records = (plain_json(line) for line in self.path.read_bytes().split(b"\n")[:-1] if b'"note"' in line)
        said = [str(r["note"]) for r in records if r.get("candidate") == self.candidate and "note" in r]
        return list(dict.fromkeys(said))

    def rewind(self, stage: int, step: int, /) -> None:
        """Drop this candidate's lines of later steps; `stage` is the index of the stage the step belongs to.

        Raises:
            RunError: a line is not JSON, other than the last one, which a killed process may have left unfinished.
        """
        if not self.path.exists():
            return
        kept: list[bytes] = []
        seen: list[str] = []
        for number, line in enumerate(self.path.read_bytes().split(b"\n")[:-1], start=1):
            try:
                record = plain_json(line)
                name, at = record["stage"], int(record["step"])
            except (ValueError, KeyError, TypeError):
                raise RunError(
                    f"{self.path}: line {number} is damaged; take it out to go on, the numbers of its step are lost"
                ) from None
            if record.get("candidate") == self.candidate:
                if name not in seen:
                    seen.append(name)
                if (seen.index(name), at) > (stage, step):
                    continue
            kept.append(line)
        replace_file(self.path, b"".join(line + b"\n" for line in kept))
