"""The measured tables of README.md and benchmarks/README.md, written from benchmarks/results/*.json and the catalogue.

python benchmarks/readme_tables.py            rewrite both

A table stands between `<!-- table: NAME -->` and `<!-- end of table -->`. Figures are never typed by hand.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

from claim_tables import CLAIM_TABLES
from tables import UNMEASURED, number, results, table

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "README.md", ROOT / "benchmarks" / "README.md")
MARKED = re.compile(r"(<!-- table: (?P<name>\w+) -->\n).*?(<!-- end of table -->)", re.DOTALL)


def main_job() -> str:
    """The main job on each data set: both probes, the winner, its calibration error and what it cost."""
    found = results("main_job")
    if found is None:
        return UNMEASURED
    rows = []
    for run in found["runs"] if isinstance(found, dict) else found:
        scores = [number(run.get(key)) for key in ("last_layer_probe", "probe", "final", "ece")]
        seconds = [number(run.get(key), 0) for key in ("probe_seconds", "seconds")]
        rows.append([run["data"], run.get("model") or "–", run["metric"], run["winner"], *scores, *seconds])
    header = [
        "data",
        "model",
        "metric",
        "winner",
        "last-layer probe",
        "probe of all depths",
        "final",
        "ECE",
        "s to probe",
        "s in all",
    ]
    return table(header, rows, numbers_from=4)


def audit_recall() -> str:
    """Recall of planted defects and precision of everything reported, for each set."""
    found = results("audit_recall")
    if found is None:
        return UNMEASURED
    rows = []
    for name, result in found["sets"].items():
        kinds = result["recall"]
        whole = [kind for kind, count in kinds.items() if count["found"] == count["planted"]]
        missed = [f"{kind} {count['found']}/{count['planted']}" for kind, count in kinds.items() if kind not in whole]
        planted, hit = (sum(count[key] for count in kinds.values()) for key in ("planted", "found"))
        incomplete = ", ".join(missed).replace("_", " ") or "none"
        rows.append(
            [name, incomplete, f"{hit} of {planted}", number(result["precision"], 2), number(result["seconds"], 1)]
        )
    return table(["data", "kinds not found in full", "defects found", "precision", "seconds"], rows, numbers_from=2)


def frozen() -> str:
    """An epoch with a part of the network frozen, with and without a store of what it computes."""
    found = results("frozen")
    if found is None or "epochs" not in found:
        return UNMEASURED
    rows = []
    for name, arm in found["epochs"].items():
        seconds = [number(arm[key]["median"], 2) if key in arm else "–" for key in ("computed", "stored", "fill")]
        faster = arm.get("times_faster")
        # a ratio is kept as ours over theirs; here it is theirs over ours
        times = f"{faster['median']:.1f} ({faster['low']:.1f} to {faster['high']:.1f})" if faster else "–"
        goal = f"{faster['goal']:g}" if faster else "–"
        rows.append([name, *seconds, times, goal])
    header = ["blocks frozen", "s an epoch", "s from the store", "s to fill it once", "times faster (95 %)", "goal"]
    return table(header, rows, numbers_from=1)


def trajectories() -> str:
    """How far the losses with a store are from those without it, over two epochs."""
    found = (results("frozen") or {}).get("loss_differences")
    if found is None:
        return UNMEASURED
    cases = next(iter(found.values()))

    def shown(value: float) -> str:
        return "same bits" if value == 0 else f"{value:.0e}"

    rows = [[name, *[shown(each[name]) for each in found.values()]] for name in cases]
    return table(["what trains", *found], rows, numbers_from=1)


def attention() -> str:
    """Seconds of regraft's attention over those of the model's own and of PyTorch's fused one, by length."""
    found = results("attention")
    if found is None:
        return UNMEASURED
    rows = []
    for length, one in found["found"].items():
        shares = [
            number(one[what][f"over_{arm}"]["median"], 2) for what in ("read", "step") for arm in ("eager", "sdpa")
        ]
        rows.append([length, *shares, f"{one['difference']:.0e}"])
    header = ["tokens", "reading / own", "reading / fused", "step / own", "step / fused", "difference"]
    return table(header, rows, numbers_from=0)


def adaptive_backprop() -> str:
    """Adaptive backpropagation beside full fine-tuning, LoRA and norm-only: work, time and accuracy on sst2."""
    found = results("adaptive_backprop")
    if found is None:
        return UNMEASURED
    rows = []
    for name, arm in found["arms"].items():
        mean, interval = (arm["difference"][key] for key in ("mean", "interval"))
        between = f" ({100 * interval[0]:+.1f} to {100 * interval[1]:+.1f})" if interval else ""
        change = "–" if name == "full" else f"{100 * mean:+.1f}{between}"
        shares = [
            "–" if name == "full" else f"{100 * (arm[f'{key}_of_full'] - 1):+.0f} %" for key in ("flops", "seconds")
        ]
        work = [number(arm["flops_per_step"] / 1e9, 1), number(arm["flops"] / 1e12, 2), shares[0]]
        rows.append([name, *work, number(arm["seconds"], 1), shares[1], number(arm["accuracy"], 4), change])
    header = ["arm", "GFLOP a step", "TFLOP", "FLOPs", "s", "time", "test accuracy", "points to full (95 %)"]
    return table(header, rows, numbers_from=1)


