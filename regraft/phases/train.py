"""`regraft train`: any recipe of the catalogue on any data, into a run directory that can be resumed bit for bit.

Unlike the main job it chooses nothing: what is trained, on what, by which techniques and for how long is in the recipe.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from safetensors.torch import load_model as load_tensors
from safetensors.torch import save_model as save_tensors
from torch import Tensor, nn

from regraft.config.recipe import MAIN, RecipeSpec, StageSpec, read_recipe
from regraft.core import Hook, explain, fit
from regraft.core.checkpoint import Best, Checkpointer, find_newest
from regraft.core.protocols import State
from regraft.core.ranks import RankLost
from regraft.core.stopping import Stop
from regraft.data.bad_policy import with_left_out
from regraft.data.dataset import LANGUAGE
from regraft.data.encode import save_preprocessor
from regraft.errors import RunError
from regraft.models.delta import weights_hash
from regraft.models.save import save_model
from regraft.optim.optimizers import Optimizer
from regraft.phases.adapt import rescale_output
from regraft.phases.advice.decay import decaying
from regraft.phases.advice.lint import advise, sentences
from regraft.phases.advice.situation import situation
from regraft.phases.audit.guard import leaks
from regraft.phases.build import Assembled, assemble
from regraft.phases.choose.features import model_outputs
from regraft.phases.entries import Entry
from regraft.phases.job import Job
from regraft.phases.judges import Judge, Results, Watch, judge_for, measured
from regraft.phases.loss_curve import flat_loss
from regraft.phases.optimizer_state import state_sentences
from regraft.phases.overfitting import overfitting
from regraft.phases.progress import Reporter, Silent
from regraft.phases.ranks import LIVES, made_together, require_one_process
from regraft.phases.report.document import write_report
from regraft.phases.resolve import resolved
from regraft.phases.rundir import EVENTS, MANIFEST, METRICS, PHASES, RECIPE, EventLog, RunDirectory
from regraft.phases.train_metrics import document, label, language_document
from regraft.phases.training import Endings, StepCounter, Valid, newest_score, weight_bytes
from regraft.phases.working import working
from regraft.transforms.temperature import Calibration

KIND = "train"  # of the job, in manifest.json; the main job's has none
FINAL, MODEL, CHECKPOINTS = "final.safetensors", "model", "checkpoints"


def train_job(
    spec: RecipeSpec, out: Path, *, reporter: Reporter | None = None, module: nn.Module | None = None
) -> RunDirectory:
    """A recipe trained into a new run directory.

    The directory holds recipe.yaml, manifest.json, events.jsonl, checkpoints, ledger.json, the model, report.html, and
    metrics.json where the task has labelled test rows.

    Args:
        spec: what is trained; it has at least one stage.
        out: a new or empty folder.
        reporter: told what is going on.
        module: the main model, where it is a Python module.

    Raises:
        RegraftError: bad input, found before anything is written; or a loss that is not finite. A run that stops later can
            be resumed.
        Interrupted: SIGTERM or SIGINT came; the run can be resumed.
    """
    made = Made(resolved(spec), module)
    spec = made.spec
    datasets = {name: entry.materials.dataset for name, entry in made.assembled.entries.items()}
    spec = made.spec = with_left_out(spec, datasets)
    run = RunDirectory.create(out)
    with working(run, reporter or Silent(), fresh=True) as (told, stop):
        job = _job(run, made, told, stop)
        job.write_manifest()
        manifest = run.read_json(MANIFEST)
        others = {
            name: {"path": str(entry.materials.dataset.path), "fingerprint": entry.materials.dataset.fingerprint}
            for name, entry in made.assembled.entries.items()
        }
        models = {name: weights_hash(model) for name, model in made.assembled.recipe.models.items()}
        run.write_json(MANIFEST, manifest | {"job": KIND, "entries": others, "models": models})
        job.use(spec)
        return _walk(job, made)


def resume_training(path: Path, *, reporter: Reporter | None = None, module: nn.Module | None = None) -> RunDirectory:
    """Go on with a training run that was stopped or killed, to the bits it would have ended with.

    Raises:
        RunError: there is no run at `path`, or another process works on it.
        Interrupted: SIGTERM or SIGINT came; the run can be resumed.
    """
    run = RunDirectory.open(path)
    with working(run, reporter or Silent()) as (told, stop):
        made = Made(read_recipe(run.path / RECIPE), module)
        job = _job(run, made, told, stop)
        job.compare_machine()
        return _walk(job, made)


def is_training_run(path: Path) -> bool:
    """Is the run directory one of `regraft train`, to be resumed by `resume_training`? False for any other folder."""
    if not (path / MANIFEST).is_file() or not (path / RECIPE).is_file():
        return False
    return RunDirectory(path).read_json(MANIFEST).get("job") == KIND


class Made:
    """The objects of a recipe, with somebody watching every stage that can be judged."""

    def __init__(self, spec: RecipeSpec, module: nn.Module | None) -> None:
        if module is not None:
            require_one_process(spec, "the others cannot make a model that is a Python module; use one process")
        self.spec, self.module = spec, module
        self.watches: dict[str, Watch] = {}
        self.restarts: list[str] = []  # why the training started again from a checkpoint, in this process
        self.assembled: Assembled = assemble(spec, module=module, hooks=self._watch)
        self.model = self.assembled.recipe.model

    def _watch(self, stage: StageSpec, entry: Entry) -> list[Hook]:
        judge = judge_for(self.spec.techniques, entry, "valid", precision=self.spec.train.precision)
        if judge is None:
            return []
        self.watches[stage.name] = Watch(judge, self.spec.validate_)
        return [self.watches[stage.name]]

    def judges(self) -> dict[str, Judge]:
        """Who judges the model on the test rows of each entry of `data:`."""
        found = {name: judge_for(self.spec.techniques, e, "test") for name, e in self.assembled.entries.items()}
        return {name: judge for name, judge in found.items() if judge is not None}

    def supervised(self) -> bool:
        """Is the finished model one whose outputs can be compared with labels?"""
        return isinstance(self.judges().get(MAIN), Valid)


def _job(run: RunDirectory, made: Made, reporter: Reporter, stop: Stop) -> Job:
    """The ledger and the manifest, for objects that are there already."""
    main, base = made.assembled.main.materials, made.assembled.base
    return Job(run, made.spec, reporter, stop=stop, dataset_=main.dataset, materials_=main, model_=base)


def _walk(job: Job, made: Made) -> RunDirectory:
    start_phase(job, made)
    made = _trained(job, made)
    evaluate_phase(job, made)
    save_phase(job, made)
    if job.run.done("report") is None:
        with job.phase("report", "one self-contained page"):
            write_report(job.run.path)
        job.run.finish("report", {})
        write_report(job.run.path)  # once more, so that the ledger in it has the line of this phase
    return job.run


def _trained(job: Job, made: Made) -> Made:
    """Train; where another process of the training is lost, go on from the newest checkpoint with fresh objects."""
    while True:
        try:
            train_phase(job, made)
            return made
        except RankLost as lost:
            said = [*made.restarts, f"{lost}; the training went on from its newest checkpoint"]
            if len(said) > LIVES:
                raise RunError(f"{lost}, for the {len(said)}th time; `regraft resume {job.run.path}` goes on") from None
            job.reporter.say(said[-1])
            made = Made(made.spec, made.module)
            made.restarts = said


# ---- phases


def start_phase(job: Job, made: Made) -> dict[str, Any]:
    """Note what the model is worth before it trains: the probe's head where the recipe asks for it."""
    done = job.run.done("start")
    if done is not None:
        return done
    kept = state_sentences(made.assembled.recipe, made.spec.train.optimizer)
    kept += decaying(made.assembled.recipe, cast(Optimizer, made.spec.train.optimizer))
    advice = sentences(advise(situation(made.assembled)))
    said = [
        *made.spec.reasons,
        *_left_alone(made.spec),
        *made.assembled.sentences,
        *leaks(made.assembled.main.materials.dataset),
        *kept,
        *advice,
    ]
    with job.phase("start", "the model before training"):
        for sentence in said:
            job.reporter.say(sentence)
        start, outputs = measured(made.judges(), made.model)
        compared = made.supervised() and made.spec.probe is not None  # with the probe, whose head the model starts with
        files = _save_outputs(job, made, "start", outputs) if compared else []
    return job.run.finish("start", {"test": start, "sentences": said}, files=files)


