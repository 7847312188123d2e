"""Where the model before training comes from, for the section on forgetting of both kinds of run."""

from __future__ import annotations

from typing import Any

from torch import nn

from regraft.config.recipe import MAIN
from regraft.data.dataset import LANGUAGE
from regraft.phases.build import Assembled, load_entries
from regraft.phases.evaluate.forgetting import SOURCE, forgetting, sentence, unmeasured
from regraft.phases.job import Job
from regraft.phases.materials import readable_model

FRESH = "The network began with fresh weights, so there is no source domain that it could forget."
KEPT = "The pretrained network was not trained, only a head on its features, so nothing is forgotten."
OWN = "The network is a Python module whose weights before training were not kept, so forgetting cannot be measured."
TOKENS = "A language model has features of tokens, not of texts, so their drift is not measured; compare bits per token instead."
UNREADABLE = "The model has no features to read below its head, so forgetting cannot be measured."


def forgetting_of_path(job: Job, model: nn.Module, *, winner: str) -> dict[str, Any]:
    """The section of a run of the whole path, whose phases work on copies of the model as it came."""
    materials = job.materials
    if job.spec.main_model().name is None and job.module is None:
        return unmeasured(FRESH)
    if winner == "probe":
        return unmeasured(KEPT)
    source = None
    if SOURCE in job.spec.data:
        source = load_entries(job.spec, frozenset({MAIN}), job.module, [])[SOURCE]
    held_out = "test" if "test" in job.dataset.splits else "valid"
    return _told(job, forgetting(job.base, model, materials.encoded(held_out), source))


def forgetting_of_training(job: Job, made: Assembled, model: nn.Module) -> dict[str, Any]:
    """The section of a run by stages, which trains the model itself: the pretrained weights are read once more."""
    spec = job.spec.main_model()
    if spec.name is None:
        return unmeasured(FRESH if spec.network is not None else OWN)
    if made.task == LANGUAGE:
        return unmeasured(TOKENS)
    if not hasattr(model, "features"):
        return unmeasured(UNREADABLE)
    before = readable_model(spec, made.main.materials, seed=job.spec.seed)
    held_out = "test" if made.main.has("test") else "valid" if made.main.has("valid") else "train"
    return _told(job, forgetting(before, model, made.main.encoded(held_out), made.entries.get(SOURCE)))


def _told(job: Job, section: dict[str, Any]) -> dict[str, Any]:
    job.reporter.say(sentence(section))
    return section
