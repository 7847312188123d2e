"""Images that cannot be decoded, found in one pass whose result is kept in the cache."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from regraft.data.bad import Fault
from regraft.data.cache import cache_folder, key_of, stamp, written_whole
from regraft.data.dataset import Schema
from regraft.data.images_on_disk import cell_bytes, folders_of
from regraft.data.safe_image import fault
from regraft.errors import DataError

if TYPE_CHECKING:
    from regraft.data.read import Part

FORMAT = 1  # of the cache entries; raise it when an image would be judged differently
CHUNK = 256  # images looked at before it is decided whether to go on

Found = dict[int, tuple[str, str]]  # position -> (kind, why)


def image_faults(part: Part, schema: Schema, path: Path, *, first_only: bool) -> list[Fault]:
    """The images of a part that cannot be decoded; with `first_only` the search ends soon after the first of them."""
    column = part.table.column(schema.inputs[0])
    folders = folders_of(path, part.name)

    def look(position: int) -> tuple[str, str] | None:
        try:
            return fault(cell_bytes(column[position].as_py(), folders))
        except DataError as error:
            return "unreadable", str(error)

    key = _key(part, schema, path)
    found = _known(key) if key else None
    if found is None:
        found, whole = _looked(look, len(column), first_only=first_only)
        if key and whole:
            _keep(key, found)
    why = {position: reason for position, (_, reason) in found.items()}
    kinds = sorted({kind for kind, _ in found.values()})
    return [
        Fault(
            kind,
            np.array(sorted(p for p, (k, _) in found.items() if k == kind), np.int64),
            lambda position: f"cannot be used: {why[position]}",
        )
        for kind in kinds
    ]


def _looked(look: Callable[[int], tuple[str, str] | None], count: int, *, first_only: bool) -> tuple[Found, bool]:
    """(what is wrong by position, whether all images were looked at)."""
    found: Found = {}
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, count, CHUNK):
            places = range(start, min(start + CHUNK, count))
            found |= {place: said for place, said in zip(places, pool.map(look, places), strict=True) if said}
            if found and first_only:
                return found, places.stop == count
    return found, True


def _key(part: Part, schema: Schema, path: Path) -> str | None:
    """What the result is kept under; None where the images are files that a table names."""
    if part.stored is not None:
        cell = part.table.schema.field(schema.inputs[0]).type
        return None if str(cell) in ("string", "large_string") else key_of(FORMAT, part.stored.name, schema.inputs[0])
    base = path if path.is_dir() else path.parent
    files = [base / name for name in part.table.column("file").to_pylist()]
    return key_of(FORMAT, [stamp(file) if file.is_file() else str(file) for file in files])


def _known(key: str) -> Found | None:
    """What an earlier pass found."""
    file = cache_folder("checks") / f"{key}.json"
    if not file.is_file():
        return None
    return {int(position): (kind, why) for position, kind, why in json.loads(file.read_text(encoding="utf-8"))}


def _keep(key: str, found: Found) -> None:
    rows = [[position, *said] for position, said in sorted(found.items())]
    with written_whole(cache_folder("checks") / f"{key}.json") as beside:
        beside.write_text(json.dumps(rows), encoding="utf-8")
