"""The phases that train: the race, the winner to its end, and the head fitted once more on the features it ended with."""

from __future__ import annotations

import math
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import load_model as load_tensors
from safetensors.torch import save_model as save_tensors
from torch import Tensor, nn

from regraft.config.recipe import CandidateSpec, RaceSpec
from regraft.core.checkpoint import Best, Checkpointer, find_newest, load, save
from regraft.core.descent import Precision
from regraft.core.modes import eval_mode
from regraft.core.protocols import State
from regraft.errors import RunError
from regraft.models.graft import Graft
from regraft.models.heads import head_of
from regraft.models.standard import StandardHead
from regraft.phases.choose.features import LAST, head_features, model_outputs
from regraft.phases.choose.fit import Head, fit_head, standardised
from regraft.phases.choose.plan_phase import plan_phase
from regraft.phases.choose.portion import Room
from regraft.phases.choose.probe_phase import load_heads, with_probe
from regraft.phases.choose.race import Entrant, Runner, Track, field_sizes, run_race
from regraft.phases.job import Job
from regraft.phases.metering import Meter, step_flops, units
from regraft.phases.overfitting import overfitting
from regraft.phases.rundir import EVENTS, EventLog
from regraft.phases.training import (
    Valid,
    above_its_error,
    epochs_of,
    newest_score,
    takes_the_place,
    tempered_losses,
    weight_bytes,
)

CHECKPOINTS, WINNER = "checkpoints", "winner"
FINAL, FINAL_VALID = "phases/final.safetensors", "phases/final_valid.npy"


def race_phase(job: Job) -> dict[str, Any]:
    """Let the candidates of the plan race; keep the winner's state. Does nothing where only the probe runs."""
    done = job.run.done("race")
    if done is not None:
        return done
    race = plan_phase(job)
    names = [c.name for c in race.candidates if c.steps]
    with job.phase(
        "race", f"between {', '.join(names)}" if names else "no candidates: the probe stands alone"
    ) as meter:
        _forget_events(job)
        track = _track(job)
        if steps := _race_steps(race):
            job.reporter.begin("race", steps, "steps")
        runner, entries = run_race(race, track, job.reporter.say)
        job.reporter.end()
        notes: dict[str, Any] = {"winner": None, "entries": entries}
        if runner is not None:
            winner = runner.entrant
            meter.flops = _training_flops(job, runner, sum(e["steps"] for e in entries) + winner.steps)
            if winner.rung:
                with torch.random.fork_rng(devices=[]):
                    save(_winner_folder(job), runner.trainer.begin().state_dict())
            notes |= {"winner": winner.spec.name} | {
                key: getattr(winner, key) for key in ("rung", "steps", "seconds", "result")
            }
            job.found["winner"] = runner
    return job.run.finish("race", notes)


def _race_steps(race: RaceSpec) -> int:
    """Steps the race makes if all candidates take part."""
    alive = [c for c in race.candidates if c.steps]
    sizes = field_sizes(len(alive), len(race.rungs))
    return sum(min(rung, c.steps) for rung, size in zip(race.rungs, sizes, strict=False) for c in alive[:size])


def _forget_events(job: Job) -> None:
    """A race that was interrupted starts over: it is short, and the same steps give the same bits."""
    (job.run.path / EVENTS).unlink(missing_ok=True)


def _winner_folder(job: Job) -> Path:
    return job.run.path / CHECKPOINTS / WINNER


def _track(job: Job) -> Track:
    materials = job.materials
    precision: Precision = job.precision
    options = job.spec.checkpoint
    valid = Valid(
        encoded=materials.encoded("valid"), targets=materials.targets("valid"), task=materials.task, precision=precision
    )
    return Track(
        model=with_probe(job, load_heads(job)["chosen"]),
        encoded=materials.encoded("train"),
        targets=materials.targets("train"),
        valid=valid,
        task=materials.task,
        seed=job.spec.seed,
        validations=job.spec.validate_.times,
        patience=job.spec.validate_.patience,
        log_for=lambda name: EventLog(job.run.path / EVENTS, candidate=name),
        tell=job.reporter.advance,
        hooks=lambda name: (
            Checkpointer(
                job.run.path / CHECKPOINTS,
                every=options.every_steps,
                keep=options.keep_last,
                stop=job.stop,
                enabled=False,
            ),
        ),
    )


