"""A finished model on new labelled data: every metric with its interval."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from regraft.data.bad_policy import bad_sample_facts
from regraft.data.dataset import Dataset
from regraft.errors import DataError, suggest
from regraft.phases.evaluate.collect import Question, Scored, json_ready
from regraft.phases.evaluate.metrics import usable_rows
from regraft.phases.predict import Predictor, require_whole
from regraft.phases.progress import Reporter

FORMAT = "regraft.evaluation/1"


def score_data(
    predictor: Predictor,
    path: str,
    *,
    label: tuple[str, ...] = (),
    split: str | None = None,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    reporter: Reporter,
) -> dict[str, Any]:
    """`{format, data, split, rows, task, metrics: {name: {value, low, high}}}` of a model on one split of new data.

    Args:
        predictor: the model.
        path: the data.
        label: label columns where they have another name than in training.
        split: which one, where the data have several; default test.
        seed: of the bootstrap.
        options: other fields of `DataSpec`.
        reporter: told how far it is.

    Raises:
        DataError: the data cannot be read, have no label, or none that the model knows.
    """
    if label:
        predictor = replace(predictor, schema=replace(predictor.schema, label=label))
    dataset = predictor.read(path, options=options)
    name = _split(dataset, split)
    _require_labels(dataset, name, predictor)
    require_whole(dataset, name)
    left_out = bad_sample_facts(dataset)
    if left_out["rows"]:
        reporter.say(f"warning: {left_out['rows']:,} of {left_out['of']:,} rows are bad and left out")
    reporter.phase("evaluate", f"{len(dataset.splits[name]):,} rows of {path} ({name})")
    targets = dataset.targets(name)
    known = usable_rows(targets, predictor.schema.task)
    if not known.any():
        raise DataError(
            f"{path}: no row of the column {predictor.schema.label[0]!r} holds a label that the model knows, such as "
            f"{', '.join(predictor.schema.classes[:3]) or 'a number'}"
        )
    if not known.all():
        reporter.say(f"warning: {int((~known).sum()):,} rows have no label that the model knows, and do not count")
    reporter.begin("scoring", len(targets), "rows")
    parts = []
    for scores in predictor.score_split(dataset, name):
        parts.append(scores)
        reporter.advance(len(scores))
    reporter.end()
    scored = Scored(scores=np.concatenate(parts), targets=targets, rows=dataset.splits[name].rows)
    schema = predictor.schema
    question = Question(task=schema.task, classes=schema.classes, targets=schema.label, seed=seed)
    content = {"format": FORMAT, "data": path, "split": name, "rows": len(targets), "task": predictor.schema.task}
    content |= {"bad_samples": left_out} if dataset.skipped is not None else {}
    each = question.per_target(scored)
    content |= {"per_target": each} if each else {}
    return json_ready({**content, "primary": question.primary, "metrics": question.score(scored)})


def _split(dataset: Dataset, wanted: str | None) -> str:
    if wanted is not None and wanted not in dataset.splits:
        raise DataError(f"--split: the data has no {wanted!r} split{suggest(wanted, dataset.splits)}")
    if wanted is not None:
        return wanted
    return "test" if "test" in dataset.splits else next(iter(dataset.splits))


def _require_labels(dataset: Dataset, split: str, predictor: Predictor) -> None:
    labels, part = predictor.schema.label, dataset.splits[split]
    if not labels:
        raise DataError(f"{predictor.folder}: the model does not say which column held the label; name it with --label")
    for name in labels:
        if name not in part.column_names:
            raise DataError(f"--label: {part.file} has no column called {name!r}{suggest(name, part.column_names)}")
