"""What can be said of the catalogue and of a recipe: names, fields with their domains, and where each value comes from."""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, cast, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from regraft.config.catalogue import CATALOGUE, find, names
from regraft.config.costs import cost_of, cost_sentence
from regraft.config.parse import dump_one, load_yaml, override
from regraft.config.recipe import RecipeSpec, recipe_from_tree
from regraft.config.spec import Named
from regraft.errors import ConfigError, suggest
from regraft.phases.opening import require_recipe

BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
ABSENT = object()  # a value that the recipe file does not give


# ---- the catalogue


def catalogue() -> list[dict[str, str]]:
    """`{family, name, what}` of everything a recipe can name; `what` is the first line of its docstring."""
    return [
        {"family": family, "name": name, "what": first_line(find(family, name))}
        for family in CATALOGUE
        for name in names(family)
    ]


def first_line(cls: type) -> str:
    """The first line of a docstring."""
    return (inspect.getdoc(cls) or "").partition("\n")[0]


def entry(name: str) -> dict[str, Any]:
    """`{family, name, doc, fields, source, cost, recipe}` of one part of the catalogue; `cost` as by `config.costs`.

    Raises:
        ConfigError: there is none of that name in any family.
    """
    every = {each: family for family in CATALOGUE for each in names(family)}
    folded = {each.casefold(): each for each in every}
    if name.casefold() not in folded:
        raise ConfigError(f"nothing in the catalogue is called {name!r}{suggest(name, every)}")
    found = folded[name.casefold()]
    cls = find(every[found], found)
    doc = inspect.getdoc(cls) or ""
    return {
        "family": every[found],
        "name": found,
        "doc": re.split(r"\n\n(?:Attributes|Example):", doc)[0],
        "fields": [_field(field_name, field, doc) for field_name, field in cls.model_fields.items()],
        "source": sources(doc),
        "cost": cost_of(found),
        "recipe": _example(every[found], found, doc),
    }


def entry_lines(found: Mapping[str, Any]) -> list[str]:
    """An entry of the catalogue for people."""
    lines = [f"{found['name']} ({found['family']})", "", *str(found["doc"]).splitlines(), ""]
    width = max((len(each["name"]) for each in found["fields"]), default=0)
    for each in found["fields"]:
        bounds = f", {each['bounds']}" if each["bounds"] else ""
        what = f"  {each['what']}" if each["what"] else ""
        lines.append(f"  {each['name']:<{width}}  {each['type']}{bounds}; {each['default']}{what}")
    lines += ["", f"Source: {'; '.join(found['source'])}"] if found["source"] else []
    lines += ["", cost_sentence(found["cost"])] if found["cost"] else []
    return [*lines, "", "In a recipe:", *(f"  {line}" for line in str(found["recipe"]).splitlines())]


def sources(doc: str) -> list[str]:
    """Papers that a docstring cites with their arXiv number, as `Foret et al. 2021, arXiv:2010.01412`."""
    name = r"[A-Z][\w'-]+"
    who = rf"{name}(?:(?:, | and |, and ){name})*(?: et al\.)?,? \d{{4}}[a-z]?, "
    return list(dict.fromkeys(re.findall(rf"(?:{who})?arXiv:\d{{4}}\.\d{{4,5}}", " ".join(doc.split()))))


def _field(name: str, field: FieldInfo, doc: str) -> dict[str, Any]:
    """Name, type, default, bounds and the line of the docstring about it."""
    about = re.search(rf"^\s+{re.escape(name)}: (.+(?:\n\s{{8,}}.+)*)", doc, re.MULTILINE)
    default = field.get_default(call_default_factory=True)
    shown = "required" if field.is_required() else f"default {_shown(default)}"
    bounds = [
        f"{words} {getattr(part, key):g}"
        for part in field.metadata
        for key, words in BOUNDS.items()
        if hasattr(part, key)
    ]
    return {
        "name": name,
        "type": type_name(field.annotation),
        "default": shown,
        "bounds": " and ".join(bounds),
        "what": " ".join(about.group(1).split()) if about else "",
    }