def step_overhead() -> str:
    """Microseconds a step of each loop, and what that is over the hand-written one."""
    found = results("step_overhead")
    if found is None:
        return UNMEASURED
    rows = []
    for name, one in found["loops"].items():
        over, (low, high) = one["over_hand"], one["over_hand"]["quartiles"]
        more = "–" if name == "hand-written loop" else f"{over['median']:.0f} ({low:.0f} to {high:.0f})"
        rows.append([name, number(one["us_per_step"], 0), more, number(over["target"], 0)])
    return table(["loop", "µs a step", "over the hand-written loop (quartiles)", "target"], rows, numbers_from=1)


def peak_memory() -> str:
    """Largest resident set of a full fine-tune, ours beside the Trainer's."""
    found = results("peak_memory")
    if found is None:
        return UNMEASURED
    rows = []
    for precision, share in found["ratio"].items():
        peaks = [found["peak_mib"][f"{arm}, {precision}"] for arm in ("regraft", "transformers Trainer")]
        cells = [f"{p['median']:,.0f} ({p['low']:,.0f} to {p['high']:,.0f})" for p in peaks]
        rows.append([precision, *cells, number(share["median"], 2), str(share["runs"])])
    return table(["precision", "regraft MiB", "Trainer MiB", "ratio", "runs"], rows, numbers_from=1)


def padding() -> str:
    """Share of real tokens under each way to make batches, and tokens a second on sst2."""
    found = results("padding")
    if found is None:
        return UNMEASURED
    shares = found["share of real tokens"]
    rates = found["speed on sst2"]["over padding to the longest of the data"]
    rows = [
        [
            way,
            *[f"{100 * each[way]:.1f} %" for each in shares.values()],
            f"{rates[way]['median']:.1f}x" if way in rates else "–",
        ]
        for way in next(iter(shares.values()))
    ]
    worst = max(found["difference of packed logits"].values())
    shown = table(["batches of 32", *shares, "tokens/s, sst2"], rows, numbers_from=1)
    return shown + f"\nPacked and unpacked logits differ by at most {worst:.0e} of the largest.\n"


WAYS = {  # names of arms as a reader knows them
    "regraft_probe": "regraft, probe of all depths",
    "regraft_last": "regraft, probe of the last layer",
    "regraft_adapt": "regraft, the main job",
    "st_fp32": "sentence-transformers, scikit-learn",
    "st_bf16": "sentence-transformers in bf16, scikit-learn",
    "hf_tuned": "HF Trainer, tuned (texts in bf16, like lengths, fused)",
    "hf_default": "HF Trainer, as it comes",
    "hand": "hand-written loop",
    "hand_loop": "hand-written loop",
    "hand_probe": "hand-written probe",
    "lightning": "Lightning (one cycle)",
    "fastai": "fastai (one cycle)",
}


def time_to_target() -> str:
    """Seconds from the start of a process to a test accuracy on banking77, for each way to get there."""
    return _to_targets(["banking77"])


def time_to_target_elsewhere() -> str:
    """The same on the other sets."""
    return _to_targets(["sst2", "sign_digits", "cifar10_jpg"])


def _to_targets(sets: list[str]) -> str:
    found = results("time_to_target")
    if found is None:
        return UNMEASURED
    rows = []
    for data in sets:
        arms = found["found"].get(data, {})
        for arm in sorted(arms, key=list(WAYS).index):
            one = arms[arm]
            seconds = one["seconds"]
            hit = [
                f"{target}: " + ("not reached" if value is None else number(value["median"], 1))
                for target, value in one["to_target"].items()
            ]
            spread = f" ({number(seconds['low'], 1)} to {number(seconds['high'], 1)})" if seconds["runs"] > 1 else ""
            shown = number(seconds["median"], 1) + spread
            rows.append([data, WAYS[arm], number(one["accuracy"], 4), shown, "; ".join(hit), str(seconds["runs"])])
    header = ["data", "way", "test accuracy", "seconds", "seconds to target", "runs"]
    return table(header, rows, numbers_from=2)


def epoch_time() -> str:
    """An epoch of full fine-tuning beside the usual loops."""
    found = results("epoch_time")
    if found is None:
        return UNMEASURED
    over = found["found"]["regraft_over"]
    rows = []
    for arm, one in found["found"]["arms"].items():
        middle = [number(one["seconds"]["median"], 1), *[number(one[key]["median"]) for key in ("loss", "accuracy")]]
        ours = number(over[arm]["median"], 2) if arm in over else "–"
        rows.append([WAYS.get(arm, arm), *middle, number(one["peak_gib"], 2), ours])
    return table(["loop", "seconds", "test loss", "test accuracy", "peak GiB", "regraft / it"], rows, numbers_from=1)


