"""Full fine-tuning with fastai: its one-cycle schedule, fused AdamW, batches of like length, the network under bf16 autocast.

fastai's own `to_bf16` asks for CUDA, so autocast is put around the network here.

python benchmarks/arms/fastai_loop.py SET [--epochs 5]
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any

from common import Epochs, report, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("set")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=3e-4)
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    import torch
    from fastai.basics import Callback, DataLoaders, Learner, OptimWrapper
    from fastai.callback import schedule  # noqa: F401  # gives Learner its fit_one_cycle
    from tasks import accuracy, autocast, task
    from torch import nn

    data = task(options.set, options.rows)
    network = data.network()
    imported = seconds()

    class Cast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, inputs: dict[str, Any]) -> torch.Tensor:
            with autocast(options.precision):
                return self.network(**inputs).float()

    def evaluate() -> float:
        network.eval()
        found = accuracy(data, lambda inputs: network(**inputs), precision=options.precision)
        network.train()
        return found

    epochs = Epochs(evaluate)

    class AtEpochEnd(Callback):
        def after_epoch(self) -> None:
            epochs.end()

    loaders = DataLoaders(Loader(data, options.batch), [])
    learner = Learner(
        loaders, Cast(), loss_func=nn.functional.cross_entropy, cbs=[AtEpochEnd()], wd=0.01,
        opt_func=partial(OptimWrapper, opt=partial(torch.optim.AdamW, fused=True)),
    )  # fmt: skip
    with learner.no_logging(), learner.no_bar():
        learner.fit_one_cycle(options.epochs, options.rate, pct_start=0.1)
    report(**epochs.result(imported=round(imported, 3)))


class Loader:
    """What a Learner asks of a training loader: batches, their number, and how many rows there are."""

    def __init__(self, data: Any, batch: int) -> None:
        self.data, self.bs, self.number = data, batch, 0
        self.dataset, self.device = data.labels["train"], None
        self.count = len(list(data.epoch(batch, 0)))

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Any]:
        import torch

        self.number += 1
        for rows in self.data.epoch(self.bs, self.number - 1):
            yield self.data.inputs("train", rows, train=True), self.data.labels["train"][torch.from_numpy(rows)]


if __name__ == "__main__":
    main()
