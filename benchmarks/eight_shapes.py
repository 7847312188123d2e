"""A line for each of the eight shapes of training on real data: the baseline trained the same way, and the shape.

    python benchmarks/eight_shapes.py [shape ...]

Data is read from REGRAFT_DATA where a shape needs more than what comes with regraft (MNIST, USPS, Omniglot); a shape
whose data is not there says so. Every number is the mean over seeds on rows that training has not seen, with its range.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from regraft.config.recipe import RecipeSpec, recipe_from_tree
from regraft.models.save import load_model
from regraft.phases import train
from regraft.phases.build import assemble
from regraft.phases.train import train_job

DATA = Path(os.environ.get("REGRAFT_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
SEEDS = (0, 1, 2)
MLP = {"network": {"MLP": {"width": 64, "depth": 1, "dropout": 0.0}}, "image_size": 8}
SMALL = {"network": {"MLP": {"width": 16, "depth": 1, "dropout": 0.0}}, "image_size": 8}
CONV = {"network": {"ConvNet": {"width": 8}}, "image_size": 8}
DIGITS = {"path": "digits"}


def spec(
    seed: int, data: dict[str, Any], model: dict[str, Any], steps: int, *techniques: Any, **changes: Any
) -> RecipeSpec:
    """A recipe of one stage, unless `changes` has stages."""
    tree: dict[str, Any] = {
        "seed": seed,
        "data": data,
        "models": {"main": model} | changes.pop("models", {}),
        "stages": changes.pop("stages", [{"name": "train", "steps": steps}]),
        "techniques": list(techniques),
        "train": {"batch_size": 32, "optimizer": {"AdamW": {"lr": 1e-3}}} | changes.pop("train", {}),
        "validate": {"times": 1},
        "checkpoint": {"every_steps": 100_000},
    }
    return recipe_from_tree(tree | changes)


def run(made: RecipeSpec, scratch: Path) -> tuple[dict[str, Any], Path]:
    """Start and end on the test rows of every entry, and the run directory."""
    out = Path(tempfile.mkdtemp(dir=scratch)) / "run"
    path = train_job(made, out).path
    return train.RunDirectory(path).done("evaluate") or {}, path


def score(made: RecipeSpec, scratch: Path, entry: str = "main", key: str = "score") -> tuple[float, float]:
    """A test number of an entry before and after training."""
    notes, _ = run(made, scratch)
    return notes["start"][entry][key], notes["final"][entry][key]


def supervised(seed: int, scratch: Path) -> list[float]:
    """Test accuracy: untrained, trained."""
    return list(score(spec(seed, {"main": DIGITS}, MLP, 300), scratch))


def distillation(seed: int, scratch: Path) -> list[float]:
    """Test accuracy of a small network on 150 labelled digits and 1,000 more without: from the labels, and from a teacher."""
    few = {"main": {"path": "digits", "limit": 150}}
    _, teacher = run(spec(seed, {"main": DIGITS}, CONV, 400, train={"optimizer": {"AdamW": {"lr": 3e-3}}}), scratch)
    soft = {"Distillation": {"teacher": "teacher", "temperature": 3, "weight": 0.9}}
    taught = spec(seed, few, SMALL, 300, soft, models={"teacher": {"name": str(teacher)}})
    return [score(spec(seed, few, SMALL, 300), scratch)[1], score(taught, scratch)[1]]


def sam(seed: int, scratch: Path) -> list[float]:
    """Test loss of 300 digits: plain, sharpness-aware."""
    few = {"main": {"path": "digits", "limit": 300}}
    return [score(spec(seed, few, MLP, 300, *t), scratch, key="loss")[1] for t in ([], [{"SAM": {"rho": 0.1}}])]


def gan(seed: int, scratch: Path) -> list[float]:
    """Energy distance between generated and test digits: untrained, trained."""
    pair = {"network": {"GenerativePair": {"latent": 16}}, "image_size": 8}
    options = {"batch_size": 64, "optimizer": {"Adam": {"lr": 5e-4, "betas": [0.5, 0.999]}}, "max_norm": None}
    made = spec(seed, {"main": DIGITS}, pair, 3000, "GAN", train=options)
    before = assemble(made)
    real = before.main.encoded("test").collate(np.arange(350))["x"].flatten(1)
    _, path = run(made, scratch)
    trained, _ = load_model(path / "model")
    return [energy_distance(real, model) for model in (before.recipe.model, trained)]


@torch.no_grad()
def energy_distance(real: torch.Tensor, model: Any) -> float:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'| of real and generated examples (Szekely and Rizzo, 2013)."""
    noise = torch.randn(len(real), model.latent, generator=torch.Generator().manual_seed(0))
    made = model.generator(noise).flatten(1)
    count = len(real) * (len(real) - 1)
    within = sum(torch.cdist(x, x).sum() / count for x in (real, made))
    return float(2 * torch.cdist(real, made).mean() - within)


