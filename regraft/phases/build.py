"""From a recipe file to objects: every data set encoded for the main model, every model built, every technique applied."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from torch import nn

from regraft.config.data import DataSpec
from regraft.config.recipe import MAIN, ModelSpec, ProbeSpec, RecipeSpec, StageSpec
from regraft.core import Hook, Recipe, Stage, Technique, compile
from regraft.core.protocols import Source
from regraft.data.cache import cache_folder
from regraft.data.dataset import LANGUAGE, Dataset
from regraft.data.encode import AnyPreprocessor
from regraft.data.images import ImagePreprocessor
from regraft.data.read import load, load_as
from regraft.data.sounds import SoundPreprocessor
from regraft.data.store import Keeping
from regraft.data.text import TextPreprocessor
from regraft.errors import ConfigError, DataError
from regraft.losses.criterion import objective_of, question_of
from regraft.models.graft import Graft
from regraft.models.networks import Network
from regraft.phases.choose.features import LAST, Features, all_features
from regraft.phases.choose.fit import Problem
from regraft.phases.choose.portion import Portion, Room, choose_in, widths_of
from regraft.phases.choose.probe import Heights, choose_penalty, fitted
from regraft.phases.entries import Entry, joined_schema
from regraft.phases.materials import Materials, extra_models, prepare, readable_model
from regraft.phases.teachers import earlier_run, from_earlier_run
from regraft.phases.training import builder, examples, set_steady

UNLABELLED = "unlabelled"
MOST_BYTES = 2 << 30  # of the probe's features that are left in the cache for later runs and other trials


@dataclass(frozen=True, kw_only=True)
class Assembled:
    """A recipe file as objects."""

    spec: RecipeSpec
    recipe: Recipe  # compiled; its `model` is the one that is saved
    base: nn.Module  # the main model before any technique
    entries: Mapping[str, Entry]  # of `data:`, by name, all encoded for the main model
    sentences: tuple[str, ...] = ()  # what was decided on the way

    @property
    def main(self) -> Entry:
        """The entry that is adapted to."""
        return self.entries[MAIN]

    @property
    def task(self) -> str:
        """Of all entries that are trained on."""
        return self.main.task


@dataclass(frozen=True, kw_only=True)
class Ground:
    """What recipes with the same `data:`, `models:`, `probe:` and seed share: the data, and the models before training."""

    entries: Mapping[str, Entry]
    base: nn.Module
    models: Mapping[str, nn.Module]
    sentences: tuple[str, ...] = ()


def assemble(
    spec: RecipeSpec,
    *,
    module: nn.Module | None = None,
    hooks: Callable[[StageSpec, Entry], Sequence[Hook]] = lambda stage, entry: (),
    ground: Ground | None = None,
) -> Assembled:
    """The data, models, stages and techniques of a recipe.

    Args:
        spec: the recipe; it must have at least one stage.
        module: the main model, where it is a Python module rather than a name.
        hooks: of a stage, given what the recipe says of it and the entry it trains on.
        ground: its data and models where they are there already; the models will be trained.

    Raises:
        ConfigError: a stage names an unknown entry, entries do not fit together, or a model cannot be used here.
        DataError: an entry cannot be read.
        Conflict: two techniques exclude each other.
    """
    ground = lay_ground(spec, module) if ground is None else ground
    if spec.train.steady:
        set_steady(ground.base)
    entries = ground.entries
    stages = tuple(_stage(stage, spec, ground.base, entries[stage.data], hooks) for stage in spec.stages)
    plain = Recipe(model=ground.base, stages=stages, models=ground.models, sources=_sources(spec, entries))
    recipe = compile(plain, [cast(Technique, technique) for technique in spec.techniques])
    return Assembled(spec=spec, recipe=recipe, base=ground.base, entries=entries, sentences=ground.sentences)


def lay_ground(
    spec: RecipeSpec, module: nn.Module | None = None, *, entries: Mapping[str, Entry] | None = None
) -> Ground:
    """The data and models of a recipe, the main one with its head.

    Args:
        spec: the recipe.
        module: the main model, where it is a Python module rather than a name.
        entries: its data, where it was read and encoded before.

    Raises:
        ConfigError, DataError: as `assemble`.
    """
    sentences: list[str] = []
    trained = _entries_of_stages(spec)
    entries = load_entries(spec, trained, module, sentences) if entries is None else entries
    main = entries[MAIN]
    base = main_model(spec, main, module, sentences)
    models = {
        name: _other_model(name, entry, spec, main, sentences) for name, entry in extra_models(spec.models).items()
    }
    return Ground(entries=entries, base=base, models=models, sentences=tuple(sentences))


def _entries_of_stages(spec: RecipeSpec) -> frozenset[str]:
    """Names of the entries of `data:` that a stage trains on."""
    if not spec.stages:
        raise ConfigError("stages: a recipe to train needs at least one, such as [{name: adapt, steps: 500}], got none")
    names = [stage.name for stage in spec.stages]
    if len(set(names)) < len(names):
        raise ConfigError(f"stages: every stage needs a name of its own, got {', '.join(names)}")
    for stage in spec.stages:
        if stage.data not in spec.data:
            raise ConfigError(
                f"stages: {stage.name!r} trains on the entry {stage.data!r}, but `data:` has {', '.join(sorted(spec.data))}"
            )
    return frozenset(stage.data for stage in spec.stages)


# ---- data


def load_entries(
    spec: RecipeSpec, trained: frozenset[str], module: nn.Module | None, sentences: list[str]
) -> dict[str, Entry]:
    """Every entry of `data:`, encoded for the main model, with one list of classes for all that are trained on.

    An entry that no stage trains on may come without labels: it is then read with the schema of `main`.
    """
    first = load(spec.main_data())
    datasets = {MAIN: first}
    for name, data in spec.data.items():
        if name != MAIN:
            datasets[name] = load(data) if name in trained else _loose(name, data, first, sentences)
    schema = joined_schema({name: datasets[name].schema for name in datasets if name in trained | {MAIN}})
    if schema.classes != first.schema.classes:
        sentences.append(f"the data sets are trained on with one list of {len(schema.classes)} classes")
    main = prepare(_with_schema(first, schema), spec.main_data(), spec.main_model(), module)
    entries = {MAIN: Entry(name=MAIN, materials=main, scale=main.scale, own_classes=first.schema.classes)}
    for name, dataset in datasets.items():
        if name == MAIN:
            continue
        own = dataset.schema.classes
        shared = (
            name in trained or (dataset.schema.task == schema.task == "regression") or set(own) <= set(schema.classes)
        )
        data = spec.data[name]
        materials = Materials(
            _with_schema(dataset, schema) if shared else dataset,
            _fitting(main.preprocessor, name, dataset, first),
            limits={"train": data.limit, "valid": data.limit_valid, "test": data.limit_test},
            seed=data.seed,
        )
        entries[name] = Entry(name=name, materials=materials, scale=main.scale, own_classes=own, shared=shared)
    return entries


def _loose(name: str, data: DataSpec, main: Dataset, sentences: list[str]) -> Dataset:
    """An entry that no stage trains on; its labels may be missing."""
    filled = data
    if main.schema.modality == "audio":
        filled = data.replaced(label=data.label or main.schema.label, audio=data.audio or main.schema.inputs[0])
    elif main.schema.modality != "image":
        given = {"label": data.label or main.schema.label}
        given |= (
            {"text": data.text or main.schema.inputs}
            if main.schema.modality == "text"
            else {"features": data.features or main.schema.inputs}
        )
        filled = data.replaced(**given)
    try:
        return load(filled)
    except DataError as reason:
        try:
            dataset = load_as(data, main.schema)
        except DataError:
            raise reason from None
        sentences.append(f"data.{name} is read without labels ({reason})")
        return dataset


def _with_schema(dataset: Dataset, schema: Any) -> Dataset:
    """The data set with the classes and the task that all entries share."""
    return replace(dataset, schema=replace(dataset.schema, classes=schema.classes, task=schema.task))


def _fitting(preprocessor: AnyPreprocessor, name: str, dataset: Dataset, main: Dataset) -> AnyPreprocessor:
    """The main model's preprocessor, reading the columns of another entry."""
    theirs, ours = dataset.schema, main.schema
    if theirs.modality != ours.modality:
        raise ConfigError(
            f"data.{name}: must be of the modality of data.main, {ours.modality}, for one model reads both; got {theirs.modality}"
        )
    if theirs.modality in ("image", "audio"):
        return replace(cast(ImagePreprocessor | SoundPreprocessor, preprocessor), column=theirs.inputs[0])
    if theirs.modality == "text" and len(theirs.inputs) == len(ours.inputs):
        return replace(cast(TextPreprocessor, preprocessor), columns=theirs.inputs)
    missing = sorted(set(ours.inputs) - set(theirs.inputs))
    if missing:
        raise ConfigError(f"data.{name}: must have the columns of data.main, and lacks {', '.join(missing)}")
    return preprocessor


