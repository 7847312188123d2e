"""JSON lines, JSON, Parquet, Arrow and MNIST files as record batches, each a reader for `stored`."""

# pyright: reportAttributeAccessIssue=false
# (the functions of pyarrow.compute are made when it is imported)
from __future__ import annotations

import gzip
import io
import json
import math
import struct
import zlib
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from regraft.data.archives import CAPS
from regraft.data.delimited import decode_odd
from regraft.data.stored import Log, Types
from regraft.errors import DataError

ROWS = 65536  # in a batch of plain values
MOST_COLUMNS = 10_000  # of JSON objects
IMAGES = 1024  # in a batch that may hold images


UNREADABLE = (
    pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError, pa.ArrowKeyError, pa.ArrowIndexError,
    pa.ArrowSerializationError, pa.ArrowCapacityError, pa.ArrowMemoryError, pa.ArrowException, OSError, ValueError,
    OverflowError,
)  # fmt: skip  # what Arrow's readers raise on damaged files


def json_batches(files: tuple[Path, ...], types: Types, log: Log) -> Iterator[pa.RecordBatch]:
    """Rows of JSON lines (an object a line) or of one JSON value: a list of objects, or an object of equally long lists."""
    position = 0
    for path in files:
        records = _json_lines(path, log) if _is_json_lines(path) else _json_value(path, log)
        while chunk := list(islice(records, ROWS)):
            log.encoding.extend(
                (position + row, "is not UTF-8 and was read as Windows-1252")
                for row, (_, odd) in enumerate(chunk)
                if odd
            )
            yield _columns([record for record, _ in chunk], types)
            position += len(chunk)


def _is_json_lines(path: Path) -> bool:
    """Whether the first line is a whole JSON object and not the whole file."""
    if path.suffix.lower() != ".json":
        return True
    with path.open("rb") as stream:
        first, more = stream.readline(1 << 24), stream.readline(64)
    return bool(more.strip()) and _loads(first)[0] is not None


def _json_lines(path: Path, log: Log) -> Iterator[tuple[dict[str, Any], bool]]:
    """(record, whether it was not UTF-8) of each line; a line that is no JSON object goes to `log`."""
    with path.open("rb") as stream:
        if stream.read(3) != b"\xef\xbb\xbf":
            stream.seek(0)
        for line in stream:
            if not line.strip():
                continue
            record, odd = _loads(line)
            if record is None:
                log.bad.append(("unreadable", log.total, "is not a JSON object"))
            else:
                yield record, odd
            log.total += 1


def _loads(line: bytes) -> tuple[dict[str, Any] | None, bool]:
    """(the object of a line or None, whether the line was not UTF-8)."""
    try:
        text, odd = line.decode("utf-8"), False
    except UnicodeDecodeError:
        text, odd = decode_odd(line), True
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):  # no JSON, a number of thousands of digits, or nested without end
        return None, odd
    return (record, odd) if isinstance(record, dict) else (None, odd)


def _json_value(path: Path, log: Log) -> Iterator[tuple[dict[str, Any], bool]]:
    """The records of a file that is one JSON value; it is held in memory whole."""
    raw = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    try:
        value = json.loads(raw.decode("utf-8", errors="strict"))
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path} is not valid JSON ({error}); it must hold a list of objects, or one object a line"
        ) from error
    if isinstance(value, dict):
        lists = [entry for entry in value.values() if isinstance(entry, list)]
        if len(lists) == 1 and lists[0] and isinstance(lists[0][0], dict):
            value = lists[0]
        elif lists and len(lists) == len(value) and len({len(entry) for entry in lists}) == 1:
            value = [dict(zip(value, row, strict=True)) for row in zip(*lists, strict=True)]
    if not isinstance(value, list):
        raise DataError(
            f"{path} must hold a list of objects, or one object a line; it holds one {type(value).__name__}"
        )
    for record in value:
        if isinstance(record, dict):
            yield record, False
        else:
            log.bad.append(("unreadable", log.total, "is not a JSON object"))
        log.total += 1


