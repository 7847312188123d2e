"""What the arms of the reliability benchmark share: kills while a checkpoint is written, exact resumes, and flipped bits.

An arm is anything with `train(folder, job, watch)`, which trains to the end of `job` from whatever the folder holds, as its users
are told to do it, and returns the final weights by name. Each training is a process forked from one that has imported everything.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import wraps
from itertools import product
from pathlib import Path
from typing import Any, Protocol

from common import ROOT, report

sys.path.insert(0, str(ROOT / "tests"))
from faults.lab import DIED, Counter, Ended, Forked, forked, state_hash

ROWS, BATCH, WIDTH, SIDE, CLASSES = 320, 16, 256, 8, 10
EPOCH = ROWS // BATCH  # steps


@dataclass(frozen=True)
class Job:
    """What is trained: digits of 8 x 8 pixels, batches of 16, 20 steps an epoch, an MLP with dropout, AdamW."""

    steps: int = 2 * EPOCH
    every: int = 1  # steps between two checkpoints
    workers: int = 0  # processes that make batches; of regraft, whether a thread makes them ahead
    augment: bool = False  # does an example look new each time?
    dies_before: int | None = None  # the process ends as this step, counted from 0, is about to be made


@dataclass
class Watch:
    """What is seen of a training from outside."""

    saves: Counter = field(default_factory=Counter)  # begun
    made: Counter = field(default_factory=Counter)  # steps
    begun: Counter = field(default_factory=Counter)  # step that it went on from
    told: Counter = field(default_factory=Counter)  # 1 when it said that a file was damaged
    seconds: list[float] = field(default_factory=list)  # of each save

    def around(self, save: Callable[..., Any]) -> Callable[..., Any]:
        """The function, counted and timed."""

        @wraps(save)
        def counted(*args: Any, **options: Any) -> Any:
            self.saves.set(self.saves.value + 1)
            begin = time.perf_counter()
            try:
                return save(*args, **options)
            finally:
                self.seconds.append(time.perf_counter() - begin)

        return counted


class Arm(Protocol):
    """A library that trains."""

    name: str

    def train(self, folder: Path, job: Job, watch: Watch) -> Mapping[str, Any]:
        """Final weights by name."""
        ...

    def newest(self, folder: Path) -> Path:
        """The file or folder of the checkpoint that a resume would use."""
        ...


def end() -> None:
    """Without a word."""
    os._exit(DIED)


def trained(arm: Arm, folder: Path, job: Job, watch: Watch) -> Ended:
    """A process that trained: the hash of its final weights and the seconds of its saves."""

    def work() -> dict[str, Any]:
        warnings.filterwarnings("ignore")
        return {"weights": state_hash(dict(arm.train(folder, job, watch))), "seconds": watch.seconds}

    return forked(work, timeout=180)


def last_line(ended: Ended) -> str:
    """What a failed process said at last, without paths of this machine."""
    lines = [line for line in ended.error.splitlines() if line.strip()] or [f"ended with {ended.code}"]
    return lines[-1].replace(tempfile.gettempdir(), "")[:200]


# ---- kills


def kills(arm: Arm, folder: Path, count: int, seed: int) -> dict[str, Any]:
    """SIGKILL at a random instant of a random save, with a save at every step; then the same call again, as a user would."""
    job, draw = Job(steps=12), random.Random(seed)
    whole = trained(arm, folder / "whole", job, Watch()).result()
    duration = sorted(whole["seconds"])[len(whole["seconds"]) // 2]
    found: dict[str, Any] = {"kills": 0, "resumed": 0, "same_bits": 0, "steps_lost": [], "errors": {}}
    number = 0
    while found["kills"] < count and number < 3 * count:
        number += 1
        place, watch = folder / f"run-{number}", Watch()
        which = draw.randint(2, len(whole["seconds"]) - 1)
        process = Forked(lambda place=place, watch=watch: len(arm.train(place, job, watch)))
        if not _wait_for(watch.saves, which):
            process.wait(5)
            continue
        process.kill_after(draw.uniform(0, duration))
        if process.wait().code >= 0:
            continue
        found["kills"] += 1
        made, watch = watch.made.value, Watch()
        ended = trained(arm, place, job, watch)
        if ended.code == 0:
            found["resumed"] += 1
            found["same_bits"] += ended.value["weights"] == whole["weights"]
            found["steps_lost"].append(made - watch.begun.value)
        else:
            line = last_line(ended)
            kind = line.partition(":")[0]
            found["errors"][kind] = found["errors"].get(kind, 0) + 1
            found.setdefault("example", line)
        shutil.rmtree(place, ignore_errors=True)
    lost = found.pop("steps_lost")
    return found | {"most_steps_lost": max(lost, default=None), "save_ms": round(1000 * duration, 2)}


def _wait_for(counter: Counter, value: int, seconds: float = 60.0) -> bool:
    deadline = time.monotonic() + seconds
    while counter.value < value:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.0002)
    return True


# ---- resumes


def resumes(arm: Arm, folder: Path, count: int, seed: int) -> dict[str, Any]:
    """Stopped after a checkpoint and resumed: are the final weights those of the run that was not stopped, bit for bit?"""
    found: dict[str, Any] = {}
    for where, workers, augment in product(("epoch end", "mid-epoch"), (0, 2), (False, True)):
        stop = EPOCH if where == "epoch end" else EPOCH + 7
        name = f"{where}, {workers} workers, {'random augmentation' if augment else 'dropout alone'}"
        place = folder / name.replace(", ", "-").replace(" ", "-")
        job = Job(workers=workers, augment=augment, every=EPOCH if where == "epoch end" else 7 + EPOCH)
        whole, again = (trained(arm, place / f"whole-{i}", job, Watch()).result()["weights"] for i in range(2))
        died = trained(arm, place / "run", replace(job, dies_before=stop + 1), Watch())
        assert died.code == DIED, died
        watch = Watch()
        ended = trained(arm, place / "run", job, watch)
        same = ended.code == 0 and ended.value["weights"] == whole
        found[name] = {"same_bits": same, "repeatable": whole == again, "went_on_from": watch.begun.value}
        if ended.code:
            found[name]["error"] = last_line(ended)
        shutil.rmtree(place)
    equal = sum(case["same_bits"] for case in found.values())
    return {"cases": len(found), "same_bits": equal, "by_case": found}


# ---- flips


def flips(arm: Arm, folder: Path, count: int, seed: int) -> dict[str, Any]:
    """One bit of the newest checkpoint flipped, at a place drawn from all its bytes; then the same call again."""
    job, draw = Job(steps=12), random.Random(seed)
    whole = trained(arm, folder / "whole", job, Watch()).result()["weights"]
    died = trained(arm, folder / "run", replace(job, dies_before=10), Watch())
    assert died.code == DIED, died
    unflipped = trained(arm, _copy(folder / "run", folder / "same"), job, Watch())
    found = {"flips": 0, "detected": 0, "silently_other_weights": 0, "without_effect": 0, "resumed": 0, "same_bits": 0}
    for number in range(count):
        place, watch = _copy(folder / "run", folder / f"flip-{number}"), Watch()
        newest = arm.newest(place)
        _flip(newest, draw)
        ended = trained(arm, place, job, watch)
        found["flips"] += 1
        found["resumed"] += ended.code == 0
        found["same_bits"] += ended.code == 0 and ended.value["weights"] == whole
        if ended.code != 0 or watch.told.value:
            found["detected"] += 1
        elif ended.value == unflipped.value or ended.value["weights"] == unflipped.result()["weights"]:
            found["without_effect"] += 1
        else:
            found["silently_other_weights"] += 1
        shutil.rmtree(place)
    return found


def _copy(run: Path, to: Path) -> Path:
    shutil.copytree(run, to, symlinks=True)
    return to


def _flip(checkpoint: Path, draw: random.Random) -> None:
    """Flip one bit; every byte of the checkpoint's files is as likely as any other."""
    files = sorted(file for file in checkpoint.rglob("*") if file.is_file()) if checkpoint.is_dir() else [checkpoint]
    sizes = [file.stat().st_size for file in files]
    file = draw.choices(files, sizes)[0]
    content = bytearray(file.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    file.write_bytes(content)


# ---- data without regraft, for the peers


def digits() -> tuple[Any, Any]:
    """Pixels (320, 64) in [0, 1] and class ids (320,)."""
    import torch
    from sklearn.datasets import load_digits

    found = load_digits()
    x = torch.tensor(found.data[:ROWS], dtype=torch.float32) / 16
    return x, torch.tensor(found.target[:ROWS])


def network() -> Any:
    """The peers' MLP; the same first weights at each call."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(SIDE * SIDE, WIDTH), nn.GELU(), nn.Dropout(0.1), nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Dropout(0.1),
        nn.Linear(WIDTH, CLASSES),
    )  # fmt: skip


def look(x: Any, augment: bool) -> Any:
    """An example as it is drawn: with noise of its own each time where it is augmented."""
    import torch

    return x + 0.1 * torch.randn_like(x) if augment else x


TESTS = {"kills": kills, "resumes": resumes, "flips": flips}


def main(arm: Arm) -> None:
    """One test of one arm; prints its line."""
    parser = argparse.ArgumentParser(description=f"{arm.name}: {', '.join(TESTS)}")
    parser.add_argument("test", choices=TESTS)
    parser.add_argument("--count", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="reliability-") as scratch:
        os.environ["REGRAFT_CACHE"] = str(Path(scratch) / "cache")
        found = TESTS[options.test](arm, Path(scratch), options.count, options.seed)
    report(**found)
