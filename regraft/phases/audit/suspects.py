"""Suspected label errors: rows whose label a model that never saw them finds unlikely (confident learning).

Northcutt, Jiang, Chuang, Confident Learning, 2021, arXiv:1911.00068: the confident joint, pruning by noise rate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from regraft.data.dataset import Dataset
from regraft.phases.audit.labels import with_merged
from regraft.phases.audit.parts import Part, parts_of, places
from regraft.phases.findings import Finding

MARGIN = 0.3  # probability by which another class must lead, at least, before a row is suspected
FEWEST = 8  # rows of a class below which its rows are not judged
RIDGE = 0.3  # penalty of the audit's own model, for rows scaled to length 1
SURE = 0.5  # a suspect has at most this share of the probability its label would have by chance (1 / classes) ...
WEAK, GOOD = 0.7, 0.85  # ... where the judge is right on GOOD of the rows; less below that, and none at WEAK
FINE = 0.9  # accuracy from which a judge needs no surplus: even if it is wrong each time, it names few rows
TAIL = (
    0.25,
    0.1,
    0.05,
)  # the same shares, at which unlikely labels are counted and compared with what the judge expects
SURPLUS, COUNTED = (
    0.3,
    3,
)  # share of the unlikely labels beyond the expected ones that betrays wrong labels; of so many at least
DOUBT = 0.05  # weight in the second fit of the rows suspected by the first


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """How far a judge of labels can be trusted."""

    accuracy: float  # share of the rows whose label it finds likeliest
    surplus: float  # of the labels it finds very unlikely, the share beyond what its own probabilities expect
    bound: float  # probability of the given label, times the number of classes, below which a row may be suspected


def trust(probabilities: np.ndarray, labels: np.ndarray) -> Verdict:
    """How far held-out probabilities (N, C) can be trusted to tell wrong labels (N,) from hard examples.

    On a hard task a calibrated judge expects p N labels of probability p and finds as many, so they say nothing; wrong
    labels do not ask how likely they are and stand out as a surplus. Without one the bound is 0 below an accuracy of FINE.
    """
    classes = probabilities.shape[1]
    own = probabilities[np.arange(len(labels)), labels] * classes
    accuracy = float((probabilities.argmax(axis=1) == labels).mean())
    surplus = 0.0
    for share in TAIL:
        seen = int((own < share).sum())
        expected = float(probabilities[probabilities * classes < share].sum())
        surplus = max(surplus, 1 - expected / seen if seen >= COUNTED else 0.0)
    reach = SURE * min(max((accuracy - WEAK) / (GOOD - WEAK), 0.0), 1.0)
    return Verdict(accuracy=accuracy, surplus=surplus, bound=reach if surplus >= SURPLUS or accuracy >= FINE else 0.0)


def suspects(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(rows suspected, class suggested for each) from held-out probabilities (N, C) and class ids (N,), none of them missing.

    The rows of `confident_suspects` whose own label is unlikely enough for the trust that the judge deserves.
    """
    flagged, suggested = confident_suspects(probabilities, labels)
    kept = probabilities[flagged, labels[flagged]] * probabilities.shape[1] < trust(probabilities, labels).bound
    return flagged[kept], suggested[kept]