def startup() -> str:
    """Seconds until regraft does something."""
    found = results("startup")
    if found is None:
        return UNMEASURED
    rows = [
        [
            name,
            f"{number(one['median'], 3)} ({number(one['low'], 3)} to {number(one['high'], 3)})",
            str(one.get("goal", "–")),
        ]
        for name, one in found["found"].items()
        if "median" in one
    ]
    return table(["what", "seconds", "goal"], rows, numbers_from=1)


def growth() -> str:
    """How seconds and memory grow."""
    found = results("growth")
    if found is None:
        return UNMEASURED
    rows = [
        [
            name,
            ", ".join(f"{size:,}" for size in one["sizes"]),
            ", ".join(number(value, 1) for value in one["seconds"]),
            ", ".join(number(value, 1) for value in one["peak_gib"]),
            *[number(one[f"exponent_{what}"], 2) for what in ("seconds", "memory")],
            ", ".join(one["worse_than_linear"]) or "none",
        ]
        for name, one in found["found"].items()
    ]
    header = [
        "what grows",
        "sizes",
        "seconds",
        "peak GiB",
        "exponent, seconds",
        "exponent, memory",
        "worse than linear",
    ]
    return table(header, rows, numbers_from=1)


def reliability() -> str:
    """Kills while saving, resumes and flipped bits: regraft beside the Trainer of transformers and Lightning."""
    found = (results("reliability") or {}).get("found")
    if found is None:
        return UNMEASURED
    ways = {"regraft": "regraft", "hf": "HF Trainer", "lightning": "Lightning"}

    def cells(test: str, key: str, of: str) -> list[str]:
        measured = (found[test].get(way) for way in ways)
        return ["–" if one is None else f"{one[key]} of {one[of]}" for one in measured]

    rows = [
        ["killed while saving: resumes by the same call", *cells("kills", "resumed", "kills")],
        ["killed while saving: ends with the same bits", *cells("kills", "same_bits", "kills")],
        ["stopped and resumed: ends with the same bits", *cells("resumes", "same_bits", "cases")],
        ["a bit flipped: detected before it is used", *cells("flips", "detected", "flips")],
        ["a bit flipped: goes on with other weights, silently", *cells("flips", "silently_other_weights", "flips")],
        ["a bit flipped: ends with the right bits all the same", *cells("flips", "same_bits", "flips")],
    ]
    return table(["what happened", *ways.values()], rows, numbers_from=1)


def faults() -> str:
    """What the fault lab of regraft's own tests came to."""
    found = results("faults")
    if found is None:
        return UNMEASURED
    rows = []
    for name, one in found.items():
        total = next(value for key, value in one.items() if key in ("interrupted", "runs", "processes"))
        equal = next(value for key, value in one.items() if key in ("equal", "ended by themselves with the same bits"))
        rows.append([name, f"{total:,}", f"{equal:,}"])
    return table(["fault", "runs", "ended with the same bits"], rows, numbers_from=1)


def techniques() -> str:
    """Every technique of the catalogue and the other parts of a recipe, a line an area."""
    from regraft.config.catalogue import CATALOGUE, find

    areas: dict[str, list[str]] = {}
    for name in sorted(CATALOGUE["technique"]):
        package = sys.modules[find("technique", name).__module__.rpartition(".")[0]].__doc__ or ""
        areas.setdefault(package.partition(":")[0], []).append(f"[{name}](docs/techniques/{name}.md)")
    rows = [[area, ", ".join(names)] for area, names in areas.items()]
    pages = {
        "loss": "losses",
        "optimizer": "optimizers",
        "schedule": "schedules",
        "network": "networks",
        "method": "methods",
    }
    rows += [
        [f"[{page.capitalize()}](docs/{page}.md)", ", ".join(sorted(CATALOGUE[family]))]
        for family, page in pages.items()
    ]
    return table(["area", "names in a recipe"], rows, numbers_from=2)


TABLES: dict[str, Callable[[], str]] = {
    "main_job": main_job,
    "audit_recall": audit_recall,
    "frozen": frozen,
    "trajectories": trajectories,
    "attention": attention,
    "adaptive_backprop": adaptive_backprop,
    "padding": padding,
    "time_to_target": time_to_target,
    "time_to_target_elsewhere": time_to_target_elsewhere,
    "epoch_time": epoch_time,
    "startup": startup,
    "growth": growth,
    "step_overhead": step_overhead,
    "peak_memory": peak_memory,
    "reliability": reliability,
    "faults": faults,
    "techniques": techniques,
    **CLAIM_TABLES,
}


def rendered(page: str) -> str:
    """A page with every marked table as the results and the catalogue have it now."""
    return MARKED.sub(lambda found: f"{found[1]}\n{TABLES[found['name']]()}\n{found[3]}", page)


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(rendered(page.read_text(encoding="utf-8")), encoding="utf-8")
