"""The main job on embedded samples: real data that is on every machine, and models that need no network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from regraft.config.data import DataSpec
from regraft.config.parse import parse_one
from regraft.config.recipe import ModelSpec, RecipeSpec, TrainSpec, read_recipe
from regraft.core import Recipe, Stage, fit
from regraft.data.encode import encode_split
from regraft.data.images import ImagePreprocessor
from regraft.data.read import load
from regraft.data.sources import Examples
from regraft.errors import ConfigError, suggest
from regraft.losses.supervised import objective_for
from regraft.models.networks import ConvNet
from regraft.phases.opening import open_data, require_new
from regraft.phases.path import job_recipe, resume_job, run_job
from regraft.phases.progress import Reporter, Silent
from regraft.phases.rundir import RECIPE, RunDirectory
from regraft.phases.training import StepCounter, builder

DEMOS = ("stdlib-docstrings", "digits", "wine", "diabetes")
BUDGETS = {"stdlib-docstrings": "90s", "digits": "40s", "wine": "20s", "diabetes": "20s"}
PRETRAIN_STEPS, SIDE = 300, 8


def run_demo(sample: str, out: Path, *, budget: str | None = None, reporter: Reporter | None = None) -> RunDirectory:
    """The main job on an embedded sample, into a new run directory.

    Args:
        sample: stdlib-docstrings (text, MiniLM), digits (images, a network pretrained here), wine or diabetes (tables).
        out: the run directory.
        budget: such as "60s"; every sample has its own default.
        reporter: told what is going on.

    Raises:
        ConfigError: there is no such sample.
    """
    require_sample(sample)
    reporter = reporter or Silent()
    spec = demo_recipe(sample, budget=budget)
    require_new(out)
    module = module_for(spec, reporter)
    dataset = open_data(spec, reporter, module=module)
    return run_job(spec, out, reporter=reporter, module=module, dataset=dataset)


def require_sample(sample: str) -> None:
    """ConfigError for a sample that does not exist."""
    if sample not in DEMOS:
        raise ConfigError(f"--sample: no sample is called {sample!r}{suggest(sample, DEMOS)}")


def demo_recipe(sample: str, *, budget: str | None = None) -> RecipeSpec:
    """The recipe of a demo."""
    model = {"stdlib-docstrings": ModelSpec(name="minilm"), "digits": ModelSpec(image_size=SIDE)}.get(
        sample, ModelSpec()
    )
    path = "digits-5-9" if sample == "digits" else sample
    return job_recipe(DataSpec(path=path), model, budget=budget or BUDGETS[sample])


def fresh_folder(sample: str) -> Path:
    """`runs/demo-SAMPLE`, or with the first number behind it that is free."""
    require_sample(sample)
    plain = Path("runs") / f"demo-{sample}"
    if not plain.exists():
        return plain
    number = 2
    while (numbered := plain.with_name(f"{plain.name}-{number}")).exists():
        number += 1
    return numbered


def resume_any(path: Path, *, reporter: Reporter, ignore_errors: bool = False) -> RunDirectory:
    """Go on with a run of the main job or of a recipe with stages."""
    from regraft.phases.train import is_training_run, resume_training

    run = RunDirectory.open(path)
    if is_training_run(path):
        return resume_training(path, reporter=reporter)
    spec = read_recipe(run.path / RECIPE)
    if ignore_errors and not spec.ignore_audit_errors:
        from regraft.config.recipe import dump_recipe

        run.write_text(RECIPE, dump_recipe(spec.replaced(ignore_audit_errors=True)))
    return resume_job(path, reporter=reporter, module=module_for(spec, reporter))


# ---- the network of the digits demo


def module_for(spec: RecipeSpec, reporter: Reporter) -> nn.Module | None:
    """The network that a demo recipe adapts and no name stands for; None for every other recipe."""
    model = spec.main_model()
    if spec.main_data().path != "digits-5-9" or model.name is not None or model.network is not None:
        return None
    return pretrained_on_digits(reporter, seed=spec.seed)


def pretrained_on_digits(reporter: Reporter, *, seed: int = 0, steps: int = PRETRAIN_STEPS) -> nn.Module:
    """A small convolutional network trained on the handwritten digits 0 to 4; a function of the seed."""
    reporter.phase("pretrain", "a small network on the digits 0 to 4, to be grafted onto 5 to 9")
    dataset = load(DataSpec(path="digits-0-4"))
    encoded = encode_split(dataset, "train", ImagePreprocessor.plain(dataset.schema.inputs[0], (SIDE, SIDE)))
    targets = dataset.targets("train")
    network = ConvNet(width=16, dropout=0.1).build((3, SIDE, SIDE), len(dataset.schema.classes), seed=seed)
    options = TrainSpec(batch_size=64, optimizer=parse_one({"AdamW": {"lr": 2e-3}}, "optimizer"))
    stage = Stage(
        name="pretrain",
        model=network,
        source=Examples(encoded, targets, batch_size=options.batch_size, seed=seed),
        objective=objective_for(dataset.schema.task),
        update=builder(options),
        steps=steps,
    )
    reporter.begin("pretrain", steps, "steps")
    fit(Recipe(model=network, stages=(stage,)), seed=seed, hooks=(StepCounter(reporter.advance),))
    reporter.end()
    network.eval()
    held_out = encode_split(dataset, "test", ImagePreprocessor.plain(dataset.schema.inputs[0], (SIDE, SIDE)))
    with torch.inference_mode():
        guesses = network(held_out.collate(np.arange(len(held_out)))["x"]).argmax(1).numpy()
    reporter.say(f"accuracy on digits 0 to 4 it never saw: {(guesses == dataset.targets('test')).mean():.4f}")
    return network
