"""The space of a search: paths of recipe fields and their domains, drawn one by one, or enumerated as a grid.

A domain may stand anywhere inside an option of a choice: it is drawn only where that option is. Its name is the path, the number
of the option and the keys that lead to it: `train.optimizer[1].SGD.lr`.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

from regraft.config.parse import put
from regraft.config.recipe import RecipeSpec, recipe_from_tree
from regraft.config.spec import shown
from regraft.errors import ConfigError

KINDS = ("log", "uniform", "int", "log_int", "choice")
Drawn = dict[str, Any]  # name of a domain -> the number drawn, or the index of the option


@dataclass(frozen=True)
class Range:
    """Numbers from low to high, both among them."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def value(self, share: float) -> float | int:
        """The number at a share (0 to 1) of the range, on its own scale."""
        ratio = self.high / self.low if self.log else 1.0
        return self.within(self.low * ratio**share if self.log else self.low + share * (self.high - self.low))

    def share(self, value: float) -> float:
        """Where a number lies, 0 at low and 1 at high."""
        if self.high == self.low:
            return 0.5
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def within(self, value: float) -> float | int:
        """The nearest number of the range."""
        inside = min(max(value, self.low), self.high)
        return round(inside) if self.whole else float(inside)

    def points(self, count: int) -> list[float | int]:
        """`count` numbers at even distances on its scale, fewer where whole numbers coincide; one stands in the middle."""
        shares = [0.5] if count == 1 else [i / (count - 1) for i in range(count)]
        return list(dict.fromkeys(self.value(share) for share in shares))


@dataclass(frozen=True)
class Choice:
    """One of several plain values, which may hold domains themselves."""

    options: tuple[Any, ...]


class Picks(Protocol):
    """Who decides, domain by domain."""

    def number(self, name: str, domain: Range, /) -> float | int:
        """A number of a range."""
        ...

    def option(self, name: str, domain: Choice, /) -> int:
        """The index of an option."""
        ...


@dataclass
class Recorded:
    """Hands on to other picks and keeps what they decide, with the domains."""

    picks: Picks
    drawn: Drawn
    domains: dict[str, Range | Choice]

    def number(self, name: str, domain: Range, /) -> float | int:
        """Decided by the others."""
        self.drawn[name], self.domains[name] = self.picks.number(name, domain), domain
        return self.drawn[name]

    def option(self, name: str, domain: Choice, /) -> int:
        """Decided by the others."""
        self.drawn[name], self.domains[name] = self.picks.option(name, domain), domain
        return self.drawn[name]


@dataclass(frozen=True)
class Given:
    """What was drawn before; a domain it does not have stands at its middle or its first option."""

    drawn: Mapping[str, Any]

    def number(self, name: str, domain: Range, /) -> float | int:
        """As drawn."""
        return self.drawn[name] if name in self.drawn else domain.value(0.5)

    def option(self, name: str, domain: Choice, /) -> int:
        """As drawn."""
        return int(self.drawn.get(name, 0))


class Space:
    """Domains by path.

    Raises:
        ConfigError: a domain is not one, or one path leads into another.
    """

    def __init__(self, tree: Mapping[str, Any]) -> None:
        self.domains = {path: _node(value, f"search.space.{path}") for path, value in tree.items()}
        for path, domain in self.domains.items():
            if not isinstance(domain, Range | Choice):
                raise ConfigError(f"search.space.{path}: must be one of {_FORMS}, got {shown(tree[path])}")
            inner = next((other for other in tree if other.startswith(f"{path}.")), None)
            if inner is not None:
                raise ConfigError(
                    f"search.space.{inner}: lies within search.space.{path}; write its domain inside an option of that one"
                )

    def draw(self, picks: Picks) -> Drawn:
        """A point of the space."""
        return self.recorded(picks).drawn

    def recorded(self, picks: Picks) -> Recorded:
        """A point of the space with the domains it has values of."""
        recorded = Recorded(picks, {}, {})
        for path, domain in self.domains.items():
            _filled(domain, path, recorded)
        return recorded

    def values(self, drawn: Mapping[str, Any]) -> dict[str, Any]:
        """The plain value of each path at a point."""
        return {path: _filled(domain, path, Given(drawn)) for path, domain in self.domains.items()}

    def recipe(self, tree: Mapping[str, Any], drawn: Mapping[str, Any], *, where: str = "search") -> RecipeSpec:
        """The recipe at a point: the plain values `tree` of a recipe with the fields that are searched over filled in.

        Raises:
            ConfigError: there is no such field, or a value is none of its domain.
        """
        filled = copy.deepcopy(dict(tree))
        for path, value in self.values(drawn).items():
            put(filled, path, value, where=f"search.space.{path}")
        return recipe_from_tree(filled, where)

    def covering(self) -> Iterator[Drawn]:
        """Points that between them have every option of every choice, numbers in the middle of their ranges."""
        waiting: list[Drawn] = [{}]
        known: set[str] = set()
        while waiting:
            forced = waiting.pop()
            found = self.recorded(Given(forced))
            yield found.drawn
            for name, domain in found.domains.items():
                if isinstance(domain, Choice) and name not in known:
                    known.add(name)
                    waiting += [found.drawn | {name: i} for i in range(1, len(domain.options))]

    def names(self) -> list[str]:
        """Names of all domains, those within options too."""
        return sorted({name for drawn in self.covering() for name in drawn})

    def grid(self, points: int) -> Iterator[Drawn]:
        """Every combination of all options and of `points` numbers of each range; the last path changes fastest."""
        each = [list(_every(domain, path, points)) for path, domain in self.domains.items()]
        for combination in itertools.product(*each):
            yield {name: value for part in combination for name, value in part.items()}

    def grid_size(self, points: int) -> int:
        """How many points the grid has, without making them."""
        return math.prod(_count(domain, points) for domain in self.domains.values())


