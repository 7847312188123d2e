"""YAML to specs and back: `Name` or `Name: {field: value}`, overrides by dotted path, errors that say where.

Only plain YAML is read (safe loader), names are looked up in the catalogue, and nothing a file says is imported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, cast

from pydantic import BaseModel, BeforeValidator, PlainSerializer

from regraft.config.catalogue import find
from regraft.config.plain_yaml import NotPlainYaml, plain_yaml
from regraft.config.spec import Named, Spec, shown
from regraft.errors import ConfigError, suggest


def parse_one(node: object, family: str, where: str = "") -> Named:
    """A member of `family` from `Name` or `{Name: {field: value}}`; a spec is handed through.

    Raises:
        ConfigError: the name or a field is unknown, or a value is out of its domain; the sentence starts with `where`.
    """
    if isinstance(node, Named):
        return node
    at = f"{where}: " if where else ""
    if isinstance(node, str):
        node = {node: {}}
    if not isinstance(node, dict) or len(cast(dict[str, Any], node)) != 1:
        article = "an" if family[0] in "aeiou" else "a"
        raise ConfigError(
            f"{at}write {article} {family} as `Name` or `Name: {{field: value}}`, got {shown(cast(object, node))}"
        )
    ((name, options),) = cast(dict[str, Any], node).items()
    if not isinstance(options, dict | None):
        raise ConfigError(f"{at}the options of {name} must be fields and values, got {shown(options)}")
    try:
        cls = find(family, str(name))
    except ConfigError as error:
        raise ConfigError(f"{at}{error}") from None
    try:
        return cls(**(cast(dict[str, Any], options) if options else {}))
    except ConfigError as error:
        raise ConfigError(f"{where}.{error}" if where else str(error)) from None


def dump_one(spec: BaseModel) -> dict[str, Any] | str:
    """The inverse of `parse_one`: the name, and the fields that differ from their defaults."""
    options = dump_fields(spec)
    return {type(spec).__name__: options} if options else type(spec).__name__


def dump_fields(spec: BaseModel) -> dict[str, Any]:
    """Fields that differ from their defaults, as plain YAML values; and those that were given and are `written` in any case."""
    out: dict[str, Any] = {}
    given = spec.written & spec.model_fields_set if isinstance(spec, Spec) else frozenset[str]()
    for name, field in type(spec).model_fields.items():
        value = getattr(spec, name)
        default = field.get_default(call_default_factory=True)
        if field.is_required() or value != default or name in given or _states(value):
            out[name] = plain(value)
    return out


def _states(value: object) -> bool:
    """Was a field given, of this spec or of one within it, that is written in any case?"""
    if not isinstance(value, Spec):
        return False
    fields = type(value).model_fields
    return bool(value.written & value.model_fields_set) or any(_states(getattr(value, name)) for name in fields)


def plain(value: Any) -> Any:
    """A value as YAML can hold it. Named specs become `{Name: {...}}`, other specs plain mappings.

    Raises:
        ConfigError: the value is an object that a file cannot hold, such as a module; name it under `models:` instead.
    """
    if isinstance(value, Named):
        return dump_one(value)
    if isinstance(value, BaseModel):
        return dump_fields(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in cast(Mapping[Any, Any], value).items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in cast(Sequence[Any], value)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ConfigError(
        f"a recipe file cannot hold a {type(value).__name__}; name it under `models:` or `data:` and refer to it by that name"
    )


def member_of(family: str) -> Any:
    """Annotation metadata for a field that holds a member of `family`, written as in YAML."""
    return BeforeValidator(lambda node: parse_one(node, family))


AnyTechnique = Annotated[Named, member_of("technique"), PlainSerializer(dump_one)]
AnyOptimizer = Annotated[Named, member_of("optimizer"), PlainSerializer(dump_one)]
AnySchedule = Annotated[Named, member_of("schedule"), PlainSerializer(dump_one)]
AnyLoss = Annotated[Named, member_of("loss"), PlainSerializer(dump_one)]
AnyNetwork = Annotated[Named, member_of("network"), PlainSerializer(dump_one)]
AnyMethod = Annotated[Named, member_of("method"), PlainSerializer(dump_one)]


# ---- overrides


def override(tree: dict[str, Any], assignment: str) -> None:
    """Apply `path.to.field=value` to a tree of plain values, in place; the value is read as YAML.

    Lists are indexed by number, and a technique is found by its name: `techniques.SAM.rho=0.1`.

    Raises:
        ConfigError: the assignment has no `=`, or the path leads through a value that has no fields.
    """
    path, equals, text = assignment.partition("=")
    if not equals or not path:
        raise ConfigError(f"--set {assignment}: write it as path.to.field=value, such as --set seed=7")
    try:
        value = plain_yaml(text)
    except NotPlainYaml as error:
        raise ConfigError(f"--set {path}: {shown(text)} is not a plain YAML value ({error})") from None
    put(tree, path, value, where=f"--set {path}")


def put(tree: dict[str, Any], path: str, value: Any, *, where: str) -> None:
    """Set the field at a dotted path of a tree of plain values, in place; errors begin with `where`.

    Raises:
        ConfigError: the path leads through a value that has no fields.
    """
    keys = path.split(".")
    node: Any = tree
    for depth, key in enumerate(keys[:-1]):
        node = _descend(node, key, where.replace(path, ".".join(keys[: depth + 1])))
    if isinstance(node, list):
        items = cast(list[Any], node)
        items[_index(items, keys[-1], where)] = value
    elif isinstance(node, dict):
        cast(dict[str, Any], node)[keys[-1]] = value
    else:
        raise ConfigError(f"{where}: {'.'.join(keys[:-1])} is the value {node!r} and has no fields")


def _descend(node: Any, key: str, where: str) -> Any:
    if isinstance(node, list):
        items = cast(list[Any], node)
        named = [i for i, item in enumerate(items) if item == key or (isinstance(item, dict) and key in item)]
        if named:
            if isinstance(items[named[0]], str):
                items[named[0]] = {key: {}}
            return cast(dict[str, Any], items[named[0]])[key]
        return items[_index(items, key, where)]
    if isinstance(node, dict):
        fields = cast(dict[str, Any], node)
        if isinstance(fields.get(key), str) and key in ("loss", "optimizer", "schedule", "network"):
            fields[key] = {fields[key]: {}}
        if fields.get(key) is None:
            fields[key] = {}
        return fields[key]
    raise ConfigError(f"{where}: the value {node!r} has no field {key!r}")


def _index(items: list[Any], key: str, where: str) -> int:
    if not key.isdigit() or int(key) >= len(items):
        names = [next(iter(cast(dict[str, Any], i)), "") if isinstance(i, dict) else str(i) for i in items]
        raise ConfigError(f"{where}: the list has {len(items)} entries and none called {key!r}{suggest(key, names)}")
    return int(key)


def load_yaml(text: str, where: str) -> dict[str, Any]:
    """A mapping from YAML text that holds plain values and nothing else.

    Raises:
        ConfigError: the text is not YAML, not plain, larger than a recipe is, or not a mapping.
    """
    try:
        tree = plain_yaml(text)
    except NotPlainYaml as error:
        raise ConfigError(f"{where}: {error}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{where}: a recipe is a mapping with `data:` and `models:`, got {type(tree).__name__}")
    return cast(dict[str, Any], tree)
