"""What lies at a path: one file, split files, image class folders, MNIST files or a Hugging Face folder, as a `Layout`."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from regraft.data.dataset import SPLITS, Problem
from regraft.errors import DataError, suggest

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
ALIASES = {
    "train": ("train", "training"),
    "valid": ("valid", "validation", "val", "dev", "devel", "trial", "eval"),
    "test": ("test", "testing", "t10k"),
    "unlabelled": ("unlabelled", "unlabeled", "unsupervised"),
}
SPLIT_OF = {alias: split for split, aliases in ALIASES.items() for alias in aliases}
NOT_DATA = (
    "dataset_info",
    "dataset_infos",
    "dataset_dict",
    "state",
    "classes",
    "categories",
    "labels",
    "ground_truth",
    "fixed",
    "metadata",
)
KEPT_QUIET = (".gitkeep", ".gitignore")  # placeholders that people put there on purpose

Kind = Literal["files", "images", "idx", "lines"]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Which files hold which split. For images the entry of a split is its folder."""

    kind: Kind
    root: Path  # file names in messages and in `Problem` are relative to it
    files: dict[str, tuple[Path, ...]]

    def name_of(self, split: str) -> str:
        """The file or folder of a split relative to the root; of several shards their common pattern."""
        names = [path.relative_to(self.root).as_posix() for path in self.files[split]]
        return names[0] if len(names) == 1 else re.sub(r"\d{5}-of-", "*-of-", names[0], count=1)


def find_layout(path: Path, *, loose: bool = False) -> Layout:
    """The layout at `path`; DataError in one sentence where there is none.

    `loose` takes also what has no labels: one image, a folder of images, a text file with one text a line.
    """
    if loose and (found := _unlabelled(path)):
        return found
    if path.is_file():
        return _single_file(path)
    if not path.exists():
        raise DataError(missing_path(path))
    for folder in (path, path / "data"):
        found = _in_folder(folder) if folder.is_dir() else None
        if found:
            return replace(found, root=path)
    for folder in _subfolders(path):  # a hub data set keeps each configuration in a folder of its own
        found = _split_files(folder)
        if found and len(_subfolders(path)) == 1:
            return replace(found, root=path)
    raise DataError(
        f"{path} holds no data that is understood; it must be a CSV, TSV, JSONL, JSON or Parquet file, a folder with "
        "train/valid/test files, a folder of images in class folders, MNIST .gz files, or a Hugging Face data set folder"
    )


def missing_path(path: Path) -> str:
    """The sentence for a path that is not there, with the nearest name beside it."""
    parent = path.parent
    if not parent.is_dir():
        return f"{path} does not exist, nor does the folder {parent}; give the path of a file or folder"
    siblings = [entry.name for entry in sorted(parent.iterdir()) if not entry.name.startswith(".")]
    hint = suggest(path.name, siblings)
    where = "the current folder" if str(parent) == "." else parent
    return f"{path} does not exist in {where}{hint if hint.startswith('; did') else ''}"


def split_of(stem: str) -> str | None:
    """The split a file or folder name stands for: `validation-00000-of-00001` -> `valid`; None where it names none."""
    return SPLIT_OF.get(re.sub(r"-\d{5}-of-\d{5}(-[0-9a-f]+)?$", "", stem).lower())


def images_in(folder: Path, *, split: str, root: Path) -> tuple[list[tuple[str, str]], list[Problem]]:
    """(path relative to `root`, class) of every image of one split in sorted order, and what else lies there.

    The class is the name of the folder right under `folder`; images directly in `folder` have the class "".
    """
    images: list[tuple[str, str]] = []
    problems: list[Problem] = []
    for entry in sorted(folder.iterdir()) if folder.is_dir() else [folder]:
        found = sorted(entry.rglob("*")) if entry.is_dir() else [entry]
        before = len(images)
        for file in found:
            relative = file.relative_to(root).as_posix()
            if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file():
                images.append((relative, entry.name if entry.is_dir() else ""))
            elif file.is_file() and file.name not in KEPT_QUIET and (entry.is_dir() or split_of(folder.name)):
                message = f"{relative} is not an image and is not used; move it out of the image folders"
                problems.append(Problem(kind="stray-file", split=split, row=None, file=relative, message=message))
        if entry.is_dir() and len(images) == before:
            name = entry.relative_to(root).as_posix()
            message = f"the class folder {name} holds no images; remove it or fill it"
            problems.append(Problem(kind="empty-class", split=split, row=None, file=name, message=message))
    return images, problems


