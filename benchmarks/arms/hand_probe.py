"""The probe written by hand: features of the last layer in bf16, computed once in order of length, and an L-BFGS head.

python benchmarks/arms/hand_probe.py SET
"""

from __future__ import annotations

import argparse

from common import report, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("set")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--penalty", type=float, default=3e-3)
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    options = parser.parse_args()
    import torch
    from tasks import autocast, task
    from torch import nn

    data = task(options.set, options.rows)
    model = data.network().eval()
    imported = seconds()
    head, model.head = model.head, nn.Identity()
    features = {}
    with torch.inference_mode(), autocast(options.precision):
        for split in ("train", "test"):
            order = list(data.in_order(split))
            found = torch.cat([model(**data.inputs(split, rows)).float() for rows in order])
            back = torch.cat([torch.from_numpy(rows) for rows in order]).argsort()
            features[split] = found[back]
    read = seconds()
    x, y = features["train"].clone(), data.labels["train"]
    mean, deviation = x.mean(0), x.std(0)
    x = (x - mean) / deviation
    optimizer = torch.optim.LBFGS(
        head.parameters(), max_iter=100, history_size=10, tolerance_grad=1e-5, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(head(x), y) + 0.5 * options.penalty * head.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.inference_mode():
        guessed = head((features["test"] - mean) / deviation).argmax(1)
    right = float((guessed == data.labels["test"]).float().mean())
    report(seconds=round(seconds(), 3), accuracy=right, imported=round(imported, 3), features=round(read - imported, 3))


if __name__ == "__main__":
    main()
