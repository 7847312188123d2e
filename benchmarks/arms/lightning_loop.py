"""Full fine-tuning with Lightning: bf16-mixed, batches of like length, fused AdamW, one-cycle rate.

python benchmarks/arms/lightning_loop.py SET [--epochs 5]
"""

from __future__ import annotations

import argparse
import logging
import warnings
from collections.abc import Iterator
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
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    import lightning.pytorch as pl
    from tasks import accuracy, task

    data = task(options.set, options.rows)
    module = make_module(data, options)
    imported = seconds()

    def evaluate() -> float:
        module.eval()
        found = accuracy(data, lambda inputs: module.network(**inputs), precision=options.precision)
        module.train()
        return found

    epochs = Epochs(evaluate)

    class AtEpochEnd(pl.Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            epochs.end()

    make_trainer(options, [AtEpochEnd()]).fit(module, Batches(data, options.batch))
    report(**epochs.result(imported=round(imported, 3)))


class Batches:
    """Batches of one epoch after the other; Lightning takes any iterable."""

    def __init__(self, data: Any, batch: int) -> None:
        self.data, self.batch, self.number = data, batch, 0
        self.count = len(list(data.epoch(batch, 0)))

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Any]:
        import torch

        self.number += 1
        for rows in self.data.epoch(self.batch, self.number - 1):
            yield self.data.inputs("train", rows, train=True), self.data.labels["train"][torch.from_numpy(rows)]


def make_module(data: Any, options: argparse.Namespace, network: Any = None) -> Any:
    """The network with its loss and its optimizer."""
    import lightning.pytorch as pl
    import torch
    from torch import nn

    steps = options.epochs * len(list(data.epoch(options.batch, 0)))

    class Classifier(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = data.network() if network is None else network

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            inputs, labels = batch
            return nn.functional.cross_entropy(self.network(**inputs).float(), labels)

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.AdamW(self.parameters(), lr=options.rate, weight_decay=0.01, fused=True)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.rate, total_steps=steps, pct_start=0.1)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    return Classifier()


def make_trainer(options: argparse.Namespace, callbacks: list[Any], **more: Any) -> Any:
    """A Trainer that writes nothing."""
    import lightning.pytorch as pl

    return pl.Trainer(
        max_epochs=options.epochs,
        accelerator="cpu",
        precision="bf16-mixed" if options.precision == "bf16" else "32-true",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks,
        **more,
    )


if __name__ == "__main__":
    main()