def _columns(records: list[dict[str, Any]], types: Types) -> pa.RecordBatch:
    """One batch of records, each column in the type it needs so far; a key that is absent is null."""
    names = dict.fromkeys(name for record in records for name in record)
    odd = [name for name in names if not _is_encodable(name)]
    if odd:
        raise DataError(f"the key {odd[0]!r} of a JSON object holds half of a character; write it in UTF-8")
    if len(types.columns | names) > MOST_COLUMNS:
        raise DataError(
            f"the JSON objects of a file have more than {MOST_COLUMNS:,} different keys; they must be columns"
        )
    columns = {name: [record.get(name) for record in records] for name in [*types.columns, *names]}
    for name, values in columns.items():
        if {type(value) for value in values} <= {str}:
            types.widen(name, pa.string())
        else:
            for value in values:
                types.widen(name, _json_type(value))
    arrays = [_json_array(columns[name], kind) for name, kind in types.columns.items()]
    return pa.RecordBatch.from_arrays(arrays, names=list(types.columns))


def _json_type(value: Any) -> pa.DataType:
    match value:
        case None:
            return pa.null()
        case bool():
            return pa.bool_()
        case int() if abs(value) < 2**63:
            return pa.int64()
        case float():
            return pa.float64()
        case list() if all(isinstance(entry, str | int | float) for entry in value):
            return pa.list_(pa.string())
        case _:
            return pa.string()


def _json_array(values: list[Any], kind: pa.DataType) -> pa.Array:
    if kind == pa.string():
        return _texts(values)
    if pa.types.is_list(kind):
        return pa.array([None if value is None else [_plain(entry) for entry in value] for value in values], kind)
    if pa.types.is_floating(kind):  # Arrow refuses integers that a float does not hold exactly
        return pa.array([None if value is None else float(value) for value in values], kind)
    return pa.array(values, kind)