def confident_suspects(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(rows suspected, class suggested for each) by the confident joint, however good the judge is.

    For classes i and j the confident joint counts rows of label i that are confidently j; that many rows of label i with
    the largest lead of j are suspected, if j is the likeliest class and leads by MARGIN (more where the judge is often wrong).
    """
    rows = np.arange(len(labels))
    own = probabilities[rows, labels]
    classes = probabilities.shape[1]
    counts = np.bincount(labels, minlength=classes)
    threshold = np.bincount(labels, weights=own, minlength=classes) / np.maximum(counts, 1)
    threshold[counts < FEWEST] = 2.0  # never reached
    confident = np.where(probabilities >= threshold, probabilities, -1.0)
    best = confident.argmax(axis=1)
    sure = confident[rows, best] >= 0
    joint = np.zeros((classes, classes))
    np.add.at(joint, (labels[sure], best[sure]), 1)
    joint *= (counts / np.maximum(joint.sum(axis=1), 1))[:, None]  # eq. 3: calibrated to the counts of the labels
    top = probabilities.argmax(axis=1)
    margin = max(MARGIN, 1.1 - float((top == labels).mean()))  # a judge that is often wrong must be surer
    found = []
    for given, other in zip(*np.nonzero(np.rint(joint)), strict=True):
        members = (
            np.flatnonzero((labels == given) & (top == other)) if given != other and counts[given] >= FEWEST else ()
        )
        if len(members):
            lead = probabilities[members, other] - own[members]
            kept = np.argsort(-lead, kind="stable")[: round(joint[given, other])]
            found.append(members[kept[lead[kept] >= margin]])
    flagged = np.sort(np.concatenate(found)) if found else np.empty(0, np.int64)
    return flagged, top[flagged]


def left_out_scores(
    kernel_or_features: np.ndarray, targets: np.ndarray, weights: np.ndarray, *, is_kernel: bool
) -> np.ndarray:
    """(N, C) predictions of ridge regression for each row from all the others, in closed form.

    With the hat matrix H of the weighted fit the left-out prediction is (H y - h y) / (1 - h), h its diagonal
    (Hastie, Tibshirani, Friedman, Elements of Statistical Learning, eq. 7.64).
    """
    import scipy.linalg

    if is_kernel:
        kernel = kernel_or_features + 1.0  # a constant feature
        solved = scipy.linalg.solve(kernel + np.diag(RIDGE / weights), np.eye(len(kernel)), assume_a="pos")
        hat = kernel @ solved
        leverage, fitted = np.diag(hat)[:, None], hat @ targets
    else:
        features = np.column_stack([kernel_or_features, np.ones(len(kernel_or_features))])
        weighted = features * weights[:, None]
        gram = features.T @ weighted + RIDGE * np.eye(features.shape[1])
        factor = scipy.linalg.cho_factor(gram)
        fitted = features @ scipy.linalg.cho_solve(factor, weighted.T @ targets)
        leverage = (features * scipy.linalg.cho_solve(factor, weighted.T).T).sum(axis=1)[:, None]
    return (fitted - leverage * targets) / np.maximum(1 - leverage, 1e-9)


def held_out_probabilities(values: np.ndarray, labels: np.ndarray, *, is_kernel: bool) -> np.ndarray:
    """(N, C) probabilities of each row's class from the other rows: ridge scores, softened by one temperature.

    Fitted twice: rows suspected by the first fit hardly count in the second, so wrong labels do not vouch for each other.
    """
    targets = np.eye(int(labels.max()) + 1)[labels]
    weights = np.ones(len(labels))
    first = _softened(left_out_scores(values, targets, weights, is_kernel=is_kernel), labels)
    weights[confident_suspects(first, labels)[0]] = DOUBT
    return _softened(left_out_scores(values, targets, weights, is_kernel=is_kernel), labels)


def suspect_findings_from(
    dataset: Dataset, probabilities: Mapping[str, np.ndarray], rows: Mapping[str, np.ndarray] | None = None
) -> list[Finding]:
    """Suspected label errors of a data set that was audited without them; see `given_suspects`."""
    return given_suspects(dataset, with_merged(parts_of(dataset)), probabilities, rows)


def given_suspects(
    dataset: Dataset,
    parts: tuple[Part, ...],
    probabilities: Mapping[str, np.ndarray],
    rows: Mapping[str, np.ndarray] | None = None,
) -> list[Finding]:
    """Suspected label errors by held-out probabilities (N, C) that the caller has, classes as in the schema.

    `rows` (N,) says which rows of a split they are of, by their place in it; a split that is not named there is whole.
    """
    judged = rows or {}
    findings = []
    classes = dataset.schema.classes
    for part in parts:
        pieces = [
            name for name in probabilities if name in dataset.splits and dataset.splits[name].file == part.split.file
        ]
        if not pieces:
            continue
        where = (places(part, dataset.splits[name])[judged.get(name, slice(None))] for name in pieces)
        index = np.concatenate(list(where))
        scores = np.concatenate([np.asarray(probabilities[name], dtype=np.float64) for name in pieces])
        code = {label: c for c, label in enumerate(part.labels)}
        merged = np.array([part.merged[code[name]] if name in code else -1 for name in classes])
        wanted = np.unique(merged[merged >= 0])
        summed = np.stack([scores[:, merged == c].sum(axis=1) for c in wanted], axis=1)
        place = np.full(len(part.labels) + 1, -1)
        place[wanted] = np.arange(len(wanted))
        labels = place[part.clean_codes[index]]
        known = np.flatnonzero((labels >= 0) & part.usable[index])
        if len(known):
            judge = "a probe that never saw them"
            findings += suspect_findings(part, index[known], summed[known], labels[known], codes=wanted, judge=judge)
    return findings


def suspect_findings(
    part: Part,
    rows: np.ndarray,
    probabilities: np.ndarray,
    labels: np.ndarray,
    *,
    codes: np.ndarray,
    judge: str,
    scope: str = "",
) -> list[Finding]:
    """The finding about suspected labels, or a hint without rows where the judge cannot tell them from hard examples.

    `rows` (N,) are indices in the part, `probabilities` (N, C) and `labels` (N,) theirs, `codes` (C,) the label codes.
    """
    flagged, suggested = suspects(probabilities, labels)
    if len(flagged):
        order = np.argsort(rows[flagged])
        names = [part.labels[c] for c in codes[suggested[order]].tolist()]
        message = (
            f"{len(flagged):,} labels in {part.name} look wrong to {judge}{scope}; look at them, `suggested` "
            "names the likelier label"
        )
        return [part.finding("suspected-label-error", "warning", message, rows[flagged[order]], suggested=names)]
    verdict = trust(probabilities, labels)
    doubted = len(confident_suspects(probabilities, labels)[0])
    if verdict.bound or not doubted:
        return []
    message = (
        f"{doubted:,} labels in {part.name} surprise {judge}{scope}, but it is right on {verdict.accuracy:.0%} of the rows "
        "and about as many surprises are to be expected of hard examples, so none is called wrong; check a few by hand"
    )
    return [part.finding("labels-hard-to-judge", "info", message)]


def _softened(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Softmax of scores at the temperature of the best likelihood."""
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    rows = np.arange(len(labels))

    def cost(log_factor: float) -> float:
        return -float(log_softmax(scores * np.exp(log_factor), axis=1)[rows, labels].mean())

    found = minimize_scalar(cost, bounds=(-1.0, 5.0), method="bounded")
    return np.exp(log_softmax(scores * np.exp(found.x), axis=1))
