"""Options that several commands share, declared once as dataclasses; `command` spreads them over a command's signature."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from regraft.cli.errors import guarded
from regraft.cli.panels import panel_of

if TYPE_CHECKING:
    from regraft.config.data import DataSpec

PRECISIONS = ("auto", "fp32", "bf16")
COLUMNS, READING, OUTPUT = "Columns and task (default: detected, and shown)", "Reading and splitting", "Output"

BAD_HELP = "A row or image that is damaged: fail (default) stops at it, skip leaves it out and counts it."
OnBad = Annotated[str | None, typer.Option("--on-bad-sample", metavar="WHAT", help=BAD_HELP)]
BAD_ROW_HELP = "A bad row or image: fail (default) stops at it, skip leaves its prediction empty and says why."
OnBadRow = Annotated[str | None, typer.Option("--on-bad-sample", metavar="WHAT", help=BAD_ROW_HELP)]

Data = Annotated[
    str,
    typer.Argument(
        metavar="DATA", help="A CSV, TSV, JSONL or Parquet file, a folder, a hub id, or an embedded sample."
    ),
]
Model = Annotated[
    str | None,
    typer.Option("--model", "-m", metavar="M", help="Hub id, local Hugging Face folder, or minilm. Tables need none."),
]
Budget = Annotated[str | None, typer.Option(metavar="TIME", help="Time to spend, such as 90s, 3m or 1h. Default 10m.")]
Strategy = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Skip the race: probe, last-k, thaw, norm, lora, adapter or full."),
]
Precision = Annotated[
    str | None,
    typer.Option(
        metavar="MODE", help="Of reading and training: fp32, bf16, or auto, which measures on this machine (default)."
    ),
]
Seed = Annotated[int, typer.Option(help="Of everything random.")]
Out = Annotated[Path, typer.Option("--out", "-o", metavar="RUN", help="A new folder for the run.")]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="FIELD=VALUE",
        help="Any field of the recipe by its path, such as train.batch_size=64. Repeatable.",
    ),
]


def with_precision(overrides: list[str] | None, precision: str | None) -> list[str]:
    """The overrides of --set, with --precision among them.

    Raises:
        ConfigError: no mode has that name.
    """
    from regraft.errors import ConfigError, suggest

    if precision is None:
        return overrides or []
    if precision not in PRECISIONS:
        raise ConfigError(f"--precision: must be fp32, bf16 or auto, got {precision!r}{suggest(precision, PRECISIONS)}")
    return [*(overrides or []), f"probe.precision={precision}"]


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """What the columns mean and how the files are read."""

    text: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN", help="Text column; twice for pairs.", rich_help_panel=COLUMNS),
    ] = None
    label: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN", help="Label column; several 0/1 columns for multi-label.", rich_help_panel=COLUMNS
        ),
    ] = None
    image: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Image column: bytes or paths.", rich_help_panel=COLUMNS)
    ] = None
    features: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN", help="Column of a table to use. Repeatable.", rich_help_panel=COLUMNS),
    ] = None
    group: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Rows of one group stay on one side of a split.", rich_help_panel=COLUMNS),
    ] = None
    time: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Split by time: later rows are tested on.", rich_help_panel=COLUMNS),
    ] = None
    task: Annotated[
        str | None,
        typer.Option(metavar="TASK", help="binary, multiclass, multilabel or regression.", rich_help_panel=COLUMNS),
    ] = None
    modality: Annotated[
        str | None, typer.Option(metavar="KIND", help="text, image or table.", rich_help_panel=COLUMNS)
    ] = None
    encoding: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of text files, such as latin-1.", rich_help_panel=READING)
    ] = None
    delimiter: Annotated[
        str | None, typer.Option(metavar="CHAR", help="Between the fields of a CSV file.", rich_help_panel=READING)
    ] = None
    valid: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE", help="Cut off for validation where none is given. Default 0.1.", rich_help_panel=READING
        ),
    ] = None
    test: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Cut off for the final test where none is given. Default 0.2.",
            rich_help_panel=READING,
        ),
    ] = None
    limit: Annotated[
        int | None, typer.Option(metavar="ROWS", help="Training rows used, at most.", rich_help_panel=READING)
    ] = None
    on_bad_sample: Annotated[str | None, typer.Option(metavar="WHAT", help=BAD_HELP, rich_help_panel=READING)] = None

    def given(self) -> dict[str, Any]:
        """Only the options that were given, by field name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values.items()
            if value not in (None, [])
        }

    def spec(self, path: str) -> DataSpec:
        """The data entry of a recipe that these options describe."""
        from regraft.config.data import DataSpec
        from regraft.errors import ConfigError

        try:
            return DataSpec(path=path, **self.given())
        except ConfigError as error:
            raise ConfigError(
                str(error).replace("DataSpec.", "--").replace("--on_bad_sample", "--on-bad-sample")
            ) from None


@dataclass(frozen=True, kw_only=True)
class Common:
    """What every command takes."""

    json: Annotated[
        bool,
        typer.Option("--json", help="Print JSON on standard output, and nothing else there.", rich_help_panel=OUTPUT),
    ] = False
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress on standard error.", rich_help_panel=OUTPUT)
    ] = False
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.", rich_help_panel=OUTPUT)] = (
        False
    )


def command(app: typer.Typer, name: str | None = None) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A decorator: the function as a command of `app`, its errors as sentences, its option groups spread out."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        panel = panel_of(name or function.__name__)
        app.command(name, no_args_is_help=False, rich_help_panel=panel)(spread(guarded(function), like=function))
        return function

    return register


def spread(call: Callable[..., None], *, like: Callable[..., None]) -> Callable[..., None]:
    """`call` with a signature in which each parameter of `like` that is a dataclass is replaced by that class's fields."""
    hints = get_type_hints(like, include_extras=True)
    groups = {name: hint for name, hint in hints.items() if is_dataclass(hint) and isinstance(hint, type)}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(like).parameters.values():
        kind = inspect.Parameter.KEYWORD_ONLY
        if parameter.name not in groups:
            parameters.append(parameter.replace(annotation=hints[parameter.name], kind=kind))
            continue
        group = groups[parameter.name]
        types = get_type_hints(group, include_extras=True)
        parameters += [
            inspect.Parameter(field.name, kind, default=field.default, annotation=types[field.name])
            for field in fields(group)
        ]

    def spreading(**given: Any) -> None:
        made = {
            name: group(**{field.name: given.pop(field.name) for field in fields(group)})
            for name, group in groups.items()
        }
        call(**given, **made)

    spreading.__name__, spreading.__doc__ = like.__name__, like.__doc__
    spreading.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    spreading.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return spreading
