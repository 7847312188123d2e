"""Full fine-tuning in a loop written by hand: bf16 autocast, length buckets, fused AdamW, one-cycle rate.

python benchmarks/arms/hand_loop.py SET [--epochs 5] [--rate 3e-4] [--precision bf16]
"""

from __future__ import annotations

import argparse

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
    import torch
    from tasks import accuracy, autocast, task
    from torch import nn

    data = task(options.set, options.rows)
    model = data.network()
    imported = seconds()
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.rate, weight_decay=0.01, fused=True)
    steps = options.epochs * len(list(data.epoch(options.batch, 0)))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.rate, total_steps=steps, pct_start=0.1)

    def evaluate() -> float:
        model.eval()
        found = accuracy(data, lambda inputs: model(**inputs), precision=options.precision)
        model.train()
        return found

    epochs = Epochs(evaluate)
    model.train()
    for epoch in range(options.epochs):
        for rows in data.epoch(options.batch, epoch):
            optimizer.zero_grad(set_to_none=True)
            with autocast(options.precision):
                logits = model(**data.inputs("train", rows, train=True))
            nn.functional.cross_entropy(logits.float(), data.labels["train"][torch.from_numpy(rows)]).backward()
            optimizer.step()
            schedule.step()
        epochs.end()
    report(**epochs.result(imported=round(imported, 3)))


if __name__ == "__main__":
    main()
