"""What the benchmarks share: fresh processes in alternating rounds, medians with intervals, result files that grow run by run.

A thing that is compared is an *arm*. `run_arm` starts it as a process of its own, which prints one line of JSON at its end;
its seconds count from the moment the process was started. `rounds` has the arms take turns (A, B, A, B, ...), so that a busy
or throttled machine slows all of them. `Store` keeps every run as soon as it is there: what was killed goes on where it stood.
"""

from __future__ import annotations

import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ARMS = ROOT / "benchmarks" / "arms"
RESULTS = ROOT / "benchmarks" / "results"
DATA = Path(os.environ.get("REGRAFT_DATA", ROOT.parent / "shared" / "data"))
MOBILENET = DATA / "weights_mobilenetv1_025_vww"
SPAWNED = "BENCH_SPAWNED"  # environment variable: when the parent started the process, in seconds since 1970
TURN_S = 0.002  # seconds between two looks whether a process has ended
LOOKS_EVERY = 10  # such turns between two looks at its memory
THREADS = int(os.environ.get("BENCH_THREADS", "2"))
PACKAGES = (
    "regraft", "torch", "transformers", "accelerate", "sentence-transformers", "scikit-learn", "lightning", "fastai", "numpy",
)  # fmt: skip


class ArmFailed(RuntimeError):
    """An arm ended with an error; the message has the last lines it wrote."""


# ---- the machine


def machine() -> dict[str, Any]:
    """Processor, cores, memory in GiB and the versions of everything compared."""
    return {
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "bf16_instructions": "avx512_bf16" in _cpu_info("flags"),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.system(),
        "threads": THREADS,
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
    }


def _cpu_info(field: str) -> str:
    """A field of the first processor in /proc/cpuinfo; empty elsewhere."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), "")


def _processor() -> str:
    return _cpu_info("model name") or platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def commit() -> str:
    """The commit of regraft that is measured, with a + where files were changed since; empty outside a repository."""
    command = ["git", "describe", "--always", "--abbrev=7", "--exclude=*", "--dirty=+"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()


# ---- numbers


def summary(values: Sequence[float], *, digits: int = 3) -> dict[str, Any]:
    """Median, 95 % bootstrap interval of the median, and the values themselves in the order they were measured."""
    low, high = interval(values)
    return {
        "median": round(statistics.median(values), digits),
        "low": round(low, digits),
        "high": round(high, digits),
        "runs": len(values),
        "values": [round(value, digits) for value in values],
    }


def interval(values: Sequence[float], *, resamples: int = 5000) -> tuple[float, float]:
    """The 2.5th and 97.5th percentile of the medians of resampled values; of a single value, the value twice."""
    draw = random.Random(0)
    medians = sorted(statistics.median(draw.choices(values, k=len(values))) for _ in range(resamples))
    return medians[int(0.025 * resamples)], medians[int(0.975 * resamples) - 1]


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """Ours over theirs: the median of the ratios within a round, where both ran in it, with the interval."""
    pairs = list(zip(ours, theirs, strict=False))
    return summary([a / b for a, b in pairs], digits=4)


# ---- arms


def run_arm(
    command: Sequence[str | Path], *, environment: Mapping[str, str] | None = None, timeout: float = 3600
) -> dict[str, Any]:
    """What the process printed in its last line, with its wall-clock and CPU seconds and its peak resident bytes.

    Args:
        command: after the interpreter: `-m regraft ...`, or a script and its options.
        environment: set for it besides ours.
        timeout: seconds after which it is killed.

    Raises:
        ArmFailed: it ended with an error.
    """
    settings = {"OMP_NUM_THREADS": str(THREADS), "TOKENIZERS_PARALLELISM": "true", "HF_HUB_OFFLINE": "1"}
    began = time.time()
    own = os.environ | settings | dict(environment or {}) | {SPAWNED: repr(began)}
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen([sys.executable, *map(str, command)], stdout=out, stderr=err, cwd=ROOT, env=own)
        usage, peak = _wait(process, timeout)
        wall = time.time() - began
        out.seek(0)
        err.seek(0)
        printed, complaints = out.read(), err.read()
    if process.returncode:
        raise ArmFailed(f"{' '.join(map(str, command))} ended with {process.returncode}:\n{complaints[-2000:]}")
    lines = [line for line in printed.splitlines() if line.startswith("{")]
    said: dict[str, Any] = json.loads(lines[-1]) if lines else {}
    cost = {"wall": wall, "cpu": usage.ru_utime + usage.ru_stime, "peak_bytes": peak}
    return said | {key: round(value, 3) for key, value in cost.items()}


def _wait(process: subprocess.Popen[str] | subprocess.Popen[bytes], timeout: float) -> tuple[Any, int]:
    """Resources the process used, and its peak resident bytes; it is killed after `timeout` seconds.

    The system's own figure is not enough: a process may have it forgotten, as regraft's ledger does before every phase.
    """
    end, seen, turn = time.monotonic() + timeout, 0, 0
    try:
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                process.returncode = os.waitstatus_to_exitcode(status)
                return usage, max(seen, usage.ru_maxrss * 1024)
            if turn % LOOKS_EVERY == 0:
                seen = max(seen, _high_water(process.pid))
            if time.monotonic() > end:
                process.kill()
            turn += 1
            time.sleep(TURN_S)
    except BaseException:
        process.kill()
        raise


def _high_water(pid: int) -> int:
    """Peak resident bytes of a process so far; 0 where the system does not say."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return 0
    line = next((line for line in status.splitlines() if line.startswith("VmHWM:")), "VmHWM: 0 kB")
    return int(line.split()[1]) * 1024


# ---- rounds and results


class Store:
    """A result file: {"machine", "settings", ..., "runs": {key: [run, ...]}}; every run is written as soon as it is there."""

    def __init__(self, path: Path, *, settings: Mapping[str, Any]) -> None:
        self.path, self.settings = path, dict(settings)
        self.content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        self.runs: dict[str, list[dict[str, Any]]] = self.content.setdefault("runs", {})

    def forget(self, keys: Sequence[str]) -> None:
        """Drop the runs of some keys."""
        for key in keys:
            self.runs.pop(key, None)

    def add(self, key: str, run: Mapping[str, Any]) -> None:
        """Keep a run and write the file."""
        self.runs.setdefault(key, []).append(dict(run) | {"commit": commit()})
        self.write()

    def values(self, key: str, name: str) -> list[float]:
        """One number of all runs of a key that have it."""
        return [run[name] for run in self.runs.get(key, []) if run.get(name) is not None]

    def write(self, **parts: Any) -> None:
        """Write the file, with parts of it replaced; the file is never half written."""
        self.content |= {"machine": machine(), "settings": self.settings} | parts
        runs = self.content.pop("runs")
        self.content["runs"] = runs  # the longest part stands last
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_suffix(".part")
        beside.write_text(json.dumps(self.content, indent=1) + "\n", encoding="utf-8")
        beside.replace(self.path)


def rounds(wanted: Mapping[str, int], store: Store) -> Iterator[str]:
    """Keys in turn, (A, B, A, B, ...), until each has as many runs as wanted; an arm wanted less often takes part less often."""
    for number in range(max(wanted.values(), default=0)):
        for key, count in wanted.items():
            if number < count and len(store.runs.get(key, [])) <= number:
                yield key


def say(sentence: str) -> None:
    """A line on standard output with the time of day."""
    print(f"{time.strftime('%H:%M:%S')}  {sentence}", flush=True)
