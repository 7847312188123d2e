"""The last phases: calibrate on validation, evaluate on the test rows once, and write the report."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from regraft.core.forward import inputs_of
from regraft.data.bad_policy import bad_sample_facts
from regraft.data.encode import save_preprocessor
from regraft.data.encoded import Encoded
from regraft.models.save import describe_model, save_model
from regraft.phases.adapt import final_model
from regraft.phases.calibrate import calibrate
from regraft.phases.choose.ceiling import against_full
from regraft.phases.choose.features import head_outputs, model_outputs
from regraft.phases.choose.probe import FittedReads
from regraft.phases.choose.probe_phase import load_heads
from regraft.phases.evaluate.collect import Question, Scored, Stated, metrics_document, reliability_of
from regraft.phases.evaluate.latency import Latency, latency
from regraft.phases.evaluate.metrics import PRIMARY
from regraft.phases.forgetting import forgetting_of_path
from regraft.phases.job import Job
from regraft.phases.metering import Meter, forward_flops
from regraft.phases.report.document import write_report
from regraft.phases.rundir import METRICS
from regraft.transforms.temperature import Calibration

MODEL, CALIBRATION = "model", "calibration.json"


def calibrate_phase(job: Job) -> dict[str, Any]:
    """Fit the calibration on validation rows, and save the model with it."""
    done = job.run.done("calibrate")
    if done is not None:
        return done
    with job.phase("calibrate", "make the stated probabilities mean what they say") as meter:
        logits = _in_unit(job, np.load(job.run.path / "phases" / "final_valid.npy"))
        chosen, section = calibrate(
            logits, job.materials.raw_targets("valid"), task=job.materials.task, seed=job.spec.seed
        )
        for sentence in section.get("sentences", []):
            job.reporter.say(sentence)
        _save(job, chosen, meter)
        meter.judge(*_calibration_gate(section))
    return job.run.finish("calibrate", {"calibration": chosen.to_json(), "section": section}, files=[MODEL])


def _calibration_gate(section: dict[str, Any]) -> tuple[bool, str]:
    """Are probabilities left out of the fit at least as likely as before it, or intervals at least nearly as wide as stated?"""
    if "cross_fitted_coverage" in section:
        held, wanted = section["cross_fitted_coverage"], section["parameters"]["coverage"]
        error = (wanted * (1 - wanted) / section["rows"]) ** 0.5
        return (
            held >= wanted - 2 * error,
            f"{held:.1%} of validation rows lie in their interval, {wanted:.0%} are wanted.",
        )
    before, after = section.get("before") or {}, section.get("after") or {}
    if not before:
        return False, "no validation row has a target, so nothing was calibrated."
    return after["nll"] <= before["nll"], f"NLL {before['nll']:.4f} before and {after['nll']:.4f} after, cross-fitted."


def _save(job: Job, calibration: Calibration, meter: Meter) -> None:
    folder, schema = job.run.path / MODEL, job.dataset.schema
    winner = (job.run.done("adapt") or {})["winner"]
    save_model(
        final_model(job),
        folder,
        preprocessor_json=job.materials.preprocessor.to_json(),
        labels=schema.classes,
        task=schema.task,
        extra={"strategy": winner, "modality_inputs": list(schema.inputs), "label": list(schema.label)},
    )
    save_preprocessor(job.materials.preprocessor, folder)
    job.run.write_json(f"{MODEL}/{CALIBRATION}", calibration.to_json())
    meter.bytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def evaluate_phase(job: Job) -> dict[str, Any]:
    """Score the finished model, the probe and the last-layer probe on the test rows: the one use of the test split."""
    done = job.run.done("evaluate")
    if done is not None:
        return done
    with job.phase("evaluate", "the test rows, for the first and only time") as meter:
        materials, notes = job.materials, job.run.done("calibrate") or {}
        model, calibration = final_model(job), Calibration.from_json(notes["calibration"])
        raw = Calibration(kind="identity", task=materials.task)
        question = Question(task=materials.task, classes=job.dataset.schema.classes, seed=job.spec.seed)
        stated: dict[str, Stated] = {"final": Stated(), "probe": Stated(), "last": Stated()}
        saved = {"final": "final_valid", "probe": "probe_chosen_valid", "last": "probe_last_valid"}
        for name, file in saved.items():
            logits = _in_unit(job, np.load(job.run.path / "phases" / f"{file}.npy"))
            stated[name].outputs["valid"] = partial(
                _scored, job, "valid", logits, calibration if name == "final" else raw
            )
        before: Scored | None = None
        if "test" in job.dataset.splits:
            encoded = materials.encoded("test")
            probed = {name: _in_unit(job, each) for name, each in _probed(job, encoded).items()}
            is_probe = (job.run.done("adapt") or {})["winner"] == "probe"  # then the model is this head
            logits = probed["probe"] if is_probe else _outputs(job, model, encoded)
            meter.flops = 2 * forward_flops(model, encoded.collate(np.arange(min(4, len(encoded))))) * _units(encoded)
            before = _scored(job, "test", logits, raw)
            stated["final"].outputs["test"] = partial(_scored, job, "test", logits, calibration)
            for name, outputs in probed.items():
                stated[name].outputs["test"] = partial(_scored, job, "test", outputs, raw)
        split = "test" if before is not None else "valid"
        times = _latency(model, materials.encoded(split))
        extra = _extra(job, model, times, split)
        if before is not None:
            extra["reliability"] = reliability_of(question, before, stated["final"]["test"], split="test")
            del before
        document = metrics_document(
            question,
            final=stated["final"],
            probe=stated["probe"],
            last_layer_probe=stated["last"],
            shown=_shown(job, split),
            extra=extra,
        )
        job.run.write_json(METRICS, document)
        primary = document["primary"]
        headline = {name: document["final"][name][primary] for name in document["final"]}
        meter.judge(*_evaluation_gate(document, split))
    for name, value in headline.items():
        job.reporter.say(f"{primary} on {name}: {value['value']:.4f} ({value['low']:.4f} to {value['high']:.4f})")
    notes = {"primary": primary, "final": headline, "test_uses": int(split == "test")}
    return job.run.finish("evaluate", notes, files=[METRICS])


def _evaluation_gate(document: dict[str, Any], split: str) -> tuple[bool, str]:
    """Is the model on the rows it was scored on not clearly below the probe?"""
    primary, gain = document["primary"], document["versus_probe"]
    ours, probe = (document[name][split][primary]["value"] for name in ("final", "probe"))
    if ours is None or probe is None or gain["high"] is None:
        return False, f"{primary} on {split} cannot be computed."
    return gain["high"] >= 0, f"{primary} {ours:.4f} on {split}, the probe's {probe:.4f}."


def report_phase(job: Job) -> str:
    """Write report.html; returns its path."""
    with job.phase("report", "one self-contained page"):
        path = write_report(job.run.path)
    write_report(job.run.path)  # once more, so that the ledger in it has the line of this phase
    return str(path)


# ---- parts of metrics.json


def _in_unit(job: Job, logits: np.ndarray) -> np.ndarray:
    """Outputs in the target's own unit: standardised regression outputs are scaled back."""
    if job.materials.task != "regression":
        return logits
    mean, deviation = job.materials.scale
    return logits.reshape(len(logits)).astype(np.float64) * deviation + mean


