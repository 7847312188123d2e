"""The phase that chooses: measure the machine, probe all heights, and turn the budget into a race of counted work."""

from __future__ import annotations

import copy
import time
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from regraft.config.recipe import ProbeSpec, RaceSpec
from regraft.core.forward import inputs_of
from regraft.core.modes import set_trainable, train_mode
from regraft.core.values import Clock
from regraft.data.encode import encode_split
from regraft.data.encoded import Encoded
from regraft.data.images import EncodedImages
from regraft.errors import BudgetError, ConfigError, suggest
from regraft.losses.supervised import objective_for
from regraft.models.blocks import blocks, layer_groups
from regraft.models.graft import Graft
from regraft.models.standard import StandardHead
from regraft.phases.choose.features import LAST, AugmentedView, Features, Read, all_features
from regraft.phases.choose.fit import Head
from regraft.phases.choose.plan import Speed, choose_precision, make_race, measure_step
from regraft.phases.choose.probe import FittedReads, Probe, fit_probe, refit
from regraft.phases.choose.rules import STRATEGIES, Facts
from regraft.phases.job import Job
from regraft.phases.metering import forward_flops
from regraft.phases.training import Valid, usual_augment

PROBE_SHARE, EVALUATE_SHARE = 0.35, 0.15  # of the budget, at most
FEWEST_ROWS = 200  # a probe on fewer rows than this, of more, says little
HEADS = ("chosen", "last", "chosen_all", "last_all")  # fitted on train; and again on train and valid


def measure(job: Job) -> None:
    """Resolve what depends on the machine: precision, and how many rows the budget can look at. Written into the recipe."""
    spec = job.spec
    if spec.strategy is not None and spec.strategy not in STRATEGIES:
        raise ConfigError(f"--strategy: no strategy is called {spec.strategy!r}{suggest(spec.strategy, STRATEGIES)}")
    probe = spec.probe or ProbeSpec()
    if probe.precision != "auto":
        return
    precision, reason = _precision(job)
    probe = probe.replaced(precision=precision)
    reasons = [reason]
    data = spec.main_data()
    if spec.budget_s is not None:
        seconds = _seconds_a_row(job, precision)
        rows = {name: len(split) for name, split in job.dataset.splits.items()}
        fewest = min(FEWEST_ROWS, rows["train"])
        if fewest * seconds > spec.budget_s:
            raise BudgetError(
                f"--budget: {spec.budget_s:.0f} s allow {int(spec.budget_s / seconds):,} rows at {seconds * 1e3:.1f} ms a row, "
                f"too few for the probe; give at least {fewest * seconds / PROBE_SHARE:.0f} s"
            )
        fields = {"train": "limit", "valid": "limit_valid", "test": "limit_test"}
        for name, limit in _row_limits(rows, seconds, spec.budget_s).items():
            asked = getattr(data, fields[name])
            if asked is None or asked > limit:
                data = data.replaced(**{fields[name]: limit})
                reasons.append(f"{name}: {limit:,} of {rows[name]:,} rows are used, which is what the budget allows")
    job.use(spec.replaced(data={**spec.data, "main": data}, probe=probe, reasons=tuple(reasons)))
    for sentence in reasons:
        job.reporter.say(sentence)


def _precision(job: Job) -> tuple[Any, str]:
    sample = encode_split(job.dataset, "train", job.materials.preprocessor, rows=_some_rows(job, 64))
    return choose_precision(job.base, sample)


def _seconds_a_row(job: Job, precision: Any) -> float:
    """Of reading and encoding a row and one forward pass over it."""
    rows = _some_rows(job, 256)
    begin = time.perf_counter()
    sample = encode_split(job.dataset, "train", job.materials.preprocessor, rows=rows)
    all_features(job.base, sample, precision=precision, pools=("mean",))
    return (time.perf_counter() - begin) / len(rows)


def _some_rows(job: Job, count: int) -> np.ndarray:
    total = len(job.dataset.splits["train"])
    return np.unique(np.linspace(0, total - 1, min(count, total)).astype(np.int64))


def _row_limits(rows: dict[str, int], seconds_a_row: float, budget_s: float) -> dict[str, int]:
    """Rows of each split that fit into their share of the budget; only the splits that must be cut."""
    wanted = {"train": PROBE_SHARE, "valid": 0.25 * EVALUATE_SHARE, "test": 0.75 * EVALUATE_SHARE}
    limits = {name: int(share * budget_s / seconds_a_row) for name, share in wanted.items() if name in rows}
    return {name: max(limit, FEWEST_ROWS) for name, limit in limits.items() if max(limit, FEWEST_ROWS) < rows[name]}


