"""The phase of the probe: heads on the frozen features of all heights and of the last layer, kept for every later phase."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from regraft.config.recipe import ProbeSpec
from regraft.data.cache import cache_folder
from regraft.data.encoded import Encoded
from regraft.data.images import EncodedImages
from regraft.data.store import Keeping
from regraft.models.graft import Graft
from regraft.phases.choose.features import LAST, AugmentedView, Features, Read, all_features
from regraft.phases.choose.fit import Head
from regraft.phases.choose.measure import augmented_views
from regraft.phases.choose.portion import Portion, Room, best_read, choose_in, kept, widths_of
from regraft.phases.choose.probe import (
    Choice,
    FittedReads,
    Heights,
    choose_penalty,
    fitted,
    fitted_on_path,
)
from regraft.phases.job import Job
from regraft.phases.metering import forward_flops
from regraft.phases.training import Valid, error_of, usual_augment

HEADS = ("chosen", "last", "chosen_all", "last_all")  # fitted on train; and again on train and valid
FILES = ("phases/probe.safetensors", "phases/probe_chosen_valid.npy", "phases/probe_last_valid.npy")
MOST_STEPS_AGAIN = 25  # of the second fit, which starts from the first
MOST_BYTES = 2 << 30  # of a split's features that are left in the cache for a later run
FEWEST_HELD_OUT = 500  # validation rows from which on they choose the penalty


def probe_phase(job: Job) -> dict[str, Any]:
    """Fit the probe on all heights and on the last layer, on train for judging and on train and valid for keeps."""
    done = job.run.done("probe")
    if done is not None:
        return done
    with job.phase("probe", "one forward pass of the frozen model, heads on every height") as meter:
        options = job.spec.probe or ProbeSpec()
        found = choose_in(_room(job), lambda part: read_features(job, "train", portion=part), depths=options.depths)
        choice, portion = found.choice, found.portion
        features = {"train": found.features, "valid": read_features(job, "valid", portion=replace(portion, rows=None))}
        heads, judged, views = _fit(job, choice, features, portion)
        meter.flops = _flops(job, job.found.pop("rows_read", {}))
        sentences = [*found.sentences, _about_penalty(job, heads["chosen"])]
        for sentence in sentences:
            job.reporter.say(sentence)
        ours, usual = (judged[name]["score"] for name in ("chosen", "last"))
        job.reporter.say(f"probe: {ours:.4f} on validation; the last layer alone {usual:.4f}")
        meter.judge(*_gate(job, judged))
        save_heads(job, heads)
        job.found["features"] = found.features[best_read(choice.curve, found.features)], portion
    notes = {
        "curve": list(choice.curve),
        "compared": list(choice.compared),
        "sentences": sentences,
        "views": views,
    }
    for name in ("chosen", "last"):
        reads = [list(read) for read in heads[name].reads]
        notes[name] = {"reads": reads, "l2": heads[name].l2, "valid": judged[name]}
    return job.run.finish("probe", notes, files=FILES)


def _room(job: Job) -> Room:
    """What decides how much of the features is read."""
    materials, train = job.materials, job.materials.targets("train")
    return Room(
        widths=widths_of(job.base, materials.encoded("train"), precision=job.precision, pools=_pools(job)),
        targets=train,
        problem=materials.problem,
        seed=job.spec.seed,
        beside=len(materials.rows("valid")),
        looks=1 + augmented_views(job, len(train)),
    )


def features_kept(job: Job) -> tuple[Tensor, Portion]:
    """What labels are judged on: the training rows' features at the best depth, (N, F), and which rows these are."""
    notes = job.run.done("probe") or {}
    room = _room(job)
    portion = room.to_compare()
    if portion.rows is not None:
        chosen, last = ([cast(Read, tuple(read)) for read in notes[name]["reads"]] for name in ("chosen", "last"))
        portion = room.to_fit(kept(chosen, last, notes["curve"], room.widths))
    features = read_features(job, "train", portion=portion)
    return features[best_read(notes["curve"], features)], portion


def _gate(job: Job, judged: dict[str, dict[str, float]]) -> tuple[bool, str]:
    """Is the head on the chosen heights as good as one on the last layer, but for the error of measuring?"""
    ours, usual = (judged[name]["score"] for name in ("chosen", "last"))
    error = error_of(usual, len(job.materials.targets("valid")))
    sentence = f"the chosen heights stand at {ours:.4f} on validation, the last layer at {usual:.4f}."
    return ours >= usual - error, sentence