def _is_encodable(name: str) -> bool:
    """Whether UTF-8 can hold a name."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _texts(values: list[Any]) -> pa.Array:
    """Values as text, null where empty."""
    try:
        texts = pa.array(values, pa.string())
    except (pa.ArrowInvalid, pa.ArrowTypeError, UnicodeEncodeError):  # other values among the text, or half a surrogate
        texts = pa.array([None if value is None else _plain(value) for value in values], pa.string())
    return pc.if_else(pc.equal(texts, ""), pa.scalar(None, pa.string()), texts)


def _plain(value: Any) -> str:
    """A JSON value as text that UTF-8 can hold (half of a surrogate pair becomes a question mark)."""
    try:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    except RecursionError:
        raise DataError("a value of a JSON object is nested too deeply; write it as text") from None
    return text.encode("utf-8", errors="replace").decode("utf-8")


def parquet_batches(files: tuple[Path, ...], types: Types, log: Log) -> Iterator[pa.RecordBatch]:
    """Rows of Parquet files, in batches that stay small where they hold images."""
    from pyarrow import parquet  # with the clients of the cloud's file systems

    for path in files:
        try:
            file = parquet.ParquetFile(path)
        except UNREADABLE as error:
            raise DataError(f"{path} is not a Parquet file that can be read ({error}); write it again") from error
        with file:
            log.class_names.update(class_names(file.schema_arrow.metadata))
            size = IMAGES if any(_is_blob(entry.type) for entry in file.schema_arrow) else ROWS
            yield from _plain_batches(_sound(file.iter_batches(batch_size=size), path), types, log)


def arrow_batches(files: tuple[Path, ...], types: Types, log: Log) -> Iterator[pa.RecordBatch]:
    """Rows of Arrow stream or file-format files, as `save_to_disk` of the datasets library writes them."""
    for path in files:
        with pa.OSFile(str(path), "rb") as source:
            batches, metadata = _arrow_file(source, path)
            log.class_names.update(class_names(metadata))
            yield from _plain_batches(_sound(batches, path), types, log)


def _arrow_file(source: Any, path: Path) -> tuple[Iterable[pa.RecordBatch], dict[bytes, bytes] | None]:
    """(batches, metadata of the schema) of an open file in either format."""
    try:
        reader = pa.ipc.open_stream(source)
        return reader, reader.schema.metadata
    except UNREADABLE:
        source.seek(0)
    try:
        whole = pa.ipc.open_file(source)
        return (whole.get_batch(k) for k in range(whole.num_record_batches)), whole.schema.metadata
    except UNREADABLE as error:
        raise DataError(f"{path} is not an Arrow file that can be read ({error}); write it again") from error


def _sound(batches: Iterable[pa.RecordBatch], path: Path) -> Iterator[pa.RecordBatch]:
    """The same batches, each found to be what its headers say. DataError where the file is damaged."""
    try:
        for batch in batches:
            batch.validate(full=True)
            yield batch
    except UNREADABLE as error:
        raise DataError(f"{path} is damaged ({error}); write it again") from error


def class_names(metadata: dict[bytes, bytes] | None) -> dict[str, list[str]]:
    """Names of the integer labels by column, from the `huggingface` entry of a schema; none where it is not as expected."""
    try:
        content = json.loads((metadata or {}).get(b"huggingface", b"{}"))
    except (ValueError, RecursionError):
        return {}
    info = content.get("info") if isinstance(content, dict) else None
    features = info.get("features") if isinstance(info, dict) else None
    found = features.items() if isinstance(features, dict) else ()
    names = {name: entry["names"] for name, entry in found if isinstance(entry, dict) and "names" in entry}
    return {name: list(each) for name, each in names.items() if _are_names(each)}


def _are_names(value: Any) -> bool:
    """Whether it is a list of different texts."""
    return isinstance(value, list) and all(isinstance(name, str) for name in value) and len(set(value)) == len(value)


def _is_blob(kind: pa.DataType) -> bool:
    return pa.types.is_struct(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _plain_batches(batches: Iterable[pa.RecordBatch], types: Types, log: Log) -> Iterator[pa.RecordBatch]:
    """The batches with each column in the plain type of its family, in which the rest of regraft knows it."""
    for batch in batches:
        arrays = []
        for name, array in zip(batch.schema.names, batch.columns, strict=True):
            kind = types.widen(name, plain_type(array.type))
            arrays.append(_cast(array, kind, name))
        log.total += batch.num_rows
        yield pa.RecordBatch.from_arrays(arrays, names=batch.schema.names)


def plain_type(kind: pa.DataType) -> pa.DataType:
    """int64, float64, bool, string, binary or list of string for all types of these families; others as they are."""
    if pa.types.is_dictionary(kind):
        return plain_type(kind.value_type)
    if pa.types.is_integer(kind):
        return pa.int64()
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return pa.float64()
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return pa.binary()
    if pa.types.is_list(kind) and plain_type(kind.value_type) in (pa.string(), pa.int64()):
        return pa.list_(pa.string())
    return kind


def _cast(array: pa.Array, kind: pa.DataType, name: str) -> pa.Array:
    try:
        cast = array.cast(kind)
        if kind == pa.string():
            cast.validate(full=True)
        return cast
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(
            f"the column {name!r} cannot be read as {kind} ({error}); write it in one plain type"
        ) from error


def idx_batches(files: tuple[Path, ...], types: Types, log: Log) -> Iterator[pa.RecordBatch]:
    """Images of an MNIST file pair as PNG bytes (`image`) with their numbers (`label`, absent without a label file)."""
    from PIL import Image

    file, *beside = files
    images = read_idx(file)
    labels = read_idx(beside[0]) if beside else None
    if labels is not None and len(labels) != len(images):
        raise DataError(
            f"{file} holds {len(images)} images, but {beside[0].name} {len(labels)} labels; they must be of one set"
        )
    for start in range(0, len(images), IMAGES):
        cells: list[bytes] = []
        for pixels in images[start : start + IMAGES]:
            stream = io.BytesIO()
            Image.fromarray(pixels).save(stream, format="PNG", compress_level=1)
            cells.append(stream.getvalue())
        columns = {"image": pa.array(cells, pa.binary())}
        if labels is not None:
            columns["label"] = pa.array(labels[start : start + IMAGES].astype(np.int64))
        for name, array in columns.items():
            types.widen(name, array.type)
        log.total += len(cells)
        yield pa.RecordBatch.from_pydict(columns)


def read_idx(path: Path) -> np.ndarray:
    """The uint8 array of an IDX file (LeCun's MNIST format), gzipped or not."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            start = stream.read(4)
            dimensions = start[3] if len(start) == 4 and start[:3] == b"\0\0\x08" else 0
            sizes = stream.read(4 * dimensions)
            shape = struct.unpack(f">{len(sizes) // 4}I", sizes[: len(sizes) // 4 * 4])
            size = math.prod(shape)
            if size > CAPS.free + CAPS.ratio * path.stat().st_size:
                raise DataError(f"{path} claims {size:,} bytes, far more than a file of its size holds; do not use it")
            body = stream.read(size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be unpacked ({error}); fetch it again") from error
    if dimensions not in (1, 2, 3, 4) or len(shape) != dimensions or len(body) != size:
        raise DataError(f"{path} is not an IDX file of bytes, or is cut off; fetch it again")
    return np.frombuffer(body, np.uint8).reshape(shape)