def maml(seed: int, scratch: Path) -> list[float]:
    """5-way 5-shot accuracy on the 40 Korean characters: untrained, trained on the four other alphabets of Omniglot."""
    train_on, novel = omniglot(scratch)
    data = {"main": {"path": str(train_on)}, "novel": {"path": str(novel)}}
    network = {"network": {"ConvNet": {"width": 8, "dropout": 0.0}}, "image_size": 20}
    meta = {"MAML": {"ways": 5, "shots": 5, "queries": 5, "tasks": 2, "inner_lr": 0.4, "first_order": True}}
    return list(score(spec(seed, data, network, 300, meta), scratch, entry="novel"))


def omniglot(scratch: Path) -> tuple[Path, Path]:
    """Image folders of the characters of four alphabets, and of the fifth."""
    source = need("omniglot_small1") / "images_background_small1.zip"
    out = scratch / "omniglot"
    if not out.exists():
        with zipfile.ZipFile(source) as archive:
            for name in archive.namelist():
                _, *parts = Path(name).parts
                if len(parts) == 3 and name.endswith(".png"):
                    side = "novel" if parts[0] == "Korean" else "train"
                    target = out / side / f"{parts[0]}-{parts[1]}" / parts[2]
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(archive.read(name))
    return out / "train", out / "novel"


def grpo(seed: int, scratch: Path) -> list[float]:
    """Test accuracy of digits: untrained, trained on right and wrong alone."""
    return list(score(spec(seed, {"main": DIGITS}, MLP, 600, "GRPO", train={"batch_size": 64}), scratch))


def dann(seed: int, scratch: Path) -> list[float]:
    """Test accuracy on USPS: trained on MNIST alone, and with unlabelled USPS."""
    data = {"main": {"path": str(need("mnist_5k")), "limit": 2000}, "field": {"path": str(need("usps_3k"))}}
    network = {"network": {"ConvNet": {"width": 8}}, "image_size": 16}
    adapted = {"DANN": {"target": "field", "weight": 0.3}}
    return [score(spec(seed, data, network, 300, *t), scratch, entry="field")[1] for t in ([], [adapted])]


def ewc(seed: int, scratch: Path) -> list[float]:
    """Test accuracy on the digits 0 to 4 after 5 to 9 were learned: plain, with EWC."""
    data = {"main": {"path": "digits-5-9"}, "earlier": {"path": "digits-0-4"}}
    stages = [{"name": "earlier", "steps": 150, "data": "earlier"}, {"name": "later", "steps": 150}]
    held = {"EWC": {"weight": 200_000, "samples": 256}}
    made = [spec(seed, data, MLP, 0, *t, stages=stages) for t in ([], [held])]
    return [score(one, scratch, entry="earlier")[1] for one in made]


def need(name: str) -> Path:
    """A folder of REGRAFT_DATA; FileNotFoundError where it is not there."""
    if not (DATA / name).exists():
        raise FileNotFoundError(f"{name} is not below {DATA}; set REGRAFT_DATA")
    return DATA / name


SHAPES = {
    "supervised": (supervised, "accuracy", "untrained", "trained"),
    "distillation": (distillation, "accuracy", "labels alone", "with a teacher"),
    "SAM": (sam, "loss", "plain", "SAM"),
    "GAN": (gan, "energy distance", "untrained", "trained"),
    "MAML": (maml, "accuracy", "untrained", "trained"),
    "GRPO": (grpo, "accuracy", "untrained", "trained"),
    "DANN": (dann, "accuracy", "source alone", "DANN"),
    "EWC": (ewc, "accuracy", "plain", "EWC"),
}


def main(wanted: list[str]) -> None:
    """Print the table."""
    torch.set_num_threads(2)
    train.write_report = lambda path: path  # no page is needed here
    scratch = Path(tempfile.mkdtemp(prefix="regraft-shapes-"))
    print("| shape | measured | baseline | with it | seconds |\n|---|---|---|---|---|")
    try:
        for name, (measure, metric, baseline, ours) in SHAPES.items():
            if wanted and name not in wanted:
                continue
            began = time.perf_counter()
            try:
                found = np.array([measure(seed, scratch) for seed in SEEDS])
            except FileNotFoundError as missing:
                print(f"| {name} | left out: {missing} | | | |")
                continue
            shown = [f"{column.mean():.3f} ({column.min():.3f} to {column.max():.3f})" for column in found.T]
            what = (measure.__doc__ or "").split(":")[0].rstrip(".")
            seconds = f"{time.perf_counter() - began:.0f}"
            print(
                f"| {name} | {metric}: {what} | {baseline}: {shown[0]} | {ours}: {shown[1]} | {seconds} |", flush=True
            )
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1:])