def _training_flops(job: Job, runner: Runner, steps: int) -> float:
    """Counted FLOPs of training steps: those of one step of the winner on four examples, times the units of all steps."""
    stage = runner.trainer.recipe.stages[-1]
    stage.prepare()
    with torch.random.fork_rng(devices=[]):
        batch = {key: value[:4] for key, value in next(iter(stage.source.batches(stage.model, 0))).items()}
    from regraft.core.values import Clock

    with eval_mode(stage.model):  # counting must not move running statistics
        per_unit = step_flops(lambda: stage.objective(stage.model, batch, Clock(0, 1)).value, units(batch))
    stage.model.zero_grad(set_to_none=True)
    mean_length = float(job.materials.encoded("train").lengths.mean()) if "input_ids" in batch else 1.0
    return per_unit * mean_length * runner.spec.train.batch_size * steps


# ---- adapt


def adapt_phase(job: Job) -> dict[str, Any]:
    """Train the winner to its end, compare it with the probe on validation, and keep the better one."""
    done = job.run.done("adapt")
    if done is not None:
        return done
    race = race_phase(job)
    heads = load_heads(job)
    probe = (job.run.done("probe") or {})["chosen"]["valid"]
    with job.phase("adapt", f"train {race['winner']} to its end" if race["winner"] else "keep the probe") as meter:
        entries = list(race["entries"])
        model: nn.Module | None = None
        outputs: Tensor | None = None
        sentences: list[str] = []
        if race["winner"]:
            runner, result = _to_its_end(job, race, meter)
            model, outputs, result, said = _with_refitted_head(job, runner, result)
            events = job.run.path / EVENTS
            sentences += [*EventLog(events, candidate=race["winner"]).notes(), *said]
            sentences += overfitting(events.read_text(encoding="utf-8").splitlines(), race["winner"])
            baseline = torch.from_numpy(np.load(job.run.path / "phases" / "probe_chosen_valid.npy"))
            kept = clearly_better(outputs, baseline, job.materials.targets("valid"), task=job.materials.task)
            runner.entrant.status = "won" if kept else "stopped"
            runner.entrant.reason = _verdict(runner.spec, result, probe, kept)
            runner.entrant.result = result
            epochs = epochs_of(runner.steps, len(job.materials.rows("train")), runner.spec.train.batch_size)
            entries.append(runner.entry() | {"epochs": epochs})
            sentences.append(runner.entrant.reason)
            if not kept:
                model = None
        winner = race["winner"] if model is not None else "probe"
        if model is None:
            model = with_probe(job, heads["chosen_all"])
            outputs = torch.from_numpy(np.load(job.run.path / "phases" / "probe_chosen_valid.npy"))
            if not race["winner"]:
                sentences.append("the probe is the model: no candidate trained")
        entries.append(_probe_entry(job, probe, winner == "probe"))
        assert outputs is not None
        rescale_output(model, *job.materials.scale)
        job.run.save_array(FINAL_VALID, outputs.numpy())
        with job.run.making(FINAL) as path:
            save_tensors(model, str(path))
        for sentence in sentences:
            job.reporter.say(sentence)
        job.found["final"] = model
        meter.judge(*_gate(winner, entries))
        notes = {"winner": winner, "entries": entries, "sentences": sentences}
    return job.run.finish("adapt", notes, files=[FINAL, FINAL_VALID])


def _to_its_end(job: Job, race: dict[str, Any], meter: Meter) -> tuple[Runner, dict[str, float]]:
    """The winner with its best weights, and their validation result; saved on the way, and when the job is asked to stop."""
    runner = _resumed(job, race)
    before = runner.trainer.done
    job.reporter.begin(runner.spec.name, runner.trainer.total - before, "steps")
    with job.stop.held(), ExitStack() as saving:
        for checkpointer in runner.trainer.checkpointers():
            saving.enter_context(checkpointer)
        result = runner.finish()
    job.reporter.end()
    meter.flops = _training_flops(job, runner, runner.trainer.done - before)
    return runner, result