def _fit(
    job: Job, choice: Choice, features: dict[str, Features], portion: Portion
) -> tuple[dict[str, FittedReads], dict[str, dict[str, float]], int]:
    """The four heads, how the two fitted on train do on validation, and how many augmented views were fitted on as well."""
    materials, views = job.materials, augmented_views(job, choice.rows)
    targets = {name: materials.targets(name) for name in ("train", "valid")}
    if views:
        job.reporter.say(f"heads are fitted on {views} augmented views of each image as well")
    portions = {"train": portion, "valid": replace(portion, rows=None)}
    targets["train"] = portion.targets(targets["train"])
    blocks = {name: [features[name], *_looks(job, name, views, portions[name])] for name in ("train", "valid")}
    y = torch.cat([targets[name].repeat(views + 1, *(1,) * (targets[name].ndim - 1)) for name in ("train", "valid")])
    learned = (views + 1) * len(targets["train"])
    valid = Valid(encoded=materials.encoded("valid"), targets=targets["valid"], task=materials.task)
    heads: dict[str, FittedReads] = {}
    judged: dict[str, dict[str, float]] = {}
    for name, heights in (("chosen", choice.chosen), ("last", choice.last)):
        if name == "last" and heights == choice.chosen:
            heads |= {"last": heads["chosen"], "last_all": heads["chosen_all"]}
        else:
            heads[name], heads[f"{name}_all"] = _fit_twice(job, heights, blocks, y, learned, valid)
        outputs = heads[name].logits(features["valid"])
        judged[name] = valid.judge(outputs)
        job.run.save_array(f"phases/probe_{name}_valid.npy", outputs.numpy())
    return heads, judged, views


def _fit_twice(
    job: Job, heights: Heights, blocks: dict[str, list[Features]], targets: Tensor, learned: int, valid: Valid
) -> tuple[FittedReads, FittedReads]:
    """The head on the first `learned` rows, which are the training ones, and from there on all rows."""
    problem, options = job.materials.problem, job.spec.probe or ProbeSpec()
    matrix = heights.of(problem, *blocks["train"], *blocks["valid"])
    plain, rows, y = blocks["train"][0], matrix.first(learned), targets[:learned]
    if _has_path(job, len(valid.targets)):

        def loss(one: FittedReads) -> float:
            return valid.judge(one.logits(blocks["valid"][0]))["loss"]

        first = fitted_on_path(heights, rows, y, problem, loss=loss, seed=job.spec.seed)
    else:
        count = learned // len(blocks["train"])
        l2 = choose_penalty(plain, heights.reads, y[:count], problem, folds=options.folds, seed=job.spec.seed)
        first = fitted(heights, rows, y, problem, l2=l2)
    return first, fitted(
        heights, matrix, targets, problem, l2=first.l2, start=first.head, max_iterations=MOST_STEPS_AGAIN
    )


def _has_path(job: Job, held_out: int) -> bool:
    """Is the penalty chosen on validation rows? Where they are few, folds of the training rows say more."""
    return job.materials.problem.iterative and held_out >= FEWEST_HELD_OUT


def _about_penalty(job: Job, chosen: FittedReads) -> str:
    where = "validation rows" if _has_path(job, len(job.materials.targets("valid"))) else "held-out training rows"
    return f"penalty {chosen.l2:g}, chosen on {where}"


def _looks(job: Job, split: str, views: int, portion: Portion) -> list[Features]:
    """Features of the augmented views of a split of images."""
    if not views:
        return []
    encoded = cast(EncodedImages, job.materials.encoded(split))
    augment = usual_augment(flip=job.spec.train.flip)
    looks = (AugmentedView(encoded, augment, job.spec.seed, n) for n in range(1, views + 1))
    return [read_features(job, split, look, portion=portion) for look in looks]


def _pools(job: Job) -> tuple[str, ...] | None:
    """The ways of pooling that are compared; None: all."""
    return ("mean",) if job.spec.probe is not None and job.spec.probe.depths == "last" else None


def read_features(job: Job, split: str, encoded: Encoded | None = None, *, portion: Portion) -> Features:
    """Features of a portion of a split, or of another encoding of it.

    What an earlier run over the same data has left in the cache is not computed again; `job.found["rows_read"]` counts the rows
    that were, by split.
    """
    encoded = portion.of(encoded if encoded is not None else job.materials.encoded(split))
    job.reporter.begin(f"reading {split}", len(encoded), "rows")
    counts: dict[str, int] = job.found.setdefault("rows_read", {})

    def progress(rows: int) -> None:
        counts[split] = counts.get(split, 0) + rows
        job.reporter.advance(rows)

    features = all_features(
        job.base,
        encoded,
        precision=job.precision,
        pools=_pools(job),
        reads=portion.reads,
        keeping=Keeping(max_bytes=MOST_BYTES, folder=cache_folder("stores"), half=portion.half),
        progress=progress,
    )
    job.reporter.end()
    if split not in counts:
        job.reporter.say(
            f"the features of {split} are those that an earlier run over the same data has left in the cache"
        )
    return features


def _flops(job: Job, rows_read: dict[str, int]) -> float:
    """Counted FLOPs of the forward passes over splits: FLOPs a unit on one batch, times the units of the rows that were read."""
    total = 0.0
    for split, rows in rows_read.items():
        encoded = job.materials.encoded(split)
        batch = encoded.collate(np.arange(min(4, len(encoded))))
        units = float(encoded.lengths.mean()) if "input_ids" in batch else 1.0
        total += forward_flops(job.base, batch) * units * rows
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
    with job.run.making(FILES[0]) as path:
        save_file(tensors, path)


def load_heads(job: Job) -> dict[str, FittedReads]:
    """The heads that `save_heads` kept, by name."""
    notes = job.run.done("probe") or {}
    tensors = load_file(job.run.path / FILES[0])
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
