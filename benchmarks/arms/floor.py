"""The least that features can cost: counted FLOPs of a forward pass over every row, over the matrix-multiply rate measured here.

python benchmarks/arms/floor.py SET
"""

from __future__ import annotations

import argparse
import statistics
import time

from common import IMAGE_SETS, MOBILENET, minilm, report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("set")
    parser.add_argument("--rows", type=int)
    options = parser.parse_args()
    import torch

    flops, rows = counted(options.set, options.rows)
    rates = {name: rate(dtype) for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32))}
    report(
        rows=rows,
        flops=flops,
        mm_flops_per_second=rates,
        seconds={name: round(flops / value, 2) for name, value in rates.items()},
    )


def counted(name: str, limit: int | None) -> tuple[float, int]:
    """FLOPs of a forward pass over train and test, unpadded, and the number of rows; nothing is computed."""
    import torch
    from tasks import task
    from transformers import AutoConfig, AutoModel

    from regraft.core.flops import counted

    data = task(name, limit)
    folder = MOBILENET if name in IMAGE_SETS else minilm()
    with torch.device("meta"):
        model = AutoModel.from_config(AutoConfig.from_pretrained(folder), attn_implementation="eager").eval()
    total, rows = 0.0, 0
    with torch.no_grad():
        for split in ("train", "test"):
            shapes: dict[int, int] = {}
            for batch in data.in_order(split) if name in IMAGE_SETS else []:
                shapes[96] = shapes.get(96, 0) + len(batch)
            for length in data.lengths(split) if name not in IMAGE_SETS else []:
                shapes[int(length)] = shapes.get(int(length), 0) + 1
            for side, count in shapes.items():
                inputs = (
                    {"pixel_values": torch.zeros(1, 3, side, side, device="meta")}
                    if name in IMAGE_SETS
                    else {"input_ids": torch.zeros(1, side, dtype=torch.long, device="meta")}
                )
                with counted() as counter:
                    model(**inputs)
                total += counter.get_total_flops() * count
                rows += count
    return total, rows


def rate(dtype: object, *, size: int = 2048, repeats: int = 15) -> float:
    """FLOPs a second of multiplying two square matrices, the median of repeats after three to warm up."""
    import torch

    one, two = (torch.randn(size, size).to(dtype) for _ in range(2))  # type: ignore[call-overload]
    found = []
    for _ in range(repeats + 3):
        begin = time.perf_counter()
        torch.mm(one, two)
        found.append(2 * size**3 / (time.perf_counter() - begin))
    return statistics.median(found[3:])


if __name__ == "__main__":
    main()