# ---- probe


def probe_phase(job: Job) -> dict[str, Any]:
    """Fit the probe on all heights and on the last layer, on train for judging and on train and valid for keeps."""
    done = job.run.done("probe")
    if done is not None:
        return done
    with job.phase("probe", "one forward pass of the frozen model, heads on every height") as meter:
        materials, spec = job.materials, job.spec
        options = spec.probe or ProbeSpec()
        features = {name: read_features(job, name) for name in ("train", "valid")}
        meter.flops = _flops(job, ("train", "valid"))
        targets = {name: materials.targets(name) for name in ("train", "valid")}
        task, outputs = materials.task, materials.num_outputs
        probe = fit_probe(
            features["train"],
            targets["train"],
            task=task,
            num_outputs=outputs,
            depths=options.depths,
            folds=options.folds,
            seed=spec.seed,
        )
        valid = Valid(encoded=materials.encoded("valid"), targets=targets["valid"], task=task)
        views = _views(job, probe)
        if views:
            job.reporter.say(f"heads are fitted on {views} augmented views of each image as well")
        grown = {name: _grown(job, name, features[name], targets[name], views) for name in ("train", "valid")}
        fitted = {"chosen": probe.chosen, "last": probe.last}
        notes: dict[str, Any] = {
            "curve": list(probe.curve),
            "compared": list(probe.compared),
            "sentences": list(probe.sentences),
            "views": views,
        }
        options_of = {"task": task, "num_outputs": outputs}
        for name in ("chosen", "last"):
            if views:
                fitted[name] = refit(fitted[name], *grown["train"], **options_of)
            outcome = fitted[name].logits(features["valid"])
            both = {read: torch.cat([grown["train"][0][read], grown["valid"][0][read]]) for read in fitted[name].reads}
            fitted[f"{name}_all"] = refit(
                fitted[name], both, torch.cat([grown["train"][1], grown["valid"][1]]), **options_of
            )
            notes[name] = {
                "reads": [list(read) for read in fitted[name].reads],
                "l2": fitted[name].l2,
                "valid": valid.judge(outcome),
            }
            np.save(job.run.path / "phases" / f"probe_{name}_valid.npy", outcome.numpy())
        for sentence in probe.sentences:
            job.reporter.say(sentence)
        ours, usual = (notes[name]["valid"]["score"] for name in ("chosen", "last"))
        job.reporter.say(f"probe: {ours:.4f} on validation; the last layer alone {usual:.4f}")
        save_heads(job, fitted)
        job.found["features"] = features
    return job.run.finish("probe", notes)


FEW_IMAGES, USUAL_VIEWS = 5000, 4


def _views(job: Job, probe: Probe) -> int:
    """Augmented views of each image that the heads are fitted on besides the image itself."""
    if job.dataset.schema.modality != "image" or not isinstance(job.base, Graft):
        return 0
    asked = (job.spec.probe or ProbeSpec()).views
    return asked if asked is not None else USUAL_VIEWS * (probe.rows <= FEW_IMAGES)


def _grown(job: Job, split: str, features: Features, targets: Tensor, views: int) -> tuple[Features, Tensor]:
    """Features and targets of a split with those of its augmented views below them."""
    if not views:
        return features, targets
    encoded = cast(EncodedImages, job.materials.encoded(split))
    augment = usual_augment(flip=job.spec.train.flip)
    looks = [
        read_features(job, split, AugmentedView(encoded, augment, job.spec.seed, view)) for view in range(1, views + 1)
    ]
    grown = {read: torch.cat([values, *(look[read] for look in looks)]) for read, values in features.items()}
    return grown, targets.repeat(views + 1, *(1,) * (targets.ndim - 1))


def read_features(job: Job, split: str, encoded: Encoded | None = None) -> Features:
    """Features of a split, or of another encoding of it, at all boundaries that the recipe wants compared."""
    encoded = encoded if encoded is not None else job.materials.encoded(split)
    job.reporter.begin(f"reading {split}", len(encoded), "rows")
    last_only = job.spec.probe is not None and job.spec.probe.depths == "last"
    features = all_features(
        job.base,
        encoded,
        precision=job.precision,
        pools=("mean",) if last_only else None,
        progress=job.reporter.advance,
    )
    job.reporter.end()
    return features


def _flops(job: Job, splits: tuple[str, ...]) -> float:
    """Counted FLOPs of one forward pass over splits: FLOPs a unit on one batch, times the units."""
    total = 0.0
    for split in splits:
        encoded = job.materials.encoded(split)
        batch = encoded.collate(np.arange(min(4, len(encoded))))
        total += forward_flops(job.base, batch) * (int(encoded.lengths.sum()) if "input_ids" in batch else len(encoded))
    return total


