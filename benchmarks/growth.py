"""How the cost of `regraft adapt --strategy probe` grows with rows, classes and layers; log-log plots with fitted exponents.

    python benchmarks/growth.py [--only table-rows text-rows classes layers] [--max-rows 3000000] [--max-classes 10000]

Data and encoders are made up: tables of ten numbers, texts of ten words, BERTs of width 64 with random weights. Each size is a
fresh process with an empty cache and a budget that cuts nothing. An exponent is the slope of log(seconds) over log(size), where
the seconds are net of the least of all sizes (what start-up and small data cost), over the sizes that cost more than twice that.
It is stated for the whole command, for each phase that takes a second at the largest size, and for peak memory. About twenty
minutes; `--quick` takes one.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from harness import RESULTS, ArmFailed, Store, run_arm, say

WORDS, LENGTH = 2000, 10  # words there are; words of a text
WIDTH, VOCABULARY = 64, 4000
FEWEST_SECONDS = 1.0  # a phase that takes less at the largest size has no exponent worth stating
LINEAR = 1.05


# ---- what is made up


def write_table(file: Path, rows: int, classes: int) -> None:
    """Ten numbers a row; the label depends on three of them."""
    draw = np.random.default_rng(0)
    values = draw.standard_normal((rows, 10)).round(3)
    score = values[:, 0] + 0.5 * values[:, 1] * values[:, 2] + 0.5 * draw.standard_normal(rows)
    labels = np.clip(np.digitize(score, np.linspace(-2, 2, classes - 1)), 0, classes - 1)
    with file.open("w", encoding="utf-8") as stream:
        stream.write(",".join([*(f"x{i}" for i in range(10)), "label"]) + "\n")
        for row, label in zip(values.tolist(), labels.tolist(), strict=True):
            stream.write(",".join(map(str, row)) + f",class{label}\n")


def write_texts(file: Path, rows: int, classes: int) -> None:
    """Ten words a row, three of which are likely in its class; every class has about as many rows."""
    draw = np.random.default_rng(0)
    labels = draw.permutation(np.arange(rows) % classes)
    words = draw.integers(WORDS, size=(rows, LENGTH))
    for place in range(3):
        telling = draw.random(rows) < 0.8
        words[telling, place] = (labels[telling] * (31 + place) + 7 * place) % WORDS
    order = draw.permuted(words, axis=1)
    with file.open("w", encoding="utf-8") as stream:
        stream.write("text,label\n")
        for row, label in zip(order.tolist(), labels.tolist(), strict=True):
            stream.write(" ".join(word(number) for number in row) + f",class{label}\n")


def word(number: int) -> str:
    """A pronounceable word for a number below 8,000."""
    consonants, vowels = "bdfgklmnprstvz", "aeiou"
    out = ""
    for _ in range(3):
        number, c = divmod(number, len(consonants))
        number, v = divmod(number, len(vowels))
        out += consonants[c] + vowels[v]
    return out


def write_encoder(folder: Path, layers: int) -> None:
    """A BERT of width 64 with random weights, and a tokenizer that knows the words."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=layers, num_attention_heads=2,
        intermediate_size=2 * WIDTH, max_position_embeddings=64,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    (folder / "vocab.txt").write_text("\n".join([*special, *(word(n) for n in range(WORDS))]) + "\n", encoding="utf-8")
    kind = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 64}
    (folder / "tokenizer_config.json").write_text(json.dumps(kind), encoding="utf-8")


# ---- what is measured