def type_name(annotation: Any) -> str:
    """A type as people write it: `int`, `str or null`, `list of str`, `one of a, b`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin in (Union, types.UnionType):
        return " or ".join("null" if each is type(None) else type_name(each) for each in arguments)
    if origin in (tuple, list, frozenset, set):
        inner = [each for each in arguments if each is not Ellipsis]
        return f"list of {type_name(inner[0])}" if inner else "list"
    if origin is dict:
        return f"mapping of {type_name(arguments[-1])}"
    if origin is not None and arguments:
        return type_name(arguments[0])
    return getattr(annotation, "__name__", str(annotation))


def _example(family: str, name: str, doc: str) -> str:
    """The recipe in the docstring, or the shortest one that names the part."""
    found = re.search(r"```yaml\n(.+?)```", doc, re.DOTALL)
    if found:
        return inspect.cleandoc(found.group(1))
    if family == "technique":
        return f"techniques:\n  - {name}"
    if family == "method":
        return f"search:\n  method: {name}\n  space: {{train.optimizer.AdamW.lr: {{log: [0.0001, 0.01]}}}}"
    options = _options(find(family, name))
    part = f"{{{family}: {{{name}: {options}}}}}"
    return f"models: {{main: {part}}}" if family == "network" else f"train: {part}"


def _options(cls: type[Named]) -> str:
    given = {
        name: field.get_default(call_default_factory=True)
        for name, field in cls.model_fields.items()
        if not field.is_required()
    }
    plain = {name: value for name, value in given.items() if isinstance(value, bool | int | float | str)}
    return yaml.safe_dump(plain, default_flow_style=True, sort_keys=False, width=200).strip() if plain else "{}"


# ---- a recipe


def read_tree(path: Path, overrides: Sequence[str]) -> tuple[dict[str, Any], RecipeSpec]:
    """(what the file says, the recipe it makes with the overrides)."""
    try:
        text = require_recipe(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as a recipe ({error})") from None
    tree = load_yaml(text, str(path))
    changed = load_yaml(text, str(path))
    for assignment in overrides:
        override(changed, assignment)
    return tree, recipe_from_tree(changed, str(path))


def values_of(path: Path, overrides: Sequence[str] = ()) -> list[dict[str, Any]]:
    """`{field, value, shown, from}` of every field of a recipe; `from` is default, recipe or override."""
    tree, spec = read_tree(path, overrides)
    given = {assignment.partition("=")[0] for assignment in overrides}
    return [
        {
            "field": name,
            "value": value,
            "shown": _shown(value),
            "from": "override" if name in given else "default" if said is ABSENT else "recipe",
        }
        for name, value, said in _leaves(spec, tree, "")
    ]


def _leaves(value: Any, tree: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    """(dotted path, plain value, what the file says there or ABSENT) of every leaf."""
    if isinstance(value, Named):
        name = type(value).__name__
        options = _below(tree, name) if isinstance(tree, Mapping) else ABSENT
        at = f"{path}.{name}" if not path.endswith(f".{name}") else path
        if not type(value).model_fields:
            yield at, name, tree
        yield from _fields(value, options, at)
    elif isinstance(value, BaseModel):
        yield from _fields(value, tree, path)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, _below(tree, str(key)), f"{path}.{key}")
    elif isinstance(value, tuple) and any(isinstance(item, BaseModel) for item in value):
        for index, item in enumerate(value):
            said = cast(Any, tree)[index] if isinstance(tree, list) and index < len(tree) else ABSENT
            yield from _leaves(item, said, path if isinstance(item, Named) else f"{path}.{index}")
    else:
        yield path, list(value) if isinstance(value, tuple) else value, tree


def _fields(spec: BaseModel, tree: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    for name, field in type(spec).model_fields.items():
        key = field.alias or name
        yield from _leaves(getattr(spec, name), _below(tree, key), f"{path}.{key}" if path else key)


def _below(tree: Any, key: str) -> Any:
    return cast(Any, tree)[key] if isinstance(tree, Mapping) and key in tree else ABSENT


def _shown(value: Any) -> str:
    """A value as YAML would say it, on one line."""
    if isinstance(value, Named):
        value = dump_one(value)
    if isinstance(value, tuple):
        value = list(value)
    if isinstance(value, BaseModel):
        return type(value).__name__
    try:
        text = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True)
    except yaml.YAMLError:
        return str(value)
    return text.removesuffix("...\n").strip()


def explained(path: Path, overrides: Sequence[str] = ()) -> list[str]:
    """The compiled nest of a recipe: what wraps what in each stage, or in each candidate of the race."""
    _, spec = read_tree(path, overrides)
    if spec.stages:
        from regraft.core import explain
        from regraft.phases.build import assemble
        from regraft.phases.optimizer_state import state_sentences
        from regraft.phases.resolve import resolved

        recipe = assemble(resolved(spec)).recipe
        return [*explain(recipe).splitlines(), *state_sentences(recipe, spec.train.optimizer)]
    if spec.race is None:
        return [
            "This recipe has no plan yet: `regraft plan` measures, and writes the candidates that `adapt` will race."
        ]
    return _candidates(spec)


def _candidates(spec: RecipeSpec) -> list[str]:
    """The nest of each candidate of a planned race."""
    import copy
    import tempfile

    from regraft.core import explain
    from regraft.phases.demo import module_for
    from regraft.phases.job import Job
    from regraft.phases.optimizer_state import state_sentences
    from regraft.phases.progress import Silent
    from regraft.phases.rundir import RunDirectory
    from regraft.phases.training import supervised_recipe

    assert spec.race is not None
    lines: list[str] = []
    with tempfile.TemporaryDirectory(prefix="regraft-explain-") as scratch:
        job = Job(RunDirectory(Path(scratch)), spec, module=module_for(spec, Silent()))
        for candidate in spec.race.candidates:
            lines.append(f"candidate {candidate.name}: {candidate.why or 'no reason given'}")
            if not candidate.steps:
                lines.append("  a head on frozen features, fitted to convergence")
                continue
            made = supervised_recipe(
                copy.deepcopy(job.base),
                job.materials.encoded("train"),
                job.materials.targets("train"),
                task=job.materials.task,
                candidate=candidate,
                seed=spec.seed,
            )
            kept = state_sentences(made, candidate.train.optimizer)
            lines += [f"  {line}" for line in (*explain(made).splitlines(), *kept)]
    return lines
