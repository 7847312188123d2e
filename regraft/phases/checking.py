"""The audit as a step of its own: of a file or folder, with or without a pretrained model to judge the labels by."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from regraft.config.data import DataSpec
from regraft.data.dataset import Dataset
from regraft.data.encode import AnyPreprocessor, encode_split
from regraft.data.images import ImagePreprocessor
from regraft.data.read import load
from regraft.data.text import TextPreprocessor
from regraft.errors import ModelError, RunError
from regraft.phases.audit.fix import fix
from regraft.phases.audit.run import audit, write_findings_csv
from regraft.phases.evaluate.collect import json_ready
from regraft.phases.findings import AuditReport
from regraft.phases.opening import tell_about
from regraft.phases.progress import Reporter
from regraft.phases.rundir import AUDIT, FINDINGS, RunDirectory


def audit_data(
    spec: DataSpec, *, model: str | None = None, seed: int = 0, reporter: Reporter
) -> tuple[Dataset, AuditReport]:
    """The data set and everything that is wrong or odd with it. Nothing is written.

    Args:
        spec: where the data are.
        model: a pretrained model whose features labels are judged by; default a simple model of the audit's own.
        seed: of samples and folds.
        reporter: told what was understood of the data.
    """
    dataset = load(spec, keep_bad=spec.on_bad_sample == "fail")
    tell_about(dataset, reporter)
    features = None if model is None else _features(dataset, model, reporter)
    reporter.phase("audit", "what is wrong with the data")
    return dataset, audit(dataset, features=features, seed=seed)


def _features(dataset: Dataset, name: str, reporter: Reporter) -> dict[str, np.ndarray]:
    """Last-layer features (rows, D) of every given split."""
    from regraft.models.graft import Graft
    from regraft.models.load import find_model, load_backbone
    from regraft.phases.choose.features import all_features

    schema = dataset.schema
    if schema.modality == "table":
        raise ModelError(f"{name!r} is a pretrained model, but the data is a table; leave --model out")
    backbone = load_backbone(name, modality=schema.modality)
    top = backbone.boundaries()[-1].depth
    graft = Graft(backbone, depths=(top,), pools=("mean",), num_outputs=max(2, schema.num_outputs))
    folder = find_model(name)
    prepare: AnyPreprocessor = (
        TextPreprocessor.from_model(folder, columns=schema.inputs)
        if schema.modality == "text"
        else ImagePreprocessor.from_model(folder, column=schema.inputs[0])
    )
    reporter.phase("features", f"of {name}, by which labels are judged")
    out: dict[str, np.ndarray] = {}
    for split in sorted(dataset.given & set(dataset.splits)):
        encoded = encode_split(dataset, split, prepare)
        reporter.begin(f"reading {split}", len(encoded), "rows")
        found = all_features(graft, encoded, precision="fp32", pools=("mean",), progress=reporter.advance)
        reporter.end()
        out[split] = torch.cat([found[key] for key in sorted(found) if key[0] == top], dim=1).numpy()
    return out


def write_audit(report: AuditReport, folder: Path) -> None:
    """`audit.json` and `findings.csv` in a new or empty folder. RunError where it holds something."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(f"{folder}: must be a new or empty folder, and holds other files; give another --out")
    RunDirectory(folder).write_json(AUDIT, json_ready(report.to_json()))
    write_findings_csv(report, folder / FINDINGS)


def fix_data(dataset: Dataset, report: AuditReport, out: Path) -> list[str]:
    """Write a cleaned copy to `out`; returns sentences that say what was changed."""
    done = fix(dataset, report, out)
    lines = [f"Cleaned copy: {out}"]
    for verb, counts in (("dropped", done.dropped), ("changed", done.changed)):
        for reason, splits in counts.items():
            where = ", ".join(f"{count:,} of {split}" for split, count in splits.items() if count)
            lines += [f"{verb}: {where} ({reason})"] if where else []
    left = ", ".join(f"{split} {count:,}" for split, count in done.rows.items())
    return [*lines, f"rows: {left}"]
