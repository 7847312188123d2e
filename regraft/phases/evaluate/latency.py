"""How long one prediction takes on this machine: p50 and p95 of repeated calls, and the slowest examples."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

Input = TypeVar("Input")


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Wall times of single calls, in the order of the inputs and then around again."""

    milliseconds: np.ndarray  # (runs,) float64
    inputs: int  # number of different inputs; call i was on input i % inputs
    batch: int  # examples in one call
    warmup: int  # calls before the first that was timed
    threads: int = 1  # the calls compute with

    def to_json(self) -> dict[str, Any]:
        """`{p50_ms, p95_ms, mean_ms, batch, runs, warmup, threads}`: times of one call in milliseconds."""
        p50, p95 = np.percentile(self.milliseconds, [50, 95])
        return {
            "p50_ms": float(p50),
            "p95_ms": float(p95),
            "mean_ms": float(self.milliseconds.mean()),
            "batch": self.batch,
            "runs": len(self.milliseconds),
            "warmup": self.warmup,
            "threads": self.threads,
        }

    def slowest(self, rows: Sequence[int | str], top: int = 10) -> list[dict[str, Any]]:
        """`{row, milliseconds}` of the slowest inputs, slowest first; the fastest call of each input counts.

        The fastest, because what else the machine does only ever adds time. `rows` names the inputs.
        """
        best = [
            float(self.milliseconds[i :: self.inputs].min()) for i in range(min(self.inputs, len(self.milliseconds)))
        ]
        order = np.argsort(-np.asarray(best), kind="stable")[:top]
        return [{"row": rows[i], "milliseconds": best[i]} for i in order]


def latency(
    predict: Callable[[Input], object],
    inputs: Sequence[Input],
    *,
    warmup: int = 5,
    runs: int = 100,
    batch: int = 1,
    threads: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> Latency:
    """Times of `runs` calls of `predict` on the inputs in turn, after `warmup` calls that are not timed.

    `predict` must have finished its work when it returns: on an accelerator it synchronises. `batch` and `threads` are
    only recorded; who calls this sees to it that no more threads compute.
    """
    if not inputs or runs < 1:
        raise ValueError(f"latency: needs at least one input and one run, got {len(inputs)} and {runs}")
    for i in range(warmup):
        predict(inputs[i % len(inputs)])
    seconds = np.empty(runs)
    for i in range(runs):
        one = inputs[i % len(inputs)]
        start = clock()
        predict(one)
        seconds[i] = clock() - start
    return Latency(milliseconds=1e3 * seconds, inputs=len(inputs), batch=batch, warmup=warmup, threads=threads)
