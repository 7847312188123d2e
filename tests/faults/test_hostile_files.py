"""Hostile files do nothing: each ends in one sentence, within a second and 200 MB, without a process, a socket or a file made.

They are opened in a forked process in which an audit hook of the interpreter notes what they must not do. The default suite
opens every sixth; all of them are opened by `make test-all`.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
import traceback
from pathlib import Path

import pytest

SECONDS, MEGABYTES = 1.0, 200
SAMPLE = 6
FORBIDDEN = (
    "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "subprocess.Popen", "socket.connect", "socket.bind",
    "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "pickle.find_class", "ctypes.dlopen", "marshal.loads", "exec",
    "shutil.rmtree", "os.chmod", "os.link", "os.symlink", "urllib.Request", "webbrowser.open",
)  # fmt: skip
CODE_OF_PACKAGES = ("exec", "marshal.loads", "ctypes.dlopen")  # of an import of an installed package, which is no harm


@pytest.fixture
def hostile(tmp_path, monkeypatch):
    monkeypatch.setenv("REGRAFT_CANARY", str(tmp_path / "canary"))
    monkeypatch.setenv("REGRAFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    from faults.hostile_injectors import CASES

    return CASES


def memory(name: str = "VmHWM") -> float:
    """A memory of this process in MB: the highest resident one since the last reset, or another of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:"))


def watched(cases, folder: Path, out: Path) -> None:
    """Build and open every case in this process, and write down what happened."""
    from regraft.errors import RegraftError

    noted: list[str] = []
    on = [False]

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if not on[0]:
            return
        writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
        forbidden = event in FORBIDDEN and not (event in CODE_OF_PACKAGES and importing())
        if (writes or forbidden) and os.environ["REGRAFT_CACHE"] not in str(arguments[0]):
            noted.append(f"{event} {str(arguments)[:200]}")

    sys.addaudithook(hook)
    results = []
    for number, (name, build) in enumerate(cases.items()):
        here = folder / str(number)
        here.mkdir(parents=True)
        open_it = build(here)
        out.write_text(name)  # told where the process dies in it
        noted.clear()
        Path("/proc/self/clear_refs").write_text("5")
        before, began = memory(), time.process_time()
        on[0] = True
        try:
            open_it()
            ended = "it was opened"
        except RegraftError as error:
            ended = "" if "\n" not in str(error) and len(str(error)) < 1500 else f"no sentence: {str(error)[:300]}"
        except BaseException:
            ended = traceback.format_exc()[-1500:]
        on[0] = False
        seconds = time.process_time() - began
        results.append([name, ended, list(noted), seconds, memory() - before])
    out.write_text(json.dumps(results))


def importing() -> bool:
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def opened_in_a_fork(cases, tmp_path: Path) -> list[list]:
    from transformers import BertModel, MixtralModel  # noqa: F401  # the parent is warm: the time is that of the file alone

    from regraft.models.safety import model_types

    model_types()
    out = tmp_path / "results.json"
    child = os.fork()
    if child == 0:
        code = 1
        try:
            room = int(memory("VmSize") + 2048) * 2**20  # a bomb that goes off takes this process only
            resource.setrlimit(resource.RLIMIT_AS, (room, room))
            watched(cases, tmp_path / "cases", out)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert status == 0, f"the process died in {out.read_text()[:200]!r}"
    return json.loads(out.read_text())


def judge(results: list[list], tmp_path: Path, *, allowed: float = SECONDS) -> None:
    assert not (tmp_path / "canary").exists(), "a gadget ran"
    wrong = {name: ended for name, ended, _, _, _ in results if ended}
    assert wrong == {}
    assert {name: noted for name, _, noted, _, _ in results if noted} == {}
    assert {name: seconds for name, _, _, seconds, _ in results if seconds >= allowed} == {}
    assert {name: grown for name, _, _, _, grown in results if grown >= MEGABYTES} == {}


def test_hostile_files_are_refused_in_a_sentence_and_do_nothing(hostile, tmp_path):
    names = sorted(hostile)[::SAMPLE]
    results = opened_in_a_fork({name: hostile[name] for name in names}, tmp_path)
    judge(results, tmp_path, allowed=3 * SECONDS)  # beside other tests on a shared machine; a bomb takes far longer


@pytest.mark.slow
def test_each_of_the_hostile_files_is_refused_in_a_sentence_and_does_nothing(hostile, tmp_path):
    assert len(hostile) >= 200
    judge(opened_in_a_fork(hostile, tmp_path), tmp_path)


def test_the_trap_notes_a_gadget_that_runs(hostile, tmp_path):
    import pickle

    from faults.hostile_injectors import gadgets

    def build(folder):
        return lambda: pickle.loads(pickle.dumps(gadgets()["system"]))

    ((_, ended, noted, _, _),) = opened_in_a_fork({"trap": build}, tmp_path)
    assert ended == "it was opened"
    assert any(line.startswith("os.system") for line in noted)
    assert (tmp_path / "canary").exists()
