"""What a step costs with each technique, in steps without it: `regraft techniques NAME` and the reference pages say it.

    python benchmarks/technique_cost.py [--rounds 3] [--steps 12] [--only NAME ...]

Each technique has the options of its docstring's example. It is measured on the first of these that it can be used on: short
texts with MiniLM-L6 (all weights train), images of 8 x 8 pixels with a small residual network, a table with a perceptron. A round
trains the plain recipe and the other one for `steps` steps each; the figure is the median ratio of their seconds, whatever the
technique does at the beginning included. Result: regraft/config/technique_costs.json, which the package ships.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from harness import ROOT, machine, say

from regraft.config.catalogue import CATALOGUE, find
from regraft.config.recipe import recipe_from_tree
from regraft.core import Recipe, fit
from regraft.errors import RegraftError
from regraft.phases.build import assemble
from regraft.testing import docstring_example

OUT = ROOT / "regraft" / "config" / "technique_costs.json"
GROUNDS: dict[str, dict[str, Any]] = {
    "short texts with MiniLM-L6, batches of 8": {
        "data": {"main": {"path": "stdlib-docstrings", "limit": 100, "limit_valid": 20, "limit_test": 20}},
        "models": {"main": {"name": "minilm", "head": "last", "max_length": 32}},
        "train": {"batch_size": 8},
    },
    "images of 8 x 8 pixels with a residual network, batches of 64": {
        "data": {"main": {"path": "digits"}},
        "models": {"main": {"network": {"ConvNet": {"width": 32}}, "image_size": 8}},
        "train": {"batch_size": 64},
    },
    "a table with a perceptron, batches of 32": {
        "data": {"main": {"path": "wine"}},
        "models": {"main": {"network": {"MLP": {"width": 256, "depth": 3}}}},
        "train": {"batch_size": 32},
    },
}
OTHERS = {  # what an example names besides: teachers, targets, several numbers
    "DANN": {"data": {"target": {"path": "digits-5-9"}}},
    "Distillation": {"models": {"teacher": {"network": {"ConvNet": {"width": 32}}}}},
}

_, IMAGES, TABLE = GROUNDS
ONLY_ON = {
    "EWC": TABLE,
    "FisherNorms": IMAGES,
}  # what they do before or after all steps, example by example, takes minutes on texts


def merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Nested mappings put together; what the second says counts."""
    out = dict(one)
    for key, value in other.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = merged(out[key], value) if both else value
    return out


def made(ground: dict[str, Any], name: str | None, steps: int) -> Recipe:
    """The recipe on a ground with the technique, or without one."""
    tree = merged(ground, {"stages": [{"name": "train", "steps": steps}], "seed": 0})
    if name is not None:
        node = next(n for n in docstring_example(find("technique", name))["techniques"] if n == name or name in n)
        tree = merged(merged(tree, OTHERS.get(name, {})), {"techniques": [node]})
    return assemble(recipe_from_tree(tree)).recipe


def seconds(recipe: Recipe) -> float:
    """Of training it."""
    begin = time.perf_counter()
    fit(recipe, seed=0)
    return time.perf_counter() - begin


def measured(name: str, rounds: int, steps: int) -> dict[str, Any]:
    """The ratios on the first ground it can be used on; else why it cannot be used on the last."""
    reason = ""
    for title, ground in GROUNDS.items():
        if title != ONLY_ON.get(name, title):
            continue
        try:
            seconds(made(ground, name, 2))
        except RegraftError as error:
            reason = str(error)
            continue
        ratios = []
        for _ in range(rounds):
            plain = seconds(made(ground, None, steps))
            ratios.append(seconds(made(ground, name, steps)) / plain)
        return {
            "ratio": round(statistics.median(ratios), 2), "low": round(min(ratios), 2), "high": round(max(ratios), 2),
            "on": title,
        }  # fmt: skip
    return {"not_measured": reason}


def main() -> None:
    """Measure, and write the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument(
        "--only", nargs="+", choices=sorted(CATALOGUE["technique"]), default=sorted(CATALOGUE["technique"])
    )
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    known = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else {"costs": {}}
    for name in options.only:
        known["costs"][name] = measured(name, options.rounds, options.steps)
        say(f"{name}: {known['costs'][name]}")
        content = {"machine": machine(), "rounds": options.rounds, "steps": options.steps, "costs": known["costs"]}
        options.out.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
