"""What fine-tuning has cost: how well the source task can still be read off the features, and how far the features have drifted.

The source is the entry `source` of `data:`. Its labels are read by a linear probe on the features before and after training, so
that it may have classes of its own (Davari et al. 2022, arXiv:2203.13381). Drift needs no labels: it is one minus the linear CKA
of features before and after on held-out rows of the main data (Kornblith et al. 2019, arXiv:1905.00414, eq. 4).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from regraft.data.encoded import Encoded
from regraft.data.some import Rows, spread
from regraft.models.graft import Graft
from regraft.phases.choose.features import LAST, Features, all_features, joined
from regraft.phases.choose.fit import Problem
from regraft.phases.choose.gram import best_score, block_gram
from regraft.phases.entries import Entry

SOURCE = "source"  # the entry of `data:` that a pretrained model must not forget
DRIFT_ROWS, SOURCE_ROWS = 256, 500
SCORES = {"binary": "accuracy", "multiclass": "accuracy", "multilabel": "balanced accuracy", "regression": "R squared"}


def linear_cka(one: Tensor, other: Tensor) -> float:
    """Linear centred kernel alignment of features (N, F) and (N, G): 1 where they are equal up to rotation and scale.

    From the (N, N) Gram matrices, in fp64. Features that do not vary have an alignment of 1 with such, else of 0.
    """
    grams = [x @ x.T for x in (each.double() - each.double().mean(0) for each in (one, other))]
    lengths = [float(gram.norm()) for gram in grams]
    if 0.0 in lengths:
        return float(lengths == [0.0, 0.0])
    return float((grams[0] * grams[1]).sum()) / (lengths[0] * lengths[1])


def unmeasured(why: str) -> dict[str, Any]:
    """The section of metrics.json where nothing can be said; `why` is a sentence."""
    return {"measured": False, "why": why}


def forgetting(before: nn.Module, after: nn.Module, held_out: Encoded, source: Entry | None) -> dict[str, Any]:
    """The section `forgetting` of metrics.json.

    Args:
        before: the model with its pretrained weights; it can be read at every depth that `after` has.
        after: the same, trained.
        held_out: rows of the main data that were not trained on.
        source: labelled data of the source, if there are any.
    """
    some = spread(held_out, DRIFT_ROWS)
    features = [_features(model, some, ("mean",)) for model in (before, after)]
    drift = {
        str(depth): max(0.0, 1.0 - linear_cka(features[0][depth, pool], features[1][depth, pool]))
        for depth, pool in sorted(features[0].keys() & features[1].keys())
    }
    top = list(drift.values())[-1]
    section: dict[str, Any] = {
        "measured": True,
        "drift": {
            "measure": "1 - linear CKA of the features before and after",
            "rows": len(some),
            "by_depth": drift,
            "top": top,
        },
        "source": None,
    }
    if source is None:
        section["why"] = (
            "The metric on the source domain cannot be measured, for the recipe names no data of it; give labelled rows of it as "
            "`data: {source: ...}`. The drift of the features needs none, and is no measure of quality."
        )
        return section
    return section | {"source": _of_source(before, after, source)}


def _of_source(before: nn.Module, after: nn.Module, source: Entry) -> dict[str, Any]:
    """Leave-one-out scores of a linear probe for the source's labels, before and after."""
    split = next(name for name in ("test", "valid", "train") if name in source.materials.dataset.splits)
    rows = spread(source.encoded(split), SOURCE_ROWS)
    targets = source.targets(split)[rows.rows]
    problem = Problem(task=source.task, num_outputs=source.num_outputs)
    scores = [best_score(block_gram(_read(model, after, rows)), targets, problem) for model in (before, after)]
    return {
        "metric": f"{SCORES[source.task]} of a linear probe, leave-one-out",
        "split": split,
        "rows": len(rows),
        "before": scores[0],
        "after": scores[1],
        "change": scores[1] - scores[0],
    }


def _read(model: nn.Module, like: nn.Module, rows: Rows) -> Tensor:
    """(N, F) what the head of `like` reads, of another model with the same depths."""
    if not isinstance(like, Graft):
        return _features(model, rows, ())[LAST]
    return joined(_features(model, rows, like.pools), like.reads)


def _features(model: nn.Module, rows: Rows, pools: tuple[str, ...]) -> Features:
    model.eval()
    with torch.no_grad():
        return all_features(model, rows, precision="fp32", pools=pools or None)


def sentence(section: Mapping[str, Any]) -> str:
    """What the section says, in one line."""
    if not section["measured"]:
        return str(section["why"])
    drift = f"the features of the top layer have drifted by {section['drift']['top']:.3f} (1 - linear CKA)"
    source = section["source"]
    if source is None:
        return f"{drift}; the metric on the source domain cannot be measured without data of it"
    return f"source: {source['metric']} {source['before']:.4f} before and {source['after']:.4f} after; {drift}"