def _left_alone(spec: RecipeSpec) -> list[str]:
    """What the recipe holds and a training does not use."""
    if spec.search is None:
        return []
    fields = ", ".join(spec.search.space)
    return [
        f"search: `regraft train` trains with the recipe's own values of {fields}; `regraft search` looks for better ones"
    ]


def train_phase(job: Job, made: Made) -> dict[str, Any]:
    """Run every stage, from the newest checkpoint if there is one."""
    final = job.run.path / PHASES / FINAL
    done = job.run.done("train")
    if done is not None:
        load_tensors(made.model, str(final))
        return done
    recipe = made.assembled.recipe
    folder, events = job.run.path / CHECKPOINTS, job.run.path / EVENTS
    with job.phase("train", "; ".join(f"{stage.name}, {stage.steps:,} steps" for stage in recipe.stages)) as meter:
        state, path = _newest(job, folder)
        if state is None:
            events.unlink(missing_ok=True)
        before = 0 if state is None else sum(s.steps for s in recipe.stages[: state["stage"]]) + int(state["step"])
        job.reporter.begin("train", sum(stage.steps for stage in recipe.stages) - before, "steps")
        endings = Endings()
        with (
            job.stop.held(),
            _checkpointer(job, made) as saving,
            made_together(job.run, made.spec, path) as together,
        ):
            report = fit(
                recipe,
                seed=job.spec.seed,
                hooks=hooks_of(made, together, StepCounter(job.reporter.advance, every=1), endings, saving),
                resume=state,
                log=EventLog(events, candidate=label(job.spec)),
            )
        job.reporter.end()
        for sentence in (*report.notes, *_flat(made, events)):
            job.reporter.say(sentence)
        with job.run.making(f"{PHASES}/{FINAL}") as path:
            save_tensors(made.model, str(path))
        meter.bytes = final.stat().st_size
    return job.run.finish("train", _notes(made, endings, events), files=[f"{PHASES}/{FINAL}"])


