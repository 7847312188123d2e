"""Run directories for the tests of the report: realistic numbers, 77 classes with long names, hostile strings.

`python tests/phases/report/example_run.py FOLDER` writes one with its report, to look at.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from regraft.phases.calibrate import calibrate
from regraft.phases.evaluate.collect import Question, Scored, json_ready, metrics_document, reliability_of
from regraft.transforms.temperature import softmax

HOSTILE = (
    "<img src=x onerror=alert(1)>",
    "</style></svg><script>alert(2)</script>",
    '"><a href="javascript:alert(3)">',
    "{{ 7 * 7 }}{% raw %}",
    "\u202eevil\u2066\x00\x1b[31m\ud800",
    "&lt;already &amp; escaped",
)
TOPICS = ("card", "cash", "transfer", "top_up", "exchange", "identity", "pin", "refund")
EVENTS = (
    "arrival", "declined", "not_recognised_by_the_receiving_bank", "fee_charged", "pending", "limits", "by_mistake",
    "wrong_amount_received", "supported_countries_and_currencies", "reverted",
)  # fmt: skip


def class_names(count: int = 77) -> tuple[str, ...]:
    names = [f"{topic}_{event}" for event in EVENTS for topic in TOPICS]
    return tuple([*HOSTILE, *names][:count])


def scores(seed: int, skill: float, targets: np.ndarray, count: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    shared = np.random.default_rng(99).normal(size=(len(targets), count))  # what is hard is hard for every model
    logits = 1.1 * (0.8 * shared + 0.6 * rng.normal(size=(len(targets), count)))
    hot = np.eye(count)[targets]
    near = np.eye(count)[(targets + 8) % count]  # the class that each class is taken for
    return 1.6 * (logits + skill * hot + 0.45 * skill * near)


def make_run(run: Path, *, classes: int = 77, rows: int = 3080) -> Path:
    run.mkdir(parents=True, exist_ok=True)
    names = class_names(classes)
    rng = np.random.default_rng(0)
    test, valid = rng.integers(0, classes, rows), rng.integers(0, classes, 1000)
    calibration, section = calibrate(scores(1, 4.6, valid, classes), valid, task="multiclass")

    def scored(seed: int, skill: float, targets: np.ndarray) -> Scored:
        found = calibration.probabilities(scores(seed, skill, targets, classes))
        return Scored(scores=found, targets=targets, rows=np.arange(len(targets)))

    question = Question(task="multiclass", classes=names, resamples=200)
    raw = Scored(scores=softmax(scores(1, 4.6, test, classes)), targets=test, rows=np.arange(rows))
    final = {"test": scored(1, 4.6, test), "valid": scored(1, 4.6, valid)}
    shown = [
        f"I still have not received my new card {i}, I ordered over a week ago. What should I do?" for i in range(rows)
    ]
    shown[::5] = [HOSTILE[i % len(HOSTILE)] for i in range(len(shown[::5]))]
    document = metrics_document(
        question,
        final=final,
        probe={"test": scored(2, 4.5, test), "valid": scored(2, 4.5, valid)},
        last_layer_probe={"test": scored(3, 4.35, test), "valid": scored(3, 4.35, valid)},
        shown=shown,
        extra=extra(section) | {"reliability": reliability_of(question, raw, final["test"], split="test")},
    )
    (run / "metrics.json").write_text(json.dumps(document, allow_nan=False), encoding="utf-8")
    write_others(run)
    return run


def extra(section: dict) -> dict:
    def candidate(name, techniques, score, steps, taken, rung, status, reason, rule=""):
        return {
            "name": name, "techniques": techniques, "rule": rule, "valid": {"accuracy": {"value": score}}, "steps": steps,
            "seconds": taken, "flops": taken * 4.1e10, "rung": rung, "status": status, "reason": reason,
        }  # fmt: skip

    return {
        "calibration": section,
        "forgetting": {
            "measured": True,
            "drift": {"measure": "1 - linear CKA", "rows": 256, "by_depth": {"0": 0.0, "1": 0.02, "2": 0.11}, "top": 0.11},
            "source": {
                "metric": "accuracy of a linear probe, leave-one-out", "split": "test", "rows": 500, "before": 0.91,
                "after": 0.84, "change": -0.07,
            },
        },
        "probe": {"depths": [2, 4, 5, 6], "pools": ["mean", "max"], "l2": 0.003},
        "depth_curve": [{"depth": d, "score": s} for d, s in enumerate([0.402, 0.788, 0.871, 0.902, 0.921, 0.929, 0.930])],
        "candidates": [
            candidate("full", ["Discriminative"], 0.9431, 1180, 61.2, 3, "won", "Best on validation in the last rung.",
                      "near and large: full with discriminative rates first"),
            candidate("lora", [{"LoRA": {"rank": 16, "targets": "attention.*"}}], 0.9412, 1180, 48.0, 3, "stopped",
                      "0.0019 behind."),
            candidate("probe", [], 0.9373, 0, 7.9, 0, "stopped", "The baseline that nothing may end below."),
            candidate("last-k", ["Freeze"], 0.9302, 300, 9.1, 1, "stopped", "Below the probe after rung 1."),
            candidate(HOSTILE[0], ["Adapter"], 0.9214, 150, 6.3, 1, "stopped", "Slowest riser in rung 1."),
            candidate("norm", ["NormOnly"], None, 0, 0.0, None, "refused", "The plan's budget does not hold another candidate."),
        ],
        "winner": "full",
        "reasons": [
            "9,003 rows for 77 classes, and a last-layer probe at 0.930: near and large, so full fine-tuning goes first.",
            "The race of 5 candidates over 3 rungs ended with full at 0.9431 against 0.9412 of lora on 1,000 validation rows.",
        ],
        "test_uses": 1,
        "slow_examples": [{"row": 1201, "text": "A very long message " * 12, "milliseconds": 19.2},
                          {"row": 17, "milliseconds": 12.4}],
        "latency": {"p50_ms": 4.12, "p95_ms": 6.93, "batch": 1, "runs": 100, "device": "cpu, 2 threads"},
        "size": {"parameters": 22_742_861, "trainable": 22_742_861, "bytes": 90_982_144},
        "data": {"train": 9003, "valid": 1000, "test": 3080, "seen_share": 0.83},
        "fallbacks": ["bfloat16 was not used: this processor has no fast path for it."],
        "warnings": [f"The label {HOSTILE[1]!r} looks like markup."],
    }  # fmt: skip


def write_others(run: Path) -> None:
    def save(name, content):
        (run / name).write_text(json.dumps(json_ready(content)), encoding="utf-8")

    save("audit.json", {
        "format": "regraft.audit/1",
        "findings": [
            {"kind": "duplicate-exact", "severity": "warning", "split": "train", "file": "train.csv",
             "rows": list(range(17, 900, 11)),
             "message": "81 texts occur twice in train after normalising; keep one of each with --fix."},
            {"kind": "leak-near", "severity": "warning", "split": "test", "rows": [5, 120, 977],
             "message": "3 test texts are nearly train texts."},
            {"kind": "label-suspect", "severity": "info", "split": "train", "rows": [3, 8],
             "message": f"2 labels are doubtful, e.g. {HOSTILE[0]}."},
            {"kind": "missing-label", "severity": "error", "split": "train", "column": "category", "rows": [HOSTILE[2]],
             "message": "1 row has no label."},
        ],
        "facts": {"rows": {"train": 9003, "valid": 1000, "test": 3080}, "classes": 77, "longest_text_tokens": 78,
                  "detected": ["The column 'text' holds free text.", "The column 'category' has 77 values and is the label."]},
    })  # fmt: skip
    (run / "audit.csv").write_text("kind,split,row\n", encoding="utf-8")
    gate = {"passed": True, "sentence": "0.9431 on validation is not below the probe's 0.9373."}
    phases = [
        ("audit", 6.1, 0),
        ("choose", 94.0, 3.4e12),
        ("adapt", 61.2, 2.5e12),
        ("calibrate", 0.3, 0),
        ("evaluate", 9.8, 2.2e11),
        ("report", 0.8, 0),
    ]
    save("ledger.json", [
        {"phase": name, "seconds": s, "cpu_seconds": 1.9 * s, "peak_bytes": 8.1e8 + 4e6 * s, "flops": f, "bytes": 1e6 * s,
         **({"gate": gate} if name == "adapt" else {})}
        for name, s, f in phases
    ])  # fmt: skip
    rng = np.random.default_rng(0)
    with (run / "events.jsonl").open("w", encoding="utf-8") as events:
        for stage, end, top in (("probe-head", 300, 0.92), ("lora", 1180, 0.9412), ("full", 1180, 0.9431)):
            for step in range(10, end + 1, 10):
                loss = 0.12 + 3.9 * np.exp(-step / 170) + 0.05 * rng.normal() * np.exp(-step / 600)
                events.write(
                    json.dumps({"stage": stage, "step": step, "name": "loss", "value": float(loss), "unit": "nats"})
                    + "\n"
                )
                if step % 100 == 0:
                    score = top - 0.25 * np.exp(-step / 220)
                    event = {
                        "stage": stage,
                        "step": step,
                        "name": "valid/accuracy",
                        "value": float(score),
                        "unit": "share of rows",
                    }
                    events.write(json.dumps(event) + "\n")
        events.write('{"stage": "full", "step": 1190, "na')  # a killed run
    save("manifest.json", {
        "format": "regraft.manifest/1", "regraft": "0.1.0", "created": "2026-03-02T11:45:07Z", "seed": 0, "threads": 2,
        "versions": {"python": "3.11.2", "torch": "2.13.0", "transformers": "5.23.0"},
        "data": {"name": "banking77", "path": "data/banking77", "modality": "text", "fingerprint": "9f2c" * 16},
        "model": {"name": "sentence-transformers/all-MiniLM-L6-v2", "sha256": "53aa" * 16, "licence": "Apache-2.0"},
        "hardware": {"processor": "x86-64, 2 cores", "memory_bytes": 8 * 2**30, "accelerator": None},
    })  # fmt: skip
    recipe = "format: regraft.recipe/1\nseed: 0\nbudget: 3m\ntechniques:\n  - Discriminative: {decay: 0.8}\n"
    (run / "recipe.yaml").write_text(recipe, encoding="utf-8")
    (run / "model").mkdir(exist_ok=True)
    (run / "model" / "README.md").write_text(
        "# Model\n\n```python\nimport torch\nprint('<b>plain</b>')\n```\n", encoding="utf-8"
    )


if __name__ == "__main__":
    from regraft.phases.report.document import write_report

    print(write_report(make_run(Path(sys.argv[1]), classes=int(sys.argv[2]) if len(sys.argv) > 2 else 77)))
