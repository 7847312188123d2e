"""A part of a recipe as frozen data: its class name is its name in YAML, its fields are its options.

A family (`technique`, `optimizer`, `schedule`, ...) is a namespace of such names. `Spec` subclasses that name no family are
plain sections of a recipe file.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from regraft.errors import ConfigError, suggest


class Spec(BaseModel):
    """Frozen, validated options. Unknown fields are refused with the nearest valid name."""

    written: ClassVar[frozenset[str]] = (
        frozenset()
    )  # fields that a file keeps where they were given, at their default too

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True, validate_default=True)

    def __init__(self, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as error:
            raise ConfigError("; ".join(explain(type(self), e) for e in error.errors())) from None

    def replaced(self, **changes: Any) -> Self:
        """A copy with some fields changed, validated like a new one."""
        fields = type(self).model_fields
        current = {field.alias or name: getattr(self, name) for name, field in fields.items()}
        return type(self)(**current | changes)


class Named(Spec):
    """A spec that a recipe refers to by its class name. `family` is the namespace; two of one name are refused."""

    family: ClassVar[str] = ""
    known: ClassVar[dict[str, dict[str, type[Named]]]] = {}

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Register the class under its family once pydantic has built it."""
        super().__pydantic_init_subclass__(**kwargs)
        if not cls.family or "family" in cls.__dict__ or cls.__name__.startswith("_"):
            return  # the base class of a family is not a member of it, nor is what members share
        members = Named.known.setdefault(cls.family, {})
        other = members.get(cls.__name__)
        if other is not None and (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
            raise TypeError(f"two {cls.family}s are called {cls.__name__!r}: {other.__module__} and {cls.__module__}")
        members[cls.__name__] = cls


def explain(cls: type[BaseModel], error: Any) -> str:
    """One pydantic error as a sentence in the user's spelling: owner, field, domain, value."""
    path = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        names = sorted(field.alias or name for name, field in cls.model_fields.items())
        return f"{cls.__name__}: no field {path!r}{suggest(path, names)}; fields: {', '.join(names)}"
    if error["type"] == "missing":
        return f"{cls.__name__}: field {path!r} is required"
    message = error["msg"][0].lower() + error["msg"][1:]
    return f"{cls.__name__}.{path}: {message}, got {shown(error['input'])}"


def shown(value: object, limit: int = 200) -> str:
    """How a value is written in an error: as Python writes it, cut off after `limit` characters.

    >>> shown("a" * 9, limit=5)
    "'aaaa…"
    """
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}…"