def _resumed(job: Job, race: dict[str, Any]) -> Runner:
    """The winner where it stands: as the race left it in this process, or from the newest checkpoint.

    Where the checkpoints are damaged it starts over: with its training, or with the race it had run in. The bits are the same.
    """
    runner: Runner | None = job.found.pop("winner", None)
    if runner is None:
        state = _saved_state(job)
        if state is None and race["rung"]:
            job.reporter.say("the winner is to be found once more")
            job.run.forget("race")
            race = race_phase(job)
            runner = cast(Runner, job.found.pop("winner"))
        else:
            spec = next(c for c in (job.spec.race or RaceSpec(candidates=())).candidates if c.name == race["winner"])
            ran = {key: race[key] for key in ("rung", "steps", "seconds", "result")}
            runner = _track(job).runner(Entrant(spec, **ran))
            runner.trainer.load(state)
    options, validate = job.spec.checkpoint, runner.validate
    best = Best(options.keep_best, lambda run: newest_score(validate.results, run)) if options.keep_best else None
    later = 0 if validate.best else weight_bytes(runner.trainer.recipe.model)
    runner.trainer.enable_checkpoints(best=best, later=later)
    return runner


def _saved_state(job: Job) -> State | None:
    """The newest sound checkpoint of the winner's training, else where the race left it; None where there is none."""
    found, damaged = find_newest(job.run.path / CHECKPOINTS)
    if found is None and _winner_folder(job).exists():
        try:
            found = load(_winner_folder(job)), _winner_folder(job)
        except RunError as error:
            damaged = [*damaged, str(error)]
    for sentence in damaged:
        job.reporter.say(f"passed over: {sentence}")
    if found is None:
        return None
    state, path = found
    job.reporter.say(f"continuing from {path.name}")
    return state


def _with_refitted_head(
    job: Job, runner: Runner, result: dict[str, float]
) -> tuple[nn.Module, Tensor, dict[str, float], list[str]]:
    """The trained model; with a head fitted to convergence on its features instead, where that is better on validation."""
    model, materials = runner.trainer.recipe.model, job.materials
    valid = Valid(
        encoded=materials.encoded("valid"),
        targets=materials.targets("valid"),
        task=materials.task,
        precision=job.precision,
    )
    outputs = model_outputs(model, valid.encoded, precision=job.precision)
    result = valid.judge(outputs) | {"step": result.get("step", 0.0)}
    if not isinstance(model, Graft | StandardHead):
        return model, outputs, result, []
    targets = {name: materials.targets(name) for name in ("train", "valid")}
    l2, problem = load_heads(job)["chosen"].l2, materials.problem
    room = Room(
        widths={LAST: head_of(model).in_features},
        targets=targets["train"],
        problem=problem,
        seed=job.spec.seed,
        beside=len(targets["valid"]),
    )
    portion = room.to_fit([LAST])
    targets["train"] = portion.targets(targets["train"])
    train, held_out = (
        head_features(model, part, precision=job.precision)
        for part in (portion.of(materials.encoded("train")), valid.encoded)
    )
    matrix = standardised([train], [held_out], half=problem.iterative)
    head = fit_head(matrix.first(len(train)), targets["train"], problem, l2=l2)
    refitted = head.logits(held_out)
    judged = valid.judge(refitted)
    high = max(result["score"], judged["score"])
    if not takes_the_place(judged, result, high=high, rows=len(valid.targets)):
        return (
            model,
            outputs,
            result,
            [f"a head fitted anew on the trained features is no better: {_said(judged)}, against {_said(result)}"],
        )
    everything = fit_head(matrix, torch.cat([targets["train"], targets["valid"]]), problem, l2=l2, start=head)
    _put(model, everything)
    gain = f"{_said(judged)}, before {_said(result)}"
    sentence = f"the head was fitted anew on the trained features: {gain}"
    return (
        model,
        refitted,
        judged | {"step": result["step"]},
        [sentence, "and once more on train and validation rows together, for keeps"],
    )


