"""Advice on the candidates of a race: each is looked at as the recipe that it would be trained by."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import Tensor, nn

from regraft.config.recipe import CandidateSpec, ProbeSpec, RecipeSpec
from regraft.data.encoded import Encoded
from regraft.errors import ConfigError, Conflict, ModelError
from regraft.phases.advice.lint import advise, sentences
from regraft.phases.advice.situation import Finding, Situation, facts_of
from regraft.phases.training import supervised_recipe


def advice_on(
    candidates: Sequence[CandidateSpec],
    spec: RecipeSpec,
    model: nn.Module,
    *,
    pretrained: Sequence[nn.Parameter],
    encoded: Encoded,
    targets: Tensor,
    task: str,
    classes: tuple[str, ...],
    modality: str,
) -> list[str]:
    """A sentence for each finding, with the candidates it is about; nothing is trained, and nothing refused.

    Args:
        candidates: of the race; the probe is passed over.
        spec: the recipe of the job.
        model: what the candidates start from, with a head that was fitted.
        pretrained: the parameters of `model` that were pretrained.
        encoded: the training rows.
        targets: theirs.
        task: binary, multiclass, multilabel or regression.
        classes: names of the classes.
        modality: text, image or table.
    """
    names = {id(p) for p in pretrained}
    kept = [name for name, p in model.named_parameters() if id(p) in names]
    found: dict[Finding, list[str]] = {}
    for candidate in candidates:
        if candidate.steps == 0:
            continue
        own = copy.deepcopy(model)
        try:
            recipe = supervised_recipe(own, encoded, targets, task=task, candidate=candidate, seed=spec.seed)
        except (ConfigError, Conflict, ModelError):
            continue  # the race says why it does not take part
        by_name = dict(own.named_parameters())
        parts = [by_name[name] for name in kept if name in by_name]
        seen = Situation(
            spec=spec.replaced(train=candidate.train, techniques=candidate.techniques, probe=spec.probe or ProbeSpec()),
            rows=len(encoded),
            classes=classes,
            modality=modality,
            stages=tuple(facts_of(stage, parts, steady=candidate.train.steady) for stage in recipe.stages),
        )
        for finding in advise(seen):
            found.setdefault(finding, []).append(candidate.name)
    return [f"{', '.join(dict.fromkeys(found[finding]))}: {sentences([finding])[0]}" for finding in found]