def adapt(data: Path, scratch: Path, *, model: Path | None, timeout: float) -> dict[str, Any]:
    """Seconds of the command and of each phase, and peak memory in bytes."""
    out = Path(tempfile.mkdtemp(dir=scratch)) / "run"
    command = [
        "-m",
        "regraft",
        "adapt",
        str(data),
        "--strategy",
        "probe",
        "--budget",
        "8h",
        "--out",
        str(out),
        "--quiet",
    ]
    command += ["--label", "label", "--ignore-errors", *([] if model is None else ["--model", str(model)])]
    found = run_arm(command, environment={"REGRAFT_CACHE": str(out.parent / "cache")}, timeout=timeout)
    ledger = json.loads((out / "ledger.json").read_text())
    shutil.rmtree(out.parent)
    phases = {line["phase"]: line["seconds"] for line in ledger}
    return {
        "seconds": found["wall"],
        "cpu": found["cpu"],
        "peak_bytes": found["peak_bytes"],
        "phases": phases | {"start": round(max(0.0, found["wall"] - sum(phases.values())), 3)},
        "peak_of_phase": {line["phase"]: line["peak_bytes"] for line in ledger},
    }


Series = tuple[
    str, list[int], Callable[[int, Path], tuple[Path, Path | None]]
]  # unit, sizes, (size, folder) -> data, model


def series(options: argparse.Namespace) -> dict[str, Series]:
    """What grows, and how data and model of a size are made."""
    fixed_classes, fixed_layers = (200, 400) if options.quick else (60_000, 2_000)

    def table_rows(rows: int, folder: Path) -> tuple[Path, Path | None]:
        write_table(folder / "data.csv", rows, 4)
        return folder / "data.csv", None

    def texts(rows: int, classes: int, layers: int, folder: Path) -> tuple[Path, Path | None]:
        write_texts(folder / "data.csv", rows, classes)
        write_encoder(folder / "encoder", layers)
        return folder / "data.csv", folder / "encoder"

    decades = [10**power for power in range(3, 7)]
    return {
        "table-rows": ("rows", [n for n in (*decades, 3_000_000) if n <= options.max_rows], table_rows),
        "text-rows": ("rows", [n for n in decades if n <= options.max_text_rows], lambda n, at: texts(n, 4, 2, at)),
        "classes": (
            "classes",
            [n for n in (2, 10, 100, 1000, 10_000) if n <= options.max_classes],
            lambda n, at: texts(fixed_classes, n, 2, at),
        ),
        "layers": (
            "layers",
            [n for n in (6, 12, 24, 48) if n <= options.max_layers],
            lambda n, at: texts(fixed_layers, 4, n, at),
        ),
    }


def slope(sizes: list[int], values: list[float]) -> float | None:
    """Of log(value - least value) over log(size), by least squares over the sizes that cost more than twice the least.

    Below that what is always paid, and its noise, decides. None without two such sizes.
    """
    least = min(values, default=0.0)
    points = [(math.log(n), math.log(v - least)) for n, v in zip(sizes, values, strict=True) if v > 2 * least]
    if len(points) < 2:
        return None
    x, y = np.array(points).T
    return round(float(np.polyfit(x, y, 1)[0]), 3)