def _sources(spec: RecipeSpec, entries: Mapping[str, Entry]) -> dict[str, Source]:
    """What techniques can ask for by name: the training rows of each entry, and the rows of `main` that have no label."""
    made: dict[str, Source] = {}
    for name, entry in entries.items():
        split = entry.drawn
        targets = entry.targets(split) if entry.labelled(split) else None
        made[name] = examples(entry.encoded(split), targets, spec.train, seed=spec.seed)
    if UNLABELLED in entries[MAIN].materials.dataset.splits and UNLABELLED not in made:
        encoded = entries[MAIN].encoded(UNLABELLED)
        made[UNLABELLED] = examples(encoded, None, spec.train, seed=spec.seed)
    return made


def _stage(
    stage: StageSpec,
    spec: RecipeSpec,
    model: nn.Module,
    entry: Entry,
    hooks: Callable[[StageSpec, Entry], Sequence[Hook]],
) -> Stage[Any]:
    targets, schema = entry.targets("train"), entry.materials.dataset.schema
    source = examples(entry.encoded("train"), targets, spec.train, seed=spec.seed, longest_first=True)
    return Stage(
        name=stage.name,
        model=model,
        source=source,
        objective=objective_of(spec.train.loss, question_of(entry.task, targets, entry.num_outputs, schema.questions)),
        update=builder(spec.train),
        steps=stage.steps,
        hooks=tuple(hooks(stage, entry)),
    )


