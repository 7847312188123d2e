"""Peak memory of a full fine-tune: `regraft train` beside the Trainer of transformers, each in fresh processes.

    .venv-bench/bin/python benchmarks/peak_memory.py [--rounds 5] [--steps 120] [--quick]

The same weights (all-MiniLM-L6-v2 with its own head for sequence classification), the same data (sst2), batches of 32, AdamW,
the same number of steps, and the test rows scored at the end; in fp32 as the Trainer does by default, and in bf16 with batches
of like length. The figure is the largest resident set of the process, imports included, watched while it runs: regraft has the
system forget its peak before every phase, so what is reported at the end is that of the last one. Ours has scored the test rows
before training as well. A process grows until it has met most lengths of text: 120 steps are half an epoch. Neither saves before
the last step; ours writes a checkpoint while training goes on, from a copy of weights and optimizer state, so one in the midst of
it costs their size. The arms take turns. Result: benchmarks/results/peak_memory.json.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from harness import ARMS, DATA, RESULTS, Store, ratio, rounds, run_arm, say, summary

SET, BATCH, RATE = "sst2", 32, 1e-4
PRECISIONS = ("fp32", "bf16")
RECIPE = """
seed: 0
data:
  main: {{path: {path}}}
models:
  main: {{name: minilm, head: standard}}
train:
  batch_size: {batch}
  precision: {precision}
  optimizer: {{AdamW: {{lr: {rate}}}}}
checkpoint: {{every_steps: {steps}}}
stages:
  - {{name: adapt, steps: {steps}}}
validate: {{times: 1}}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--quick", action="store_true", help="one round of 10 steps, and no result file")
    parser.add_argument("--trainer", choices=PRECISIONS, help=argparse.SUPPRESS)  # what a process of the Trainer runs
    options = parser.parse_args()
    if options.trainer:
        by_trainer(options.trainer, options.steps)
        return
    times, steps = (1, 10) if options.quick else (options.rounds, options.steps)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result.json" if options.quick else RESULTS / "peak_memory.json"
        store = Store(path, settings={"set": SET, "batch": BATCH, "steps": steps, "model": "all-MiniLM-L6-v2"})
        keys = [f"{arm}, {precision}" for precision in PRECISIONS for arm in ("regraft", "transformers Trainer")]
        store.forget(keys)
        for number, key in enumerate(rounds(dict.fromkeys(keys, times), store)):
            arm, precision = key.split(", ")
            run = (
                by_regraft(Path(folder) / str(number), precision, steps)
                if arm == "regraft"
                else fresh(precision, steps)
            )
            store.add(key, {"peak_mib": round(run["peak_bytes"] / 2**20, 1), "wall": run["wall"]})
            say(f"{key}: {run['peak_bytes'] / 2**20:,.0f} MiB, {run['wall']:.1f} s")
        peaks = {key: store.values(key, "peak_mib") for key in keys}
        shares = {p: ratio(peaks[f"regraft, {p}"], peaks[f"transformers Trainer, {p}"]) for p in PRECISIONS}
        store.write(peak_mib={key: summary(values, digits=1) for key, values in peaks.items()}, ratio=shares)
        for precision, share in shares.items():
            say(
                f"{precision}: regraft needs {share['median']:.3f} of the Trainer's peak ({share['low']} to {share['high']})"
            )


def by_regraft(folder: Path, precision: str, steps: int) -> dict[str, Any]:
    """The command `regraft train`, with everything it does after the last step."""
    folder.mkdir()
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.format(path=DATA / SET, batch=BATCH, precision=precision, rate=RATE, steps=steps))
    return run_arm(["-m", "regraft", "train", recipe, "--out", folder / "run", "--quiet"])


def fresh(precision: str, steps: int) -> dict[str, Any]:
    """The Trainer, in a process of its own."""
    return run_arm([Path(__file__), "--trainer", precision, "--steps", str(steps)])


def by_trainer(precision: str, steps: int) -> None:
    """Train, then score the test rows; this process is what is measured."""
    sys.path.insert(0, str(ARMS))
    from common import report
    from hf_trainer import make_trainer
    from tasks import accuracy, task

    data = task(SET, None)
    options = argparse.Namespace(
        set=SET, batch=BATCH, rate=RATE, epochs=1, default=precision == "fp32", precision=precision
    )
    trainer = make_trainer(data, options, max_steps=steps)
    trainer.train()
    trainer.model.eval()
    found = accuracy(data, lambda inputs: trainer.model(**inputs).logits, precision=precision)
    report(accuracy=round(found, 4))


if __name__ == "__main__":
    main()
