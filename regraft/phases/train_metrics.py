"""metrics.json of `regraft train`: the finished model beside what it started from, or the likelihood of a language model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from regraft.config.parse import dump_one
from regraft.config.recipe import MAIN, RecipeSpec
from regraft.data.bad_policy import bad_sample_facts
from regraft.data.dataset import LANGUAGE
from regraft.models.save import describe_model
from regraft.phases.entries import Entry
from regraft.phases.evaluate.collect import METRICS_FORMAT, Question, Scored, json_ready, metrics_document
from regraft.phases.evaluate.likelihood import likelihood_metrics, text_bits
from regraft.phases.forgetting import forgetting_of_training
from regraft.phases.job import Job
from regraft.phases.rundir import PHASES
from regraft.phases.training import Valid, epochs_of
from regraft.transforms.temperature import Calibration

if TYPE_CHECKING:
    from regraft.phases.train import Made


def label(spec: RecipeSpec) -> str:
    """The techniques of a recipe in one word."""
    return "+".join(type(technique).__name__ for technique in spec.techniques) or "supervised"


def scored(job: Job, entry: Entry, split: str, outputs: np.ndarray) -> Scored:
    """Outputs beside the targets, both in the target's own unit."""
    if entry.task == "regression":
        mean, deviation = entry.scale
        several = np.ndim(mean) > 0
        outputs = (outputs if several else outputs.reshape(len(outputs))).astype(np.float64) * deviation + mean
    return Scored(
        scores=Calibration(kind="identity", task=entry.task).probabilities(outputs),
        targets=entry.materials.raw_targets(split),
        rows=entry.materials.row_names(split),
    )


def document(job: Job, made: Made, outputs: Mapping[str, Tensor]) -> dict[str, Any]:
    """metrics.json: the finished model, the probe it started from if it did, and the other entries with these classes.

    `outputs` are those of the finished model on the test rows of each entry.
    """
    main, spec = made.assembled.main, job.spec
    schema = main.materials.dataset.schema
    question = Question(task=schema.task, classes=schema.classes, targets=schema.label, seed=spec.seed)
    splits = [split for split in ("valid", "test") if main.has(split)]

    def saved(name: str) -> dict[str, Scored]:
        return {s: scored(job, main, s, np.load(job.run.path / PHASES / f"{name}_{s}.npy")) for s in splits}

    others: dict[str, Any] = {}
    for name, entry in made.assembled.entries.items():
        if name != MAIN and isinstance(made.judges().get(name), Valid):
            others[name] = {"test": question.score(scored(job, entry, "test", outputs[name].numpy()))}
    return metrics_document(
        question,
        final=saved("final"),
        probe=saved("start") if spec.probe is not None else {},
        last_layer_probe={},
        extra=extra(job, made) | {"entries": others},
    )


def language_document(job: Job, made: Made) -> dict[str, Any]:
    """metrics.json of a language model: bits per token on the validation and test texts of each entry."""
    main = made.assembled.main
    final = {
        split: likelihood_metrics(*text_bits(made.model, main.encoded(split)), seed=job.spec.seed)
        for split in ("valid", "test")
        if main.has(split)
    }
    content = {
        "format": METRICS_FORMAT, "task": LANGUAGE, "classes": [], "primary": "bits_per_token", "final": final, "probe": {},
        "last_layer_probe": {}, "detailed_split": list(final)[-1],
    }  # fmt: skip
    return json_ready(content | extra(job, made))


def extra(job: Job, made: Made) -> dict[str, Any]:
    """What is not computed from scores."""
    notes, about = job.run.done("train") or {}, describe_model(made.model)
    results = notes["validations"].get(job.spec.stages[-1].name) or [{}]
    materials = made.assembled.main.materials
    rows = {name: len(split) for name, split in materials.dataset.splits.items() if name != "unlabelled"}
    used = {name: len(materials.rows(name)) for name in rows}
    steps = sum(stage["planned_steps"] for stage in notes["stages"])
    line = next(line for line in job.run.read_json("ledger.json") if line["phase"] == "train")
    candidate = {
        "name": label(job.spec),
        "techniques": [dump_one(technique) for technique in job.spec.techniques],
        "rule": "the recipe",
        "valid": {key: results[-1].get(key) for key in ("score", "loss")},
        "steps": steps,
        "planned_steps": steps,
        "epochs": epochs_of(steps, used["train"], job.spec.train.batch_size),
        "seconds": line["seconds"],
        "flops": None,
        "rung": 0,
        "status": "won",
        "reason": "",
    }
    return {
        "candidates": [candidate],
        "winner": candidate["name"],
        "reasons": [*(job.run.done("start") or {})["sentences"], *notes["notes"]],
        "size": {key: about.get(key) for key in ("parameters", "trainable", "bytes")},
        "data": rows
        | {"used": used, "seen_share": used["train"] / max(1, rows["train"])}
        | {"bad_samples": bad_sample_facts(materials.dataset)},
        "forgetting": forgetting_of_training(job, made.assembled, made.model),
        "test_uses": int("test" in used),  # each is scored once, after every choice was made
    }