def hooks_of(
    made: Made,
    together: Sequence[Hook],
    counter: Hook | None = None,
    endings: Hook | None = None,
    saving: Hook | None = None,
) -> tuple[Hook, ...]:
    """The hooks of a training, in the order a checkpoint has them; those that are not there keep their place."""
    return (counter or Hook(), Results(made.watches), endings or Endings(), *together, saving or Hook())


def _checkpointer(job: Job, made: Made) -> Checkpointer:
    """Saves as the recipe says, and when the run is asked to stop."""
    options, watches = job.spec.checkpoint, made.watches
    best: Best | None = None
    if options.keep_best and watches:
        best = Best(options.keep_best, lambda run: newest_score(watches[run.stage.name].results, run))
    later = weight_bytes(made.model) if watches and job.spec.validate_.patience is not None else 0
    folder = job.run.path / CHECKPOINTS
    return Checkpointer(
        folder, every=options.every_steps, keep=options.keep_last, best=best, stop=job.stop, later=later
    )


def _newest(job: Job, folder: Path) -> tuple[State, Path] | tuple[None, None]:
    """The state to go on from, and where it lies."""
    found, damaged = find_newest(folder)
    for sentence in damaged:
        job.reporter.say(f"passed over: {sentence}")
    if found is None:
        if damaged:
            job.reporter.say("no checkpoint is sound; the training starts over, to the bits it had")
        return None, None
    state, path = found
    job.reporter.say(f"continuing from {path.name}")
    return state, path