def _outputs(job: Job, model: nn.Module, encoded: Encoded) -> np.ndarray:
    """Outputs of the finished model, whose scale is folded in already."""
    job.reporter.begin("scoring test", len(encoded), "rows")
    out = model_outputs(model, encoded, precision=job.precision, progress=job.reporter.advance).numpy()
    job.reporter.end()
    return out.reshape(len(out)) if job.materials.task == "regression" else out


def _probed(job: Job, encoded: Encoded) -> dict[str, np.ndarray]:
    """What the probe, and the probe on the last layer alone, answer to the test rows, (N, C)."""
    heads = load_heads(job)
    found = head_outputs(
        job.base,
        encoded,
        {
            name: (head.reads, *head.head.on_raw())
            for name, head in (("probe", heads["chosen_all"]), ("last", heads["last_all"]))
        },
        precision=job.precision,
    )
    return {name: outputs.numpy() for name, outputs in found.items()}


def _scored(job: Job, split: str, logits: np.ndarray, calibration: Calibration) -> Scored:
    return Scored(
        scores=calibration.probabilities(logits),
        targets=job.materials.raw_targets(split),
        rows=job.materials.row_names(split),
    )


def _units(encoded: Encoded) -> float:
    return float(encoded.lengths.sum()) if "input_ids" in encoded.inputs else float(len(encoded))


