"""The phase that plans: what is left of the budget becomes a race of counted work, written into the recipe."""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from regraft.config.recipe import RaceSpec
from regraft.core.descent import Precision
from regraft.core.forward import called_on
from regraft.core.modes import set_trainable, train_mode
from regraft.core.values import Clock
from regraft.data.sweep import evaluating
from regraft.losses.supervised import objective_for
from regraft.models.blocks import blocks, layer_groups
from regraft.models.graft import Graft
from regraft.models.standard import StandardHead
from regraft.optim.optimizers import Optimizer
from regraft.phases.advice.candidates import advice_on
from regraft.phases.choose.decision import decisions
from regraft.phases.choose.plan import Speed, make_race
from regraft.phases.choose.precision import asked_for, choose_for_training
from regraft.phases.choose.probe_phase import load_heads, with_probe
from regraft.phases.choose.rules import Facts, candidate
from regraft.phases.job import Job


def plan_phase(job: Job) -> RaceSpec:
    """The race, written into the recipe; a recipe that has one already is taken as it is."""
    if job.spec.race is not None:
        return job.spec.race
    with job.phase("plan", "turn the budget into counted work"):
        facts = _facts(job)
        if job.spec.strategy == "probe" or not _trainable(job):
            speed, left = Speed(forward_s=0.0, step_s=0.0, batch_size=32), 0.0
            race, reasons = make_race(facts, speed, seconds=0.0, only="probe")
        else:
            facts, speed, sentences = _speed(job, facts)
            budget = job.spec.budget_s if job.spec.budget_s is not None else 600.0
            left = budget - job.elapsed - _time_to_finish(job, speed)
            race, reasons = make_race(facts, speed, seconds=left, only=job.spec.strategy)
            reasons = [*sentences, *reasons]
        reasons += _rates(race, facts)
        reasons += [decision.sentence() for decision in decisions(facts, job.spec.constraint)]
        reasons += _advice(job, race)
        for sentence in reasons:
            job.reporter.say(sentence)
        job.use(job.spec.replaced(race=race, reasons=(*job.spec.reasons, *reasons)))
    return race


def _rates(race: RaceSpec, facts: Facts) -> list[str]:
    """Where the rates of the candidates come from."""
    trained = [candidate for candidate in race.candidates if candidate.steps]
    if not trained or facts.modality == "table":
        return []
    shown = ", ".join(f"{each.name} {cast(Optimizer, each.train.optimizer).lr:g}" for each in trained)
    kind = (
        f"{facts.modality}s" if facts.parameters is None else f"{facts.modality}s with {facts.parameters:,} parameters"
    )
    return [f"rates of AdamW for {kind}: {shown}, as measured by benchmarks/default_rates.py"]


def _advice(job: Job, race: RaceSpec) -> list[str]:
    """What the rules of advice find in the candidates."""
    if not any(candidate.steps for candidate in race.candidates):
        return []
    model, schema = with_probe(job, load_heads(job)["chosen"]), job.dataset.schema
    return advice_on(
        race.candidates,
        job.spec,
        model,
        pretrained=list(model.backbone.parameters()) if isinstance(model, Graft) else [],
        encoded=job.materials.encoded("train"),
        targets=job.materials.targets("train"),
        task=job.materials.task,
        classes=tuple(schema.classes),
        modality=schema.modality,
    )


def _trainable(job: Job) -> bool:
    return isinstance(job.base, Graft | StandardHead) or job.dataset.schema.modality == "table"


def _facts(job: Job) -> Facts:
    notes = job.run.done("probe") or {}
    curve = notes.get("curve", [])
    best = max(curve, key=lambda point: point["score"])["depth"] if len(curve) > 1 else 1
    top = max(point["depth"] for point in curve) if len(curve) > 1 else 1
    scores = {point["depth"]: point["score"] for point in curve} if len(curve) > 1 else {1: 0.0}
    highest = max((int(depth) for depth, _ in notes["chosen"]["reads"]), default=0) or len(blocks(job.base))
    modality = job.dataset.schema.modality
    assert modality != "audio", "the main job refuses sounds before it plans"
    return Facts(
        modality=modality,
        rows=len(job.materials.rows("train")),
        num_blocks=max(1, min(len(blocks(job.base)), highest)),  # what is above the highest depth in use is cut off
        best_depth=best / max(1, top),
        gap=scores[best] - scores[top],
        parameters=sum(p.numel() for p in job.base.parameters()) if isinstance(job.base, Graft) else None,
        mirror_safe=job.spec.train.flip,
        precision=job.precision,
    )


def _speed(job: Job, facts: Facts) -> tuple[Facts, Speed, list[str]]:
    """Seconds of a full training step and of a row's forward pass, measured on the model with the probe's head.

    The facts come back with the precision that steps are faster in, and a sentence about it, where both were measured.
    """
    options = candidate("full", facts, steps=1, why="").train
    model = with_probe(job, load_heads(job)["chosen"])
    encoded, targets = job.materials.encoded("train"), job.materials.targets("train")
    middle = np.argsort(encoded.lengths, kind="stable")
    at = max(0, int(0.6 * len(middle)) - options.batch_size)
    rows = np.sort(middle[at : at + options.batch_size])
    batch = encoded.collate(rows) | {"y": targets[torch.from_numpy(rows)]}
    objective = objective_for(job.materials.task)
    stem = set(layer_groups(model)[0]) if job.dataset.schema.modality == "text" else set[str]()
    set_trainable(model, [name for name, _ in model.named_parameters() if name not in stem])
    train_mode(model)

    def step(precision: Precision) -> float:
        begin = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            loss = objective(model, batch, Clock(0, 1))
        loss.value.backward()
        seconds = time.perf_counter() - begin
        model.zero_grad(set_to_none=True)
        return seconds

    if facts.precision == "bf16" and asked_for("bf16") not in job.spec.reasons:
        precision, step_s, sentence = choose_for_training(step)
        facts, sentences = replace(facts, precision=precision), [sentence]
    else:
        step_s, sentences = statistics.median([step(facts.precision) for _ in range(4)][1:]), []
    forward_s = _seconds_forward(model, called_on(model, batch), job.precision) / len(rows)
    return facts, Speed(forward_s=forward_s, step_s=1.1 * step_s, batch_size=options.batch_size), sentences


def _seconds_forward(model: nn.Module, inputs: dict[str, Tensor], precision: Precision) -> float:
    """Of one batch, once the weights are cast."""
    seconds: list[float] = []
    with evaluating(model, precision):
        for _ in range(4):
            begin = time.perf_counter()
            model(**inputs)
            seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds[1:])


def _time_to_finish(job: Job, speed: Speed) -> float:
    """Seconds that refitting the head, calibrating, evaluating and reporting will take, with some slack."""
    rows = {
        name: min(len(split), job.materials.limits.get(name) or len(split))
        for name, split in job.dataset.splits.items()
    }
    passes = 1.1 * rows.get("train", 0) + 5 * rows.get("valid", 0) + 2 * rows.get("test", 0)
    probe_line = next((line for line in job.run.read_json("ledger.json") if line["phase"] == "probe"), {"seconds": 5.0})
    return passes * speed.forward_s + 0.3 * probe_line["seconds"] + 6.0