def _notes(made: Made, endings: Endings, events: Path) -> dict[str, Any]:
    """What the later phases and the reader need to know of the training."""
    last: dict[str, dict[str, Any]] = {}
    notes = list(made.restarts)
    for line in events.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if "note" in record:
            notes.append(record["note"])
        if "loss" in record:
            last[record["stage"]] = {key: value for key, value in record.items() if key not in ("candidate", "stage")}
    return {
        "stages": [{"name": stage.name, "planned_steps": stage.steps} for stage in made.assembled.recipe.stages],
        "stopped": endings.reasons,
        "notes": [*notes, *_flat(made, events)],
        "last": last,
        "validations": {name: watch.results for name, watch in made.watches.items()},
        "compiled": explain(made.assembled.recipe).splitlines(),
    }


def _flat(made: Made, events: Path) -> list[str]:
    """Alarms of stages whose loss did not fall, or that overfit, where the loss is one on labels."""
    lines = events.read_text(encoding="utf-8").splitlines()
    return [*flat_loss(lines), *overfitting(lines)] if made.supervised() else []


def evaluate_phase(job: Job, made: Made) -> dict[str, Any]:
    """Score the trained model on the test rows of every entry whose labels it can be compared with."""
    done = job.run.done("evaluate")
    if done is not None:
        return done
    with job.phase("evaluate", "the test rows"):
        final, outputs = measured(made.judges(), made.model)
        start = (job.run.done("start") or {})["test"]
        for name, result in final.items():
            was, now = start[name], result
            job.reporter.say(
                f"test rows of {name}: score {was['score']:.4f} -> {now['score']:.4f}, "
                f"loss {was['loss']:.4f} -> {now['loss']:.4f}"
            )
        files: list[str] = []
        if made.supervised():
            files = [*_save_outputs(job, made, "final", outputs), METRICS]
            job.run.write_json(METRICS, document(job, made, outputs))
        elif made.assembled.task == LANGUAGE:
            files = [METRICS]
            job.run.write_json(METRICS, language_document(job, made))
    return job.run.finish("evaluate", {"start": start, "final": final}, files=files)


def save_phase(job: Job, made: Made) -> None:
    """Write the model folder; a regression model answers in the target's own unit there."""
    if job.run.done("save") is not None:
        return
    with job.phase("save", "the model folder") as meter:
        folder, materials = job.run.path / MODEL, made.assembled.main.materials
        schema = materials.dataset.schema
        if made.supervised():
            rescale_output(made.model, *made.assembled.main.scale)
        save_model(
            made.model,
            folder,
            preprocessor_json=materials.preprocessor.to_json(),
            labels=schema.classes,
            task=schema.task,
            extra={"strategy": label(job.spec), "modality_inputs": list(schema.inputs), "label": list(schema.label)},
        )
        save_preprocessor(materials.preprocessor, folder)
        calibration = Calibration(kind="identity", task=schema.task)
        job.run.write_json(f"{MODEL}/calibration.json", calibration.to_json())
        meter.bytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    job.run.finish("save", {}, files=[MODEL])


def _save_outputs(job: Job, made: Made, name: str, tested: Mapping[str, Tensor]) -> list[str]:
    """Outputs on validation rows and the test rows of main, kept so that later phases need no forward pass; the files."""
    outputs = {"test": tested[MAIN]}
    if made.assembled.main.has("valid"):
        outputs["valid"] = model_outputs(made.model, made.assembled.main.encoded("valid"), precision="fp32")
    files = [f"{PHASES}/{name}_{split}.npy" for split in outputs]
    for file, values in zip(files, outputs.values(), strict=True):
        job.run.save_array(file, values.numpy())
    return files
