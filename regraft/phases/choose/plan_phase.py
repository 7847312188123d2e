"""The phase that plans: what is left of the budget becomes a race of counted work, written into the recipe."""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from typing import cast

from torch import Tensor, nn

from regraft.config.recipe import CandidateSpec, RaceSpec
from regraft.core import Recipe
from regraft.core.descent import Precision
from regraft.core.forward import called_on
from regraft.data.sources import Examples
from regraft.data.sweep import evaluating
from regraft.models.blocks import blocks
from regraft.models.graft import Graft
from regraft.models.standard import StandardHead
from regraft.optim.optimizers import Optimizer
from regraft.phases.advice.candidates import advice_on
from regraft.phases.choose.decision import decisions
from regraft.phases.choose.plan import Speed, make_race
from regraft.phases.choose.precision import asked_for, choose_for_training
from regraft.phases.choose.probe_phase import load_heads, with_probe
from regraft.phases.choose.race import REFUSALS
from regraft.phases.choose.rules import Facts, candidate
from regraft.phases.job import Job
from regraft.phases.training import Trainer, supervised_recipe

TIMED = 1000  # steps of a training of which only the first few are made, to see what they cost
SLACK = 1.05  # on the seconds of a step
LOOKED_AT = 1000  # batches of an epoch, at least, whose mean length is taken where there are more


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
    return [f"rates of AdamW for {kind}: {shown}; benchmarks/default_rates.py compares rates"]


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
    model = with_probe(job, load_heads(job)["chosen"])  # a copy, whose weights the timed steps change
    trainers = {each: _trainer(job, model, replace(facts, precision=each)) for each in {facts.precision, "fp32"}}
    source = cast(Examples, trainers[facts.precision].recipe.stages[0].source)
    usual = _padded_on_average(source)

    def step(precision: Precision) -> float:
        return timed_step(trainers[precision], source, usual)

    if facts.precision == "bf16" and asked_for("bf16") not in job.spec.reasons:
        precision, step_s, sentence = choose_for_training(step)
        facts, sentences = replace(facts, precision=precision), [sentence]
    else:
        step_s, sentences = statistics.fmean([step(facts.precision) for _ in range(5)][1:]), []
    batch_size = source.order.batch_size
    forward_s = _seconds_forward(model, called_on(model, source.batch_at(0)), job.precision)
    a_row = forward_s * usual / padded(source, 0) / batch_size
    return facts, Speed(forward_s=a_row, step_s=SLACK * step_s, batch_size=batch_size), sentences


def timed_step(trainer: Trainer, source: Examples, usual: float) -> float:
    """Seconds of the next step of a training on batches of a source, scaled to a batch of `usual` places."""
    step, begin = trainer.done, time.perf_counter()
    trainer.until(step + 1)
    return (time.perf_counter() - begin) * usual / padded(source, step)


def padded(source: Examples, step: int) -> int:
    """Places of the batch of a step, those of padding included."""
    rows = source.rows[source.order.batch_at(step)]
    return len(rows) * int(source.encoded.lengths[rows].max())


def _padded_on_average(source: Examples) -> float:
    count = source.batches_per_epoch
    return statistics.fmean(padded(source, step) for step in range(0, count, max(1, count // LOOKED_AT)))


def _trainer(job: Job, model: nn.Module, facts: Facts) -> Trainer:
    """Full fine-tuning of the model, of which only the first steps are made: they cost what it will cost."""
    spec, materials = candidate("full", facts, steps=TIMED, why=""), job.materials

    def recipe(spec: CandidateSpec) -> Recipe:
        return supervised_recipe(
            model,
            materials.encoded("train"),
            materials.targets("train"),
            task=materials.task,
            candidate=spec,
            seed=job.spec.seed,
        )

    try:
        made = recipe(spec)
    except REFUSALS:  # of its techniques; the race says which and why, and their cost is not that of the step
        made = recipe(spec.replaced(techniques=()))
    return Trainer(made, job.spec.seed)


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
