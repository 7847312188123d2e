"""From arrays to `metrics.json`: the parts of the document that are computed, and the document put together and checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from regraft.phases.evaluate.classification import confusion_matrix, per_class
from regraft.phases.evaluate.examine import confused_pairs, hard_examples
from regraft.phases.evaluate.metrics import PRIMARY, evaluate, paired_bootstrap, usable_rows
from regraft.phases.evaluate.reliability import reliability_bins

METRICS_FORMAT = "regraft.metrics/1"
LARGEST_CONFUSION = 200  # classes; above that the matrix would dwarf the document, and the confused pairs stand for it


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What a model said about the rows of one split: probabilities or predictions beside the targets."""

    scores: np.ndarray  # (N, C) probabilities, or (N,) predictions for regression, (N, T) of several targets
    targets: np.ndarray  # as `Dataset.targets` gives them, missing ones included
    rows: np.ndarray  # (N,) the numbers or file names by which the user knows the rows


@dataclass(frozen=True)
class Stated(Mapping[str, Scored]):
    """Splits by name, each computed when it is asked for: of thousands of classes the probabilities take gigabytes."""

    outputs: dict[str, Callable[[], Scored]] = field(default_factory=dict[str, Callable[[], Scored]])

    def __getitem__(self, split: str) -> Scored:
        return self.outputs[split]()

    def __contains__(self, split: object) -> bool:
        return split in self.outputs

    def __iter__(self) -> Iterator[str]:
        return iter(self.outputs)

    def __len__(self) -> int:
        return len(self.outputs)


@dataclass(frozen=True, kw_only=True)
class Question:
    """What every metric depends on besides the scores."""

    task: str
    classes: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()  # names of the targets of a regression of several numbers
    seed: int = 0
    resamples: int = 1000

    @property
    def primary(self) -> str:
        """The metric that decides."""
        return PRIMARY[self.task]

    def score(self, scored: Scored) -> dict[str, dict[str, Any]]:
        """Every metric of one split with its interval."""
        return evaluate(
            scored.scores,
            scored.targets,
            task=self.task,
            classes=self.classes,
            seed=self.seed,
            resamples=self.resamples,
        )

    def per_target(self, scored: Scored) -> dict[str, dict[str, dict[str, Any]]]:
        """`{target: {metric: {value, low, high}}}` of a regression of several numbers; empty for other tasks."""
        if self.task != "regression" or scored.targets.ndim == 1:
            return {}
        one = replace(self, targets=())
        return {
            name: one.score(replace(scored, scores=scored.scores[:, t], targets=scored.targets[:, t]))
            for t, name in enumerate(self.targets)
        }

    def versus(self, ours: Scored, theirs: Scored) -> dict[str, Any]:
        """Paired difference of the primary metric, ours minus theirs, with its interval."""
        return paired_bootstrap(
            ours.scores,
            theirs.scores,
            ours.targets,
            task=self.task,
            classes=self.classes,
            seed=self.seed,
            resamples=self.resamples,
        )


def scored_splits(question: Question, splits: Mapping[str, Scored]) -> dict[str, dict[str, dict[str, Any]]]:
    """`{split: {metric: {value, low, high}}}`."""
    return {name: question.score(scored) for name, scored in splits.items()}


def details(
    question: Question,
    scored: Scored,
    *,
    shown: Sequence[str] | None = None,
    shown_as: Literal["text", "file"] = "text",
    top: int = 20,
) -> dict[str, Any]:
    """`per_class` or `per_target`, `confusion`, `confused_pairs`, `hard_examples`: what stands behind the numbers of one split.

    `shown` (N,) is the text or file name of each row; the hardest rows carry theirs under the key `shown_as`, cut to 500
    characters.
    """
    task, classes = question.task, question.classes
    hard = hard_examples(scored.scores, scored.targets, scored.rows, top, task=task, classes=classes)
    if shown is not None:
        place = {row: i for i, row in enumerate(np.asarray(scored.rows).tolist())}
        hard = [example | {shown_as: str(shown[place[example["row"]]])[:500]} for example in hard]
    if task not in ("binary", "multiclass"):
        each = question.per_target(scored)
        return {"hard_examples": hard} | ({"per_target": each} if each else {})
    keep = usable_rows(scored.targets, task)
    predicted, targets = scored.scores[keep].argmax(1), scored.targets[keep].astype(np.int64)
    counts = confusion_matrix(predicted, targets, len(classes))
    return {
        "per_class": per_class(predicted, targets, classes),
        "confusion": counts.tolist() if len(classes) <= LARGEST_CONFUSION else None,
        "confused_pairs": confused_pairs(counts, classes),
        "hard_examples": hard,
    }


def reliability_of(question: Question, before: Scored, after: Scored, *, split: str) -> dict[str, Any]:
    """`{split, before: [bins], after: [bins]}` of the same rows before and after calibration."""
    bins = {}
    for name, scored in (("before", before), ("after", after)):
        keep = usable_rows(scored.targets, question.task)
        bins[name] = reliability_bins(scored.scores[keep], scored.targets[keep], task=question.task)
    return {"split": split, **bins}


def metrics_document(
    question: Question,
    *,
    final: Mapping[str, Scored],
    probe: Mapping[str, Scored],
    last_layer_probe: Mapping[str, Scored],
    shown: Sequence[str] | None = None,
    shown_as: Literal["text", "file"] = "text",
    extra: Mapping[str, Any],
) -> dict[str, Any]:
    """The content of `metrics.json`, ready for `json.dump(..., allow_nan=False)`.

    Args:
        question: task, classes, seed.
        final: the finished model on "test" and "valid"; details are of "test", or of the last split there is.
        probe: the all-depth probe on the same splits, the same rows in the same order.
        last_layer_probe: the probe on the last layer alone; may be empty.
        shown: text or file name of each row of the detailed split, for the hardest examples.
        shown_as: which of the two.
        extra: everything that is not computed from scores, by its key in the document: `candidates`, `winner`, `reasons`,
            `calibration`, `latency`, `size`, `data`, `depth_curve`, ...; `probe` is merged into the probe's entry.
    """
    split = "test" if "test" in final else list(final)[-1]
    probe_facts = dict(extra.get("probe", {}))
    document: dict[str, Any] = {
        "format": METRICS_FORMAT,
        "task": question.task,
        "classes": list(question.classes),
        "primary": question.primary,
        "final": scored_splits(question, final),
        "probe": scored_splits(question, probe) | probe_facts,
        "last_layer_probe": scored_splits(question, last_layer_probe),
        "detailed_split": split,
    }
    for name, other in (("versus_probe", probe), ("versus_last_layer_probe", last_layer_probe)):
        if split in other:
            document[name] = question.versus(final[split], other[split])
    document |= details(question, final[split], shown=shown, shown_as=shown_as)
    document |= {key: value for key, value in extra.items() if key != "probe"}
    return json_ready(document)


def json_ready(value: Any) -> Any:
    """The same value as plain JSON: numpy scalars and arrays unwrapped, tuples as lists, NaN and infinity as None."""
    if isinstance(value, Mapping):
        return {str(key): json_ready(each) for key, each in value.items()}
    if isinstance(value, np.ndarray):
        return json_ready(value.tolist())
    if isinstance(value, list | tuple):
        return [json_ready(each) for each in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
