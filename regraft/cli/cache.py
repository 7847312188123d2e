"""The command that shows and clears the cache folder."""

from __future__ import annotations

from typing import Annotated

import typer

from regraft.cli.app import app
from regraft.cli.options import Common, command
from regraft.cli.screen import show_json, show_table


@command(app)
def cache(
    action: Annotated[str, typer.Argument(metavar="[list|clear]", help="Show what is there, or remove it.")] = "list",
    kind: Annotated[str | None, typer.Argument(metavar="[KIND]", help="Only one kind, such as stores.")] = None,
    unused_days: Annotated[
        float, typer.Option(min=0, metavar="DAYS", help="Only what was not used for so many days.")
    ] = 0.0,
    common: Common = Common(),  # noqa: B008
) -> None:
    """What is kept for later runs: read files, frozen results, hashes. All of it can be made again."""
    from regraft.data.cache import cache_folder, clear, kinds
    from regraft.errors import ConfigError, suggest

    if action not in ("list", "clear"):
        raise ConfigError(f"regraft cache: {action!r} is neither list nor clear{suggest(action, ('list', 'clear'))}")
    if action == "clear":
        removed, freed = clear(kind, unused_days=unused_days)
        if common.json:
            show_json({"removed": removed, "bytes": freed})
        else:
            print(f"removed {removed:,} entries, {_size(freed)}")
        return
    found = kinds(kind, unused_days=unused_days)
    if common.json:
        show_json({"folder": str(cache_folder()), "kinds": [vars(one) for one in found]})
        return
    rows = [(one.name, f"{one.entries:,}", _size(one.num_bytes), one.what) for one in found]
    show_table(f"{cache_folder()}", ("kind", "entries", "size", "what it is"), rows, right=("entries", "size"))


def _size(num_bytes: int) -> str:
    """Bytes as a person reads them."""
    value = float(num_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
