"""YAML as plain values: no tags, no key twice, and size, depth and what aliases unfold to bounded while it is read."""

# pyright: reportUnknownMemberType=false
# PyYAML's loaders are typed in part only.

from __future__ import annotations

import math
from typing import Any, cast

import yaml

LARGEST = 256 * 2**10  # characters; a recipe with 10,000 named columns has about 150,000
MOST_NODES = 20_000  # values, with aliases counted as often as they are used
DEEPEST = 32
LONGEST_NUMBER = 100  # digits
_PREFIX = "tag:yaml.org,2002:"
_PLAIN_TAGS = {"!", *(_PREFIX + name for name in ("str", "int", "float", "bool", "null", "seq", "map"))}


class NotPlainYaml(ValueError):
    """A text that is not YAML, or not plain. The message is the reason with its line, to end a sentence with."""


def plain_yaml(text: str) -> Any:
    """The value of a YAML text: mappings with text as keys, lists, text, finite numbers, booleans, dates and nothing else.

    Raises:
        NotPlainYaml: the text is not of that form.
    """
    if len(text) > LARGEST:
        raise NotPlainYaml(f"it has {len(text):,} characters, and at most {LARGEST:,} are read")
    try:
        loader = _PlainLoader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except NotPlainYaml:
        raise
    except yaml.YAMLError as error:
        line = getattr(getattr(error, "problem_mark", None), "line", None)
        at = f" at line {line + 1}" if isinstance(line, int) else ""
        raise NotPlainYaml(f"not valid YAML{at}: {_reason(error)}") from None
    except (ValueError, OverflowError) as error:  # a date that does not exist, a number too long for Python
        raise NotPlainYaml(f"not valid YAML: {error}") from None


def _reason(error: yaml.YAMLError) -> str:
    return " ".join(str(getattr(error, "problem", None) or error).split())[:200]


class _PlainLoader(yaml.SafeLoader):
    """The safe loader of PyYAML, which makes plain objects only, with limits put on while the tree is built."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = self.nodes = 0
        self.weights: dict[str, int] = {}  # anchor -> values below it, with its aliases unfolded

    def compose_node(self, parent: Any, index: Any) -> Any:
        """The next node, once it is known to be plain and within the limits."""
        event = cast(Any, self.peek_event())
        at = f"line {event.start_mark.line + 1}"
        if self.check_event(yaml.AliasEvent):
            if event.anchor in self.anchors and event.anchor not in self.weights:
                raise NotPlainYaml(f"{at}: the alias *{event.anchor} stands inside what it stands for")
            self._count(self.weights.get(str(event.anchor), 1), at)
            return super().compose_node(parent, index)
        if event.tag is not None and event.tag not in _PLAIN_TAGS:
            tag = str(event.tag).replace(_PREFIX, "!!")[:80]
            raise NotPlainYaml(f"{at}: {tag!r} is a tag, and only plain values are read; remove it")
        before = self.nodes
        self._count(1, at)
        self.depth += 1
        if self.depth > DEEPEST:
            raise NotPlainYaml(f"{at}: nested more than {DEEPEST} levels deep")
        node = super().compose_node(parent, index)
        self.depth -= 1
        if event.anchor is not None:
            self.weights[str(event.anchor)] = self.nodes - before
        return node

    def _count(self, more: int, at: str) -> None:
        self.nodes += more
        if self.nodes > MOST_NODES:
            raise NotPlainYaml(f"{at}: holds more than {MOST_NODES:,} values, aliases unfolded")

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """The mapping of a node, whose keys are text and differ."""
        seen: set[str] = set()
        for key, _ in node.value:
            at = f"line {key.start_mark.line + 1}"
            if key.tag == f"{_PREFIX}merge":
                continue  # `<<: *anchor`: what it brings gives way to the mapping's own keys
            if key.tag != f"{_PREFIX}str":
                got = repr(key.value[:40]) if isinstance(key.value, str) else f"a {key.id}"
                raise NotPlainYaml(f"{at}: a key must be text, got {got}; put it into quotes")
            if key.value in seen:
                raise NotPlainYaml(f"{at}: the key {key.value[:80]!r} occurs twice; keep one of them")
            seen.add(key.value)
        return cast(dict[Any, Any], super().construct_mapping(node, deep=deep))


def _integer(loader: _PlainLoader, node: Any) -> int:
    _short(node)
    return int(loader.construct_yaml_int(node))


def _number(loader: _PlainLoader, node: Any) -> float:
    _short(node)
    value = float(loader.construct_yaml_float(node))
    if not math.isfinite(value):
        raise NotPlainYaml(f"line {node.start_mark.line + 1}: must be a finite number, got {node.value!r}")
    return value


def _short(node: Any) -> None:
    if len(node.value) > LONGEST_NUMBER:
        raise NotPlainYaml(
            f"line {node.start_mark.line + 1}: a number of {len(node.value):,} digits; put it into quotes"
        )


_PlainLoader.add_constructor(f"{_PREFIX}int", _integer)
_PlainLoader.add_constructor(f"{_PREFIX}float", _number)