# ---- models


def main_model(spec: RecipeSpec, main: Entry, module: nn.Module | None, sentences: list[str]) -> nn.Module:
    """The model that is adapted: a network with fresh weights, or a pretrained one with a head, the probe's if asked for."""
    chosen = spec.main_model()
    if module is None and chosen.name is None:
        model = _network(MAIN, chosen, main, spec.seed)
        return with_probe_head(model, main, chosen, spec.probe, spec.seed, sentences) if spec.probe else model
    model = readable_model(chosen, main.materials, module, seed=spec.seed)
    if spec.probe is not None:
        return with_probe_head(model, main, chosen, spec.probe, spec.seed, sentences)
    return _reading(model, chosen, main, spec.seed) if chosen.depths or chosen.pools else model


def _network(name: str, spec: ModelSpec, main: Entry, seed: int) -> nn.Module:
    if main.materials.dataset.schema.modality == "text":
        raise ConfigError(f"models.{name}: text needs a pretrained encoder; give a `name`, such as minilm")
    if not isinstance(spec.network, Network):
        raise ConfigError(f"models.{name}: give a `name` or a `network`, such as ConvNet for images and MLP for tables")
    return spec.network.build(main.example_shape, main.num_outputs, seed=seed)


def _reading(model: nn.Module, spec: ModelSpec, main: Entry, seed: int) -> nn.Module:
    """The model with a fresh head at the depths and pools of the recipe, cut off above them."""
    if not isinstance(model, Graft):
        raise ConfigError(f"models.main.depths: only a grafted model can be read at depths, got {type(model).__name__}")
    depths, pools = spec.depths or model.depths, spec.pools or ("mean",)
    reading = model.reading(depths=depths, pools=pools, num_outputs=main.num_outputs, seed=seed)
    reading.cut_above()
    return reading


def with_probe_head(
    model: nn.Module, main: Entry, chosen: ModelSpec, options: ProbeSpec, seed: int, sentences: list[str]
) -> nn.Module:
    """The model with a head fitted to convergence on its frozen features of the training rows.

    Depths and pools are those of the recipe where it names them, else the probe chooses them out of fold.
    """
    if not hasattr(model, "set_head") or not hasattr(model, "features"):
        raise ConfigError(f"probe: a {type(model).__name__} with fresh weights has no features to probe; leave it out")
    if main.task == LANGUAGE:
        raise ConfigError(f"probe: a {LANGUAGE} has no head to be fitted on features; leave `probe:` out")
    problem = Problem(task=main.task, num_outputs=main.num_outputs)
    precision = "fp32" if options.precision == "auto" else options.precision
    encoded, targets = main.encoded("train"), main.targets("train")
    given = bool(chosen.depths or chosen.pools)
    if given:
        model = _reading(model, chosen, main, seed)
    keeping = Keeping(max_bytes=MOST_BYTES, folder=cache_folder("stores"))
    pools = chosen.pools or None
    room = Room(
        widths=widths_of(model, encoded, precision=precision, pools=pools), targets=targets, problem=problem, seed=seed
    )

    def read(portion: Portion) -> Features:
        kept = replace(keeping, half=portion.half)
        some = portion.of(encoded)
        return all_features(model, some, precision=precision, pools=pools, reads=portion.reads, keeping=kept)

    if given:
        heights = Heights(reads=cast(Graft, model).reads)
        portion = room.to_fit(heights.reads)
        features = read(portion)
    else:
        found = choose_in(room, read, depths=options.depths)
        sentences += found.sentences
        heights, portion, features = found.choice.chosen, found.portion, found.features
        if isinstance(model, Graft) and heights.reads != (LAST,):
            model = model.reading(depths=heights.depths, pools=heights.pools, num_outputs=main.num_outputs)
            cast(Graft, model).cut_above()
    targets = portion.targets(targets)
    l2 = choose_penalty(features, heights.reads, targets, problem, folds=options.folds, seed=seed)
    head = fitted(heights, heights.of(problem, features), targets, problem, l2=l2).head
    cast(Any, model).set_head(head.weight, head.bias, mean=head.mean, deviation=head.deviation)
    return model


def _other_model(name: str, entry: ModelSpec, spec: RecipeSpec, main: Entry, sentences: list[str]) -> nn.Module:
    """A teacher or the like: an earlier run's model, a pretrained one with a head fitted by the probe, or a fresh network."""
    folder = earlier_run(entry.name) if entry.name else None
    if folder is not None:
        return from_earlier_run(folder, name, main)
    if entry.name is None:
        sentences.append(f"models.{name} is a network with fresh weights")
        return _network(name, entry, main, spec.seed)
    model = readable_model(entry, main.materials, seed=spec.seed)
    sentences.append(f"models.{name} has no head for this task, so one is fitted on its frozen features")
    options = spec.probe or ProbeSpec()
    return with_probe_head(model, main, entry, options, spec.seed, sentences).eval()