def _unlabelled(path: Path) -> Layout | None:
    """One image or a folder of images without classes, or a text file with one text a line, as the split "test"."""
    suffix = path.suffix.lower()
    if path.is_file() and suffix in (*IMAGE_SUFFIXES, ".txt"):
        return Layout(kind="lines" if suffix == ".txt" else "images", root=path.parent, files={"test": (path,)})
    flat = path.is_dir() and _holds_images(path) and not any(_has_images(entry) for entry in _subfolders(path))
    return Layout(kind="images", root=path, files={"test": (path,)}) if flat else None


def _single_file(path: Path) -> Layout:
    """One file: all of its rows are to be split."""
    if path.suffix.lower() not in TABLE_SUFFIXES:
        raise DataError(f"{path} has the suffix {path.suffix!r}; it must be one of {', '.join(TABLE_SUFFIXES)}")
    return Layout(kind="files", root=path.parent, files={split_of(path.stem) or "train": (path,)})


def _in_folder(folder: Path) -> Layout | None:
    """The first layout that fits a folder, from the most to the least specific."""
    return _saved_to_disk(folder) or _idx_files(folder) or _split_files(folder) or _images(folder) or _lone_file(folder)


def _subfolders(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _saved_to_disk(folder: Path) -> Layout | None:
    """A folder written by `datasets.DatasetDict.save_to_disk` or `Dataset.save_to_disk`."""
    if (folder / "dataset_dict.json").is_file():
        parts = {split_of(entry.name): entry for entry in _subfolders(folder) if split_of(entry.name)}
        files = {split: tuple(sorted(entry.glob("*.arrow"))) for split, entry in parts.items() if split}
        return Layout(kind="files", root=folder, files={split: shards for split, shards in files.items() if shards})
    if (folder / "state.json").is_file() and (shards := tuple(sorted(folder.glob("*.arrow")))):
        return Layout(kind="files", root=folder, files={"train": shards})
    return None


def _idx_files(folder: Path) -> Layout | None:
    """MNIST files: `train-images-idx3-ubyte.gz` with `train-labels-idx1-ubyte.gz`, and the same for `t10k` or `test`."""
    files: dict[str, tuple[Path, ...]] = {}
    for images in sorted(folder.glob("*images?idx3?ubyte*")):
        split = split_of(images.name.split("-images")[0].split("_images")[0])
        labels = images.with_name(images.name.replace("images", "labels").replace("idx3", "idx1"))
        if split:
            files[split] = (images, labels) if labels.is_file() else (images,)
    return Layout(kind="idx", root=folder, files=files) if files else None


def _split_files(folder: Path) -> Layout | None:
    """Files whose names are splits, whole or in shards."""
    found: dict[str, list[Path]] = {}
    for file in sorted(folder.iterdir()):
        if file.is_file() and file.suffix.lower() in TABLE_SUFFIXES and (split := split_of(file.stem)):
            found.setdefault(split, []).append(file)
    for split, files in found.items():
        whole = [file for file in files if not re.search(r"-\d{5}-of-\d{5}", file.stem)]
        if len(files) > 1 and whole:
            names = " and ".join(file.name for file in files)
            raise DataError(f"{folder} holds {names}, which are all the {split} split; keep one of them")
    files = {split: tuple(found[split]) for split in SPLITS if split in found}
    return Layout(kind="files", root=folder, files=files) if files else None


def _lone_file(folder: Path) -> Layout | None:
    """A folder with one data file beside its README and the like."""
    files = [file for file in sorted(folder.iterdir()) if file.is_file() and file.suffix.lower() in TABLE_SUFFIXES]
    files = [file for file in files if file.suffix.lower() != ".json" or file.stem.lower() not in NOT_DATA]
    if len(files) > 1:
        names = ", ".join(file.name for file in files[:6])
        raise DataError(
            f"{folder} holds several data files ({names}); give one of them, or name them train, valid and test"
        )
    return Layout(kind="files", root=folder, files={"train": (files[0],)}) if files else None


def _images(folder: Path) -> Layout | None:
    """Image class folders, with or without a folder for each split above them."""
    parts = {split: entry for entry in _subfolders(folder) if (split := split_of(entry.name)) and _has_images(entry)}
    if parts:
        return Layout(kind="images", root=folder, files={split: (parts[split],) for split in SPLITS if split in parts})
    if any(_holds_images(entry) for entry in _subfolders(folder)):
        return Layout(kind="images", root=folder, files={"train": (folder,)})
    return None


def _holds_images(folder: Path) -> bool:
    return any(entry.suffix.lower() in IMAGE_SUFFIXES for entry in folder.iterdir())


def _has_images(folder: Path) -> bool:
    return any(entry.suffix.lower() in IMAGE_SUFFIXES for entry in folder.rglob("*"))
