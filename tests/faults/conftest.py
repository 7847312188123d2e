"""Where the lab's runs lie: in memory, where the system has a folder for that."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

MEMORY = Path("/dev/shm")


@pytest.fixture
def scratch() -> Iterator[Path]:
    """An empty folder, removed after the test. A killed process loses nothing that it has written, synced or not."""
    there = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > 2e9
    with tempfile.TemporaryDirectory(prefix="regraft-faults-", dir=MEMORY if there else None) as folder:
        yield Path(folder)
