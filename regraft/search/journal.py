"""journal.jsonl: every leg that was asked for, every attempt that was lost, and every outcome, a line of JSON each, in order.

The journal is the search: a killed one is gone on with by replaying it, and no line of it is ever changed.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from regraft.config.plain_json import plain_json
from regraft.config.secrets import redact
from regraft.errors import RunError

JOURNAL = "journal.jsonl"


class Journal:
    """A file that only grows; each line is on the disk before anything is done about it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> Iterator[dict[str, Any]]:
        """The records so far; a last line that is only half there, which a killed process has left, is cut off.

        Raises:
            RunError: another line is damaged.
        """
        if not self.path.exists():
            return
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(self.path, whole)
        for number, line in enumerate(content[:whole].split(b"\n")[:-1], start=1):
            try:
                yield dict(plain_json(line))
            except (ValueError, TypeError):
                raise RunError(f"{self.path}: line {number} is damaged, so the search cannot be gone on with") from None

    def write(self, record: dict[str, Any]) -> None:
        """Append a record and sync it.

        Raises:
            RunError: the disk is full or read-only.
        """
        line = redact(json.dumps(record, allow_nan=False)).encode() + b"\n"
        try:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                if os.write(descriptor, line) < len(line):  # `read` cuts the part off
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise RunError(f"{self.path}: cannot be written ({error.strerror}); make room there and resume") from error
