"""fp32 or bf16: a short measurement on the model's own shapes decides, and a bound on the error has the last word."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from regraft.core.dtypes import published
from regraft.core.forward import called_on, forward
from regraft.core.modes import eval_mode
from regraft.core.precision import Precision, supports
from regraft.data.encoded import Encoded

SECONDS, MOST_SECONDS = 0.25, 1.0  # of measuring: about, and where a pass is slow
MOST_ROWS, AIM_S = 32, 0.05  # rows of a pass: a usual batch, or as many as take this long
FEWEST_TURNS, MOST_TURNS = 2, 30
GAIN = 0.97  # of fp32's time, at most, is what another mode may take
MOST_ERROR = (
    0.05  # relative difference of the head's inputs in the Euclidean norm; bf16 rounds a number by 0.4 % at most
)
TRAINING = "training in"  # how the sentence about steps begins, by which the report finds it
PLAINLY = 2.0  # times as fast: no more turns are needed to tell
LEAST_AGREEMENT = 0.9  # of the examples keep their largest output


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """bf16 beside fp32, measured in turn on the same examples: the least seconds of each, and the difference of what came out.

    The least, because whatever else runs on the machine only adds to a time.
    """

    plain_s: float  # a forward pass in fp32
    half_s: float  # in bf16
    error: float  # |bf16 - fp32| / |fp32| of the head's inputs
    kept: int  # examples with the same largest output in both
    rows: int


def choose_precision(
    model: nn.Module, encoded: Encoded, *, asked: Literal["auto", "fp32", "bf16"] = "auto"
) -> tuple[Precision, str]:
    """The precision for reading with this model on this machine, and the sentence that says why.

    bf16 is taken where a forward pass is at least 3 % faster and its numbers are close enough; whether training follows is
    decided where its steps are timed, by `choose_for_training`. fp16 is not offered: it needs scaled losses.

    Args:
        model: on the device it will run on; left as it was.
        encoded: some examples of its data.
        asked: a mode that is taken without measuring.
    """
    if asked != "auto":
        return asked, asked_for(asked)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    if not has_bf16(device):
        return "fp32", f"precision fp32: {device.type} has no bf16 arithmetic"
    return verdict(compare(model, encoded, device))


def has_bf16(device: torch.device) -> bool:
    """Can this kind of device compute in bf16 without imitating it? A processor always can; measuring tells how fast."""
    return supports("bf16", device)


def asked_for(precision: str) -> str:
    """The sentence about a precision that was given; it decides for training, too."""
    return f"precision {precision}: asked for"


def verdict(found: Comparison) -> tuple[Precision, str]:
    """The mode and its sentence."""
    times = f"a forward pass takes {found.half_s * 1e3:.2f} ms in bf16 and {found.plain_s * 1e3:.2f} ms in fp32"
    if found.half_s > GAIN * found.plain_s:
        return "fp32", f"precision fp32: {times}; bf16 is taken where it saves {1 - GAIN:.0%}"
    kept = f"{found.kept} of {found.rows} examples keep their largest output"
    if not found.error <= MOST_ERROR:
        return "fp32", f"precision fp32: bf16 is off by {found.error:.1%}, and {MOST_ERROR:.0%} are allowed; {times}"
    if found.kept < LEAST_AGREEMENT * found.rows:
        return "fp32", f"precision fp32: in bf16 only {kept}, and {LEAST_AGREEMENT:.0%} must; {times}"
    return "bf16", f"precision bf16: {times}; it is off by {found.error:.2%} ({MOST_ERROR:.0%} are allowed), and {kept}"


def choose_for_training(step: Callable[[Precision], float], *, turns: int = 4) -> tuple[Precision, float, str]:
    """bf16 where a step of training is at least 3 % faster in it; its mean seconds, and the sentence that says why.

    Args:
        step: makes a step in a mode and returns its seconds; called in both modes in turn, the first time for what it prepares.
        turns: how often the mode that is taken is timed; the other is too, unless the first turn shows one `PLAINLY` faster.
    """

    def turn() -> tuple[float, float]:
        return step("fp32"), step("bf16")

    turn()
    times = [turn()]
    while len(times) < turns and max(times[0]) < PLAINLY * min(times[0]):
        times.append(turn())
    plain, half = min(a for a, _ in times), min(b for _, b in times)
    taken: Precision = "bf16" if half <= GAIN * plain else "fp32"
    of_taken = [b if taken == "bf16" else a for a, b in times] + [step(taken) for _ in range(turns - len(times))]
    return (
        taken,
        statistics.fmean(of_taken),
        f"{TRAINING} {taken}: a step takes {half * 1e3:.1f} ms in bf16 and {plain * 1e3:.1f} ms in fp32, so bf16 is "
        f"{plain / half:.2f} times as fast here ({published()})",
    )


def compare(model: nn.Module, encoded: Encoded, device: torch.device, *, seconds: float = SECONDS) -> Comparison:
    """Measure both modes in turn for about `seconds`, on examples of the middle length.

    A processor does it in one thread, as it reads whole splits: every core on batches of its own, see `data.sweep`.
    """
    order = np.argsort(encoded.lengths, kind="stable")

    def batch_of(rows: int) -> dict[str, Tensor]:
        first = (len(order) - rows) // 2
        batch = called_on(model, encoded.collate(np.sort(order[first : first + rows])))
        return {key: value.to(device) for key, value in batch.items()}

    def read(batch: dict[str, Tensor], half: bool) -> float:
        begin = time.perf_counter()
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=half):
            forward(model, batch)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - begin

    with _one_thread(), eval_mode(model), torch.inference_mode():
        few = batch_of(min(4, len(order)))
        read(few, False)
        row_s = read(few, False) / min(4, len(order))
        batch = batch_of(int(min(MOST_ROWS, len(order), max(1, AIM_S / row_s))))
        read(batch, False)
        read(batch, True)
        times = list(_turns(lambda: (read(batch, False), read(batch, True)), seconds))
        sample = batch_of(min(MOST_ROWS, len(order)))
        error, kept = _difference(model, sample, device)
    rows = len(next(iter(sample.values())))
    return Comparison(
        plain_s=min(a for a, _ in times), half_s=min(b for _, b in times), error=error, kept=kept, rows=rows
    )


@contextmanager
def _one_thread() -> Generator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _turns(measure: Callable[[], tuple[float, float]], seconds: float) -> Iterator[tuple[float, float]]:
    """What was measured in turns that take about `seconds` in all: at least one turn, two where they are quick enough."""
    begin = time.perf_counter()
    for turn in range(MOST_TURNS):
        spent = time.perf_counter() - begin
        if turn and (spent > MOST_SECONDS or (spent > seconds and turn >= FEWEST_TURNS)):
            return
        yield measure()


def _difference(model: nn.Module, batch: dict[str, Tensor], device: torch.device) -> tuple[float, int]:
    """Relative difference of what enters the head (or of the outputs), and how many examples keep their largest output."""
    read = cast("Callable[..., Tensor] | None", getattr(model, "features", None))
    values: list[Tensor] = []
    outputs: list[Tensor] = []
    for half in (False, True):
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=half):
            outputs.append(forward(model, batch).float())
            values.append(outputs[-1] if read is None else read(**batch).float())
    size = float(values[0].norm())
    error = float((values[1] - values[0]).norm()) / size if size else 0.0
    same = outputs[0].flatten(1).argmax(1) == outputs[1].flatten(1).argmax(1)
    return error, int(same.sum())
