"""The claim that mixed precision is 1.3 to 2 times as fast and needs less memory: a full fine-tune in fp32, bf16 and fp16.

    python benchmarks/claims/mixed_precision.py [--rounds 5] [--steps 30] [--also fp16]

`regraft train` in fresh processes that take turns: MiniLM-L6 on sst2, batches of 32. Seconds are those of the phase `train`, the
peak is the largest resident set of the process. The loss after the last step is compared too. Whether the processor multiplies
in the lower precision stands under `machine`; where it does not, the lower precision is expected to be slower.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from harness import DATA, RESULTS, Store, ratio, rounds, run_arm, say, summary

PRECISIONS = (
    "fp32",
    "bf16",
    "fp16",
)  # fp16 only where it is asked for: most processors imitate it, at a hundredth of the speed
PUBLISHED = (1.3, 2.0)  # times as fast, Micikevicius et al. 2018, arXiv:1710.03740, and vendors since
RECIPE = """
seed: 0
data:
  main: {{path: {path}, limit_valid: 100, limit_test: 200}}
models:
  main: {{name: minilm, head: standard}}
train:
  batch_size: 32
  precision: {precision}
  optimizer: {{AdamW: {{lr: 1.0e-4}}}}
stages:
  - {{name: adapt, steps: {steps}}}
validate: {{times: 1}}
"""


def measured(folder: Path, precision: str, steps: int) -> dict[str, float]:
    """One run of the command."""
    folder.mkdir()
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.format(path=DATA / "sst2", precision=precision, steps=steps), encoding="utf-8")
    run = run_arm(["-m", "regraft", "train", recipe, "--out", folder / "run", "--quiet"])
    ledger = json.loads((folder / "run" / "ledger.json").read_text(encoding="utf-8"))
    seconds = next(line["seconds"] for line in ledger if line["phase"] == "train")
    events = [json.loads(line) for line in (folder / "run" / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    loss = [event["loss"] for event in events if "loss" in event][-1]
    return {"seconds": round(seconds, 3), "peak_mib": round(run["peak_bytes"] / 2**20, 1), "loss": loss}


def main() -> None:
    """Measure, and write the result file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--also", choices=("fp16",), nargs="*", default=[])
    parser.add_argument("--out", type=Path, default=RESULTS / "claims" / "mixed_precision.json")
    options = parser.parse_args()
    store = Store(
        options.out, settings={"steps": options.steps, "batch": 32, "set": "sst2", "model": "all-MiniLM-L6-v2"}
    )
    precisions = ["fp32", "bf16", *options.also]
    store.forget(PRECISIONS)
    with tempfile.TemporaryDirectory() as folder:
        for number, key in enumerate(rounds(dict.fromkeys(precisions, options.rounds), store)):
            store.add(key, measured(Path(folder) / str(number), key, options.steps))
            say(f"{key}: {store.runs[key][-1]}")
    base = {name: store.values("fp32", name) for name in ("seconds", "peak_mib", "loss")}
    found = {}
    for key in precisions[1:]:
        own = {name: store.values(key, name) for name in base}
        faster, memory = ratio(base["seconds"], own["seconds"]), ratio(own["peak_mib"], base["peak_mib"])
        found[key] = {
            "times_as_fast": faster, "share_of_memory": memory, "loss": summary(own["loss"]), "loss_fp32": summary(base["loss"]),
            "speed": "held" if faster["low"] >= PUBLISHED[0] else "reversed" if faster["high"] < 1 else "less than published",
            "memory": "held" if memory["high"] < 1 else "reversed" if memory["low"] > 1 else "open",
        }  # fmt: skip
    store.write(found=found, published=PUBLISHED)
    for key, one in found.items():
        speed, memory = one["times_as_fast"]["median"], one["share_of_memory"]["median"]
        say(f"{key}: {speed} times as fast ({one['speed']}), {memory} of the memory ({one['memory']})")


if __name__ == "__main__":
    main()