def _latency(model: nn.Module, encoded: Encoded) -> Latency:
    """One example at a time, in fp32, on up to 48 examples spread over the split."""
    rows = np.unique(np.linspace(0, len(encoded) - 1, min(48, len(encoded))).astype(np.int64))
    inputs = [encoded.collate(np.array([row])) for row in rows]
    keys = inputs_of(model)

    @torch.inference_mode()
    def predict(batch: dict[str, Tensor]) -> Tensor:
        return model(**{key: batch[key] for key in keys})

    model.eval()
    return latency(predict, inputs, warmup=3, runs=len(inputs), threads=torch.get_num_threads())


def _extra(job: Job, model: nn.Module, times: Latency, split: str) -> dict[str, Any]:
    adapt, probe, calibration = (job.run.done(name) or {} for name in ("adapt", "probe", "calibrate"))
    heads = load_heads(job)
    about = describe_model(model)
    names = job.materials.row_names(split)
    encoded = job.materials.encoded(split)
    at = np.unique(np.linspace(0, len(encoded) - 1, min(48, len(encoded))).astype(np.int64))
    return {
        "probe": {**_reads(heads["chosen"]), "l2": heads["chosen"].l2},
        "depth_curve": probe["curve"],
        "compared": probe["compared"],
        "candidates": [_with_primary(entry, PRIMARY[job.materials.task]) for entry in adapt["entries"]],
        "winner": adapt["winner"],
        "reasons": [*job.spec.reasons, *probe["sentences"], *adapt["sentences"], *against_full(adapt["entries"])],
        "calibration": calibration["section"],
        "latency": times.to_json() | {"device": "cpu", "threads": torch.get_num_threads()},
        "slow_examples": times.slowest([_plain(name) for name in names[at]]),
        "size": {"parameters": about["parameters"], "trainable": about.get("trainable"), "bytes": about.get("bytes")},
        "data": _data(job),
        "forgetting": forgetting_of_path(job, model, winner=adapt["winner"]),
        "test_uses": int("test" in job.dataset.splits),
    }


def _with_primary(entry: dict[str, Any], primary: str) -> dict[str, Any]:
    """A candidate's entry with its validation score under the name of the metric that decides, as the report reads it."""
    valid = entry["valid"]
    return entry | {"valid": valid | ({primary: valid["score"]} if "score" in valid else {})}


def _reads(fitted: FittedReads) -> dict[str, Any]:
    return {"depths": list(fitted.depths), "pools": list(fitted.pools)}


def _data(job: Job) -> dict[str, Any]:
    rows = {name: len(split) for name, split in job.dataset.splits.items() if name != "unlabelled"}
    used = {name: len(job.materials.rows(name)) for name in rows}
    share = {name: used[name] / max(1, rows[name]) for name in rows}
    said = {"used": used, "seen_share": share.get("train", 1.0), "given": sorted(job.dataset.given)}
    return rows | said | {"bad_samples": bad_sample_facts(job.dataset)}


def _shown(job: Job, split: str) -> Sequence[str] | None:
    """Text of each row of a split, for the hardest examples; None for images and tables."""
    if job.dataset.schema.modality != "text" or len(job.materials.rows(split)) > 50_000:
        return None
    columns = job.dataset.raw(split, job.materials.rows(split))
    return [" | ".join(str(value) for value in values) for values in zip(*columns.values(), strict=True)]


def _plain(value: Any) -> Any:
    return value if isinstance(value, str) else int(value)
