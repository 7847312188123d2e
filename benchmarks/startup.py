"""Start-up: `import regraft`, `regraft --help`, and how soon `regraft adapt` reads its first row beside what imports cost anyway.

    python benchmarks/startup.py [--rounds 10]

Fresh processes in turn. "First row" is the moment the probe begins its first forward pass over the training rows: the data was
read and audited, the model loaded, precision and budget measured. The yardstick is a process that imports torch and the code of
BertModel from transformers, up to the end of importing. The data are 500 rows of sst2; the cache is empty each time.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

from harness import ARMS, DATA, RESULTS, Store, rounds, run_arm, say, summary

ROWS = 500
IMPORTS = """
import torch
from transformers.models.bert.modeling_bert import BertModel
import json, os, time
print(json.dumps({"seconds": time.time() - float(os.environ["BENCH_SPAWNED"])}))
"""
PLAIN = {
    "python": ["-c", "pass"],
    "import regraft": ["-c", "import regraft"],
    "regraft --help": ["-m", "regraft", "--help"],
    "import torch and BertModel": ["-c", IMPORTS],
}
ADAPT = "regraft adapt"
GOALS = {"import regraft": 0.05, "regraft --help": 0.3, ADAPT: 1.5}


def small_data(folder: Path) -> Path:
    """A CSV file of the first 500 training rows of sst2."""
    with (DATA / "sst2" / "train.tsv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))[: ROWS + 1]
    target = folder / "sst2_500.csv"
    with target.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(rows)
    return target


def run_adapt(data: Path, folder: Path) -> dict[str, Any]:
    """One whole command with the seconds to the end of importing, to the audit, and to the first row."""
    scratch = Path(tempfile.mkdtemp(dir=folder))
    out = scratch / "run"
    options = ["adapt", str(data), "--model", "minilm", "--strategy", "probe", "--out", str(out)]
    found = run_arm([ARMS / "regraft_traced.py", *options], environment={"REGRAFT_CACHE": str(scratch / "cache")})
    audit = next(line for line in json.loads((out / "ledger.json").read_text()) if line["phase"] == "audit")
    shutil.rmtree(scratch)
    stamps = found["stamps"]
    first = {(kind, name): at for at, kind, name in reversed(stamps)}
    return {
        "imported": first["imported", ""],
        "audit_begins": first["phase", "audit"],
        "audit": audit["seconds"],
        "probe_begins": first["phase", "probe"],
        "first_row": first["begin", "reading train"],
        "wall": found["wall"],
    }


def conclude(store: Store) -> dict[str, Any]:
    """Each figure net of what it is compared with, in seconds."""
    wall = {name: store.values(name, "wall") for name in [*PLAIN, ADAPT]}
    net = [a - b for a, b in zip(wall["import regraft"], wall["python"], strict=False)]
    first, imports = store.values(ADAPT, "first_row"), store.values("import torch and BertModel", "seconds")
    over = [a - b for a, b in zip(first, imports, strict=False)]
    audit = store.values(ADAPT, "audit")
    parts = ("imported", "audit_begins", "audit", "probe_begins", "first_row", "wall")
    return {
        "import regraft, net of the interpreter": summary(net, digits=4) | {"goal": GOALS["import regraft"]},
        "regraft --help": summary(wall["regraft --help"]) | {"goal": GOALS["regraft --help"]},
        "first row of adapt, over importing torch and BertModel": summary(over) | {"goal": GOALS[ADAPT]},
        "the same without the audit": summary([a - b for a, b in zip(over, audit, strict=False)]),
        "python": summary(wall["python"], digits=4),
        "import torch and BertModel": summary(imports),
        "regraft adapt, median seconds to": {
            part: round(statistics.median(store.values(ADAPT, part)), 3) for part in parts
        },
    }


def main() -> None:
    """Measure, and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--fresh", action="store_true", help="forget the runs there are")
    parser.add_argument("--out", type=Path, default=RESULTS / "startup.json")
    options = parser.parse_args()
    store = Store(options.out, settings={"rows": ROWS})
    if options.fresh:
        store.forget([*PLAIN, ADAPT])
    folder = Path(tempfile.mkdtemp(prefix="bench-startup-"))
    try:
        data = small_data(folder)
        for key in rounds(dict.fromkeys([*PLAIN, ADAPT], options.rounds), store):
            store.add(key, run_adapt(data, folder) if key == ADAPT else run_arm(PLAIN[key]))
            if all(name in store.runs for name in [*PLAIN, ADAPT]):
                store.write(found=conclude(store))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for name, one in conclude(store).items():
        if "goal" in one:
            verdict = "met" if one["median"] <= one["goal"] else "NOT met"
            say(f"{name}: {one['median']} s ({one['low']} to {one['high']}), goal {one['goal']} s: {verdict}")
        else:
            say(f"{name}: {one.get('median', one)}")


if __name__ == "__main__":
    main()