_FORMS = "{log: [low, high]}, {uniform: [low, high]}, {int: [low, high]}, {log_int: [low, high]} and {choice: [...]}"


def _node(value: Any, where: str) -> Any:
    """Plain values with the domains in them made."""
    if isinstance(value, list | tuple):
        return [_node(item, f"{where}[{i}]") for i, item in enumerate(cast(list[Any], value))]
    if not isinstance(value, Mapping):
        return value
    fields = cast(Mapping[str, Any], value)
    if len(fields) == 1 and next(iter(fields)) in KINDS:
        ((kind, content),) = fields.items()
        return _domain(kind, content, where)
    return {key: _node(item, f"{where}.{key}") for key, item in fields.items()}


def _domain(kind: str, content: Any, where: str) -> Range | Choice:
    if not isinstance(content, list | tuple) or not content:
        raise ConfigError(f"{where}: must be one of {_FORMS}, got {shown({kind: content})}")
    if kind == "choice":
        return Choice(tuple(_node(option, f"{where}[{i}]") for i, option in enumerate(content)))
    numbers = [c for c in content if isinstance(c, int | float) and not isinstance(c, bool) and math.isfinite(c)]
    log, whole = kind.startswith("log"), kind.endswith("int")
    if len(numbers) != 2 or len(content) != 2 or not numbers[0] < numbers[1]:
        raise ConfigError(f"{where}: {kind} must have two numbers, the lower one first, got {shown(content)}")
    if log and numbers[0] <= 0:
        raise ConfigError(f"{where}: {kind} must have numbers above 0, got {shown(content)}; a logarithm has no other")
    if whole and any(number != int(number) for number in numbers):
        raise ConfigError(f"{where}: {kind} must have whole numbers, got {shown(content)}")
    return Range(numbers[0], numbers[1], log=log, whole=whole)


def _filled(node: Any, name: str, picks: Picks) -> Any:
    """Plain values with every domain replaced by what is picked."""
    if isinstance(node, Range):
        return picks.number(name, node)
    if isinstance(node, Choice):
        index = picks.option(name, node)
        return _filled(node.options[index], f"{name}[{index}]", picks)
    if isinstance(node, list):
        return [_filled(item, f"{name}.{i}", picks) for i, item in enumerate(node)]
    if isinstance(node, dict):
        return {key: _filled(item, f"{name}.{key}", picks) for key, item in node.items()}
    return node


def _every(node: Any, name: str, points: int) -> Iterator[Drawn]:
    """Every point of a grid over the domains of a node."""
    if isinstance(node, Range):
        yield from ({name: value} for value in node.points(points))
    elif isinstance(node, Choice):
        for index, option in enumerate(node.options):
            yield from ({name: index, **inner} for inner in _every(option, f"{name}[{index}]", points))
    elif isinstance(node, list | dict):
        inside = node.items() if isinstance(node, dict) else enumerate(node)
        each = [list(_every(item, f"{name}.{key}", points)) for key, item in inside]
        for combination in itertools.product(*each):
            yield {key: value for part in combination for key, value in part.items()}
    else:
        yield {}


def _count(node: Any, points: int) -> int:
    if isinstance(node, Range):
        return len(node.points(points))
    if isinstance(node, Choice):
        return sum(_count(option, points) for option in node.options)
    if isinstance(node, list | dict):
        return math.prod(_count(item, points) for item in (node.values() if isinstance(node, dict) else node))
    return 1