def save_heads(job: Job, fitted: dict[str, FittedReads]) -> None:
    """Keep the fitted heads, so that a resumed job needs no second pass."""
    tensors: dict[str, Tensor] = {}
    for name, one in fitted.items():
        parts = {
            "weight": one.head.weight,
            "bias": one.head.bias,
            "mean": one.head.mean,
            "deviation": one.head.deviation,
        }
        tensors |= {f"{name}.{part}": value.clone() for part, value in parts.items()}
    save_file(tensors, job.run.path / "phases" / "probe.safetensors")


def load_heads(job: Job) -> dict[str, FittedReads]:
    """The heads that `save_heads` kept, by name."""
    notes = job.run.done("probe") or {}
    tensors = load_file(job.run.path / "phases" / "probe.safetensors")
    out: dict[str, FittedReads] = {}
    for name in HEADS:
        about = notes[name.removesuffix("_all")]
        head = Head(**{part: tensors[f"{name}.{part}"] for part in ("weight", "bias", "mean", "deviation")})
        reads = tuple(cast(Read, tuple(read)) for read in about["reads"])
        out[name] = FittedReads(reads=reads, l2=about["l2"], head=head)
    return out


def with_probe(job: Job, fitted: FittedReads) -> nn.Module:
    """A copy of the model with the probe's head on the depths it reads, cut off above the highest of them."""
    base = job.base
    if not isinstance(base, Graft) or fitted.reads == (LAST,):
        base = copy.deepcopy(base)
    else:
        base = base.reading(depths=fitted.depths, pools=fitted.pools, num_outputs=job.materials.num_outputs)
        base.cut_above()
    head = fitted.head
    cast(Any, base).set_head(head.weight, head.bias, mean=head.mean, deviation=head.deviation)
    return base


# ---- plan


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
            speed = _speed(job, facts)
            budget = job.spec.budget_s if job.spec.budget_s is not None else 600.0
            left = budget - job.elapsed - _time_to_finish(job, speed)
            race, reasons = make_race(facts, speed, seconds=left, only=job.spec.strategy)
        for sentence in reasons:
            job.reporter.say(sentence)
        job.use(job.spec.replaced(race=race, reasons=(*job.spec.reasons, *reasons)))
    return race


def _trainable(job: Job) -> bool:
    return isinstance(job.base, Graft | StandardHead) or job.dataset.schema.modality == "table"


def _facts(job: Job) -> Facts:
    notes = job.run.done("probe") or {}
    curve = notes.get("curve", [])
    best = max(curve, key=lambda point: point["score"])["depth"] if len(curve) > 1 else 1
    top = max(point["depth"] for point in curve) if len(curve) > 1 else 1
    highest = max((int(depth) for depth, _ in notes["chosen"]["reads"]), default=0) or len(blocks(job.base))
    return Facts(
        modality=job.dataset.schema.modality,
        rows=len(job.materials.rows("train")),
        num_blocks=max(1, min(len(blocks(job.base)), highest)),  # what is above the highest depth in use is cut off
        best_depth=best / max(1, top),
        mirror_safe=job.spec.train.flip,
        precision=job.precision,
    )


def _speed(job: Job, facts: Facts) -> Speed:
    """Seconds of a full training step and of a row's forward pass, measured on the model with the probe's head."""
    from regraft.phases.choose.rules import candidate

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

    def once() -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=options.precision == "bf16"):
            return objective(model, batch, Clock(0, 1))

    step = measure_step(once, list(model.parameters()))
    begin = time.perf_counter()
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=job.precision == "bf16"):
        model(**{key: batch[key] for key in inputs_of(model)})
    return Speed(forward_s=(time.perf_counter() - begin) / len(rows), step_s=1.1 * step, batch_size=options.batch_size)


def _time_to_finish(job: Job, speed: Speed) -> float:
    """Seconds that refitting the head, calibrating, evaluating and reporting will take, with some slack."""
    rows = {
        name: min(len(split), job.materials.limits.get(name) or len(split))
        for name, split in job.dataset.splits.items()
    }
    passes = 1.1 * rows.get("train", 0) + 5 * rows.get("valid", 0) + 2 * rows.get("test", 0)
    probe_line = next((line for line in job.run.read_json("ledger.json") if line["phase"] == "probe"), {"seconds": 5.0})
    return passes * speed.forward_s + 0.3 * probe_line["seconds"] + 6.0