def conclude(name: str, unit: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Sizes, seconds, memory, and the exponents of one series."""
    runs = sorted((run for run in runs if "seconds" in run), key=lambda run: run["size"])
    sizes, seconds = [run["size"] for run in runs], [run["seconds"] for run in runs]
    peaks = [float(run["peak_bytes"]) for run in runs]
    phases = [phase for phase, s in (runs[-1]["phases"] if runs else {}).items() if s >= FEWEST_SECONDS]
    exponents = {phase: slope(sizes, [run["phases"].get(phase, 0.0) for run in runs]) for phase in phases}
    return {
        "unit": unit,
        "sizes": sizes,
        "seconds": seconds,
        "peak_gib": [round(peak / 2**30, 3) for peak in peaks],
        "exponent_seconds": slope(sizes, seconds),
        "exponent_memory": slope(sizes, peaks),
        "bytes_per_unit": round((peaks[-1] - peaks[0]) / (sizes[-1] - sizes[0])) if len(sizes) > 1 else None,
        "exponent_of_phase": exponents,
        "worse_than_linear": [p for p, e in ({"all": slope(sizes, seconds)} | exponents).items() if e and e > LINEAR],
    }


def plot(found: dict[str, Any], file: Path) -> None:
    """Seconds and peak memory over size, log-log, a column for each series; dashed is linear."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import NullFormatter

    figure, axes = plt.subplots(2, len(found), figsize=(3.2 * len(found), 5.2), squeeze=False)
    for column, (name, one) in enumerate(found.items()):
        for row, (key, label, exponent) in enumerate(
            (("seconds", "seconds", "exponent_seconds"), ("peak_gib", "peak GiB", "exponent_memory"))
        ):
            axis, values = axes[row][column], one[key]
            axis.loglog(one["sizes"], values, "o-", color="#1b6ca8")
            if values:
                linear = [values[-1] * n / one["sizes"][-1] for n in one["sizes"]]
                axis.loglog(one["sizes"], linear, "--", color="#999999", linewidth=1)
                axis.set_ylim(min(values) / 2, max(values) * 2)
            slope_said = "" if one[exponent] is None else f", net slope {one[exponent]:.2f}"
            axis.set_title(f"{name}{slope_said}", fontsize=9)
            axis.set_xlabel(one["unit"])
            if max(one["sizes"], default=0) < 1000:  # less than two powers of ten: its sizes say more
                axis.set_xticks(one["sizes"], [str(size) for size in one["sizes"]])
            axis.xaxis.set_minor_formatter(NullFormatter())
            axis.set_ylabel(label)
    figure.tight_layout()
    figure.savefig(file, dpi=90)
    plt.close(figure)


def main() -> None:
    """Measure every size, and write the result file and the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=("table-rows", "text-rows", "classes", "layers"))
    parser.add_argument("--max-rows", type=int, default=3_000_000, help="of tables")
    parser.add_argument("--max-text-rows", type=int, default=1_000_000)
    parser.add_argument("--max-classes", type=int, default=10_000)
    parser.add_argument("--max-layers", type=int, default=48)
    parser.add_argument("--timeout", type=float, default=600, help="seconds after which a size is given up")
    parser.add_argument("--fresh", action="store_true", help="forget the runs there are")
    parser.add_argument("--quick", action="store_true", help="small sizes only: does it run?")
    parser.add_argument("--out", type=Path, default=RESULTS / "growth.json")
    options = parser.parse_args()
    if options.quick:
        options.max_rows = options.max_text_rows = 10_000
        options.max_classes, options.max_layers = 10, 12
        if options.out == RESULTS / "growth.json":
            options.out = Path(tempfile.gettempdir()) / "growth_quick.json"
    store = Store(options.out, settings={"strategy": "probe", "encoder": f"BERT, width {WIDTH}", "words": LENGTH})
    chosen = {name: one for name, one in series(options).items() if options.only is None or name in options.only}
    if options.fresh:
        store.forget(list(chosen))
    for name, (_, sizes, make) in chosen.items():
        for size in sizes:
            if any(run["size"] == size and "seconds" in run for run in store.runs.get(name, [])):
                continue
            with tempfile.TemporaryDirectory(prefix="bench-growth-") as folder:
                data, model = make(size, Path(folder))
                try:
                    one = adapt(data, Path(folder), model=model, timeout=options.timeout)
                except ArmFailed as error:
                    say(f"{name} {size:,}: {error}")
                    store.add(name, {"size": size, "failed": str(error)[-300:]})
                    break
            store.add(name, {"size": size} | one)
            say(f"{name} {size:,}: {one['seconds']:.1f} s, {one['peak_bytes'] / 2**30:.2f} GiB, {one['phases']}")
        found = {
            each: conclude(each, series(options)[each][0], store.runs[each])
            for each in series(options)
            if each in store.runs
        }
        store.write(found=found)
        plot(found, options.out.with_suffix(".png"))
    for name, one in store.content.get("found", {}).items():
        say(f"{name}: seconds ~ size^{one['exponent_seconds']}, memory ~ size^{one['exponent_memory']}")
        say(f"{name}: by phase {one['exponent_of_phase']}")
        if one["worse_than_linear"]:
            say(f"{name}: worse than linear: {', '.join(one['worse_than_linear'])}")


if __name__ == "__main__":
    main()
