"""One pass of a model over all examples without gradients: every core works on batches of its own.

On a processor one small batch keeps a single core busy far better than all cores together, so each of them has its own
thread, its own copy of the modules (the weights are shared), and takes the next batch when it is done with the last.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Generator, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from regraft.core.allocator import give_back
from regraft.core.modes import eval_mode
from regraft.core.precision import HALVES, Precision
from regraft.core.protocols import Encoded
from regraft.data.loading import in_length_order
from regraft.errors import RunError

# of a batch, measured on CPUs: larger ones leave the cache and are up to twice as slow
MOST_EXAMPLES, MOST_TOKENS = 64, 1024
Key = TypeVar("Key", bound=Hashable)
M = TypeVar("M", bound=nn.Module)


@contextmanager
def evaluating(model: nn.Module, precision: Precision) -> Generator[None]:
    """Eval mode, no gradients, and one autocast for the whole block, so that weights are cast once and not for every batch."""
    half = torch.autocast("cpu", dtype=HALVES.get(precision, torch.bfloat16), enabled=precision in HALVES)
    with eval_mode(model), torch.inference_mode(), half:
        yield


def sweep(
    model: nn.Module,
    encoded: Encoded,
    compute: Callable[[nn.Module, dict[str, Tensor]], Mapping[Key, Tensor]],
    *,
    precision: Precision,
    progress: Callable[[int], None] = lambda rows: None,
) -> dict[Key, Tensor]:
    """What `compute` gives for every example: (N, ...) by key, rows in the order of the encoded examples.

    Args:
        model: run in eval mode, and left as it was.
        encoded: the N examples; at least one.
        compute: from the model (or a copy that shares its weights) and the inputs of M examples, tensors (M, ...) by key.
        precision: bf16 runs it under autocast.
        progress: called with the number of rows done since the last call, from any thread, one call at a time.
    """
    if not len(encoded):
        raise ValueError("a pass over examples needs at least one of them")
    out = dict[Key, Tensor]()

    def keep(rows: np.ndarray, inputs: dict[str, Tensor], found: Mapping[Key, Tensor]) -> None:
        index = torch.from_numpy(rows)
        for key, value in found.items():
            if key not in out:
                out[key] = _plain_empty(len(encoded), *value.shape[1:], dtype=value.dtype)
            out[key].index_copy_(0, index, value)
        progress(len(rows))

    each_batch(model, encoded, compute, keep, precision=precision)
    return out


def each_batch(
    model: nn.Module,
    encoded: Encoded,
    compute: Callable[[nn.Module, dict[str, Tensor]], Mapping[Key, Tensor]],
    keep: Callable[[np.ndarray, dict[str, Tensor], Mapping[Key, Tensor]], None],
    *,
    precision: Precision,
    rows: np.ndarray | None = None,
) -> None:
    """Hand what `compute` gives for each batch of examples to `keep`, with their rows (M,) and the batch, one call at a time.

    `rows` limits the pass to some of the examples; for the rest see `sweep`.
    """
    rows = np.arange(len(encoded)) if rows is None else rows
    plan = in_length_order(encoded.lengths[rows], max_tokens=MOST_TOKENS, max_examples=MOST_EXAMPLES)
    batches = [rows[part] for part in plan]
    waiting, lock = iter(batches), threading.Lock()

    def stop() -> None:
        while _next(waiting, lock) is not None:
            pass

    def work(own: nn.Module) -> None:
        try:
            with evaluating(own, precision):
                while (part := _next(waiting, lock)) is not None:
                    batch = encoded.collate(part)
                    found = compute(own, batch)
                    with lock:
                        keep(part, batch, found)
        except BaseException:
            stop()  # nobody needs the rest
            raise

    workers = min(torch.get_num_threads(), len(batches))
    if workers <= 1:
        work(model)
    else:
        _on_own_cores(work, [sharing_weights(model) for _ in range(workers)], stop)


def _next(waiting: Iterator[np.ndarray], lock: threading.Lock) -> np.ndarray | None:
    with lock:
        return next(waiting, None)


def _on_own_cores(work: Callable[[nn.Module], None], models: Sequence[nn.Module], stop: Callable[[], None]) -> None:
    """Call `work` on each model at once, in threads whose operations run on one core each; `stop` ends it before its time.

    Raises:
        RunError: a thread was ended by something that is no error of the work; errors are raised as they are, the first of them.
    """
    failed: list[BaseException] = []
    done: list[nn.Module] = []

    def run(model: nn.Module) -> None:
        try:
            torch.set_num_threads(1)
            work(model)
            done.append(model)
        except BaseException as error:  # whatever it is, it belongs to whoever waits for the thread
            failed.append(error)

    before = torch.get_num_threads()
    give_back()  # memory that steps have freed is of no use to other threads, which ask for memory of their own
    threads = [threading.Thread(target=run, args=(model,), name="regraft-sweep", daemon=True) for model in models]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    except BaseException:  # whoever waits is interrupted: the batches being worked on are the last
        stop()
        for thread in threads:
            if thread.ident is not None:
                thread.join()
        raise
    finally:
        torch.set_num_threads(before)  # threads that torch starts later take the last number that was set
        give_back()
    if failed and isinstance(failed[0], Exception):
        raise failed[0]
    if failed or len(done) < len(models):
        how = f"by {type(failed[0]).__name__}({failed[0]})" if failed else "without a word"
        raise RunError(
            f"a pass over the examples was given up, because one of its threads was ended {how}; start it again"
        )


def sharing_weights(model: M) -> M:
    """A copy of the modules that holds the same parameters and buffers, so that hooks on it are its own."""
    shared = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in shared})


def _plain_empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """An ordinary tensor, also when it is made in inference mode: it will be used outside."""
    with torch.inference_mode(False):
        return torch.empty(*shape, dtype=dtype)