def _said(result: dict[str, float]) -> str:
    return f"{result['score']:.4f} on validation with a loss of {result['loss']:.4f}"


def _put(model: nn.Module, head: Head) -> None:
    cast(Any, model).set_head(head.weight, head.bias, mean=head.mean, deviation=head.deviation)


@torch.no_grad()
def rescale_output(model: nn.Module, mean: float | np.ndarray, deviation: float | np.ndarray) -> None:
    """Fold the scale of regression targets into the last linear layers, so that the model answers in the targets' units."""
    if np.ndim(mean) == 0 and (mean, deviation) == (0.0, 1.0):
        return
    shift, factor = (torch.as_tensor(value, dtype=torch.float32) for value in (mean, deviation))
    heads = [cast(Any, model).head] + ([cast(Any, model).deep.head] if hasattr(model, "deep") else [])
    for head in heads:
        head.weight.mul_(factor.reshape(-1, 1))
        head.bias.mul_(factor)
    heads[0].bias.add_(shift)


def final_model(job: Job) -> nn.Module:
    """The finished model of the job, from this process or from the run directory."""
    if "final" in job.found:
        return cast(nn.Module, job.found["final"])
    notes = job.run.done("adapt") or {}
    if notes["winner"] == "probe":
        model = with_probe(job, load_heads(job)["chosen_all"])
    else:
        spec: CandidateSpec = next(
            c for c in (job.spec.race or RaceSpec(candidates=())).candidates if c.name == notes["winner"]
        )
        model = _track(job).runner(Entrant(spec)).trainer.recipe.model
    load_tensors(model, str(job.run.path / FINAL))
    job.found["final"] = model.eval()
    return model


def clearly_better(ours: Tensor, theirs: Tensor, targets: Tensor, *, task: str) -> bool:
    """Is the mean gain per validation row above one standard error of it? Else the probe, the simpler model, is kept.

    The gain of a row is in correct answers or, where no fewer are correct, in tempered loss; in loss alone for multi-label and
    regression. Both outputs are (N, C).
    """
    in_loss = tempered_losses(theirs, targets, task) - tempered_losses(ours, targets, task)
    if task not in ("binary", "multiclass"):
        return above_its_error(in_loss)
    in_answers = (ours.argmax(1) == targets).float() - (theirs.argmax(1) == targets).float()
    return above_its_error(in_answers) or (float(in_answers.sum()) >= 0 and above_its_error(in_loss))


def _gate(winner: str, entries: list[dict[str, Any]]) -> tuple[bool, str]:
    """Does the model stand at or above the probe on validation?"""
    ours, probe = (next(e["valid"]["score"] for e in entries if e["name"] == name) for name in (winner, "probe"))
    return ours >= probe, f"{winner} stands at {ours:.4f} on validation, the probe at {probe:.4f}."


def _verdict(spec: CandidateSpec, result: dict[str, float], probe: dict[str, float], kept: bool) -> str:
    ours, theirs = f"{result['score']:.4f}", f"{probe['score']:.4f}"
    losses = (
        f" (loss {result['loss']:.4f} against {probe['loss']:.4f})"
        if math.isclose(result["score"], probe["score"])
        else ""
    )
    if kept:
        return f"{spec.name} won: {ours} on validation against {theirs} of the probe{losses}"
    return (
        f"{spec.name} ended at {ours} on validation, not clearly above the probe's {theirs}{losses}; the probe is kept"
    )


def _probe_entry(job: Job, result: dict[str, float], won: bool) -> dict[str, Any]:
    line = next((line for line in job.run.read_json("ledger.json") if line["phase"] == "probe"), {})
    return {
        "name": "probe",
        "techniques": [],
        "rule": "the baseline: a head on frozen features, fitted to convergence",
        "valid": {key: result[key] for key in ("score", "loss")},
        "steps": 0,
        "planned_steps": 0,
        "seconds": line.get("seconds", 0.0),
        "flops": line.get("flops"),
        "rung": 0,
        "status": "won" if won else "stopped",
        "reason": "" if won else "a trained candidate was better",
    }
