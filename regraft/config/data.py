"""The `data:` section of a recipe: where the rows are and what their columns mean."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from regraft.config.spec import Spec


def _names(value: object) -> object:
    """One name or a list of names -> a tuple of names."""
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_names)]


class LeftOut(Spec):
    """Bad rows as they were found when a run began: a resumed run leaves out these and no others. Written by regraft."""

    files: str  # sha256 over the names and contents of the files in which they were found
    rows: dict[str, dict[str, str]] = Field(default_factory=dict)  # split -> kind -> rows, such as "3,17,90-92"
    first: tuple[str, ...] = ()  # what was wrong with the first of them, for the report


class DataSpec(Spec):
    """One data set. What is left at its default is detected from the data, shown, and can be overridden here."""

    path: str  # file, folder, hub id, or an embedded sample: stdlib-docstrings, digits, digits-0-4, digits-5-9, wine, diabetes
    text: Names = ()  # one column, or two for pairs
    image: str | None = None
    audio: str | None = None  # a column of paths of WAV files; trained with `regraft train` and a network
    label: Names = ()  # one column, or several 0/1 columns for multi-label
    features: Names = ()  # table: the columns used; default all that are not label, group, time or ignored
    group: str | None = None
    time: str | None = None
    task: Literal["auto", "binary", "multiclass", "multilabel", "regression", "language-model"] = "auto"
    modality: Literal["auto", "text", "image", "audio", "table"] = "auto"
    encoding: str = "auto"
    delimiter: str = "auto"
    quoting: Literal["auto", "minimal", "none"] = "auto"
    valid: float = Field(default=0.1, gt=0, lt=0.5)  # share of train cut off for validation where none is given
    test: float = Field(default=0.2, gt=0, lt=0.5)  # share cut off for the final test where none is given
    folds: int | None = Field(default=None, ge=2)  # validation rows are one of so many folds of the training rows
    fold: int = Field(default=0, ge=0)  # which one, from 0
    limit: int | None = Field(default=None, ge=1)  # at most this many training rows are used, a seeded sample
    limit_valid: int | None = Field(default=None, ge=1)  # likewise of the validation rows
    limit_test: int | None = Field(default=None, ge=1)  # likewise of the test rows
    on_bad_sample: Literal["fail", "skip"] = "fail"  # a row, image or label that cannot be read or learned from
    most_bad: float = Field(default=0.05, ge=0, lt=1)  # share of rows that may be left out; more stops the job
    left_out: LeftOut | None = None  # which ones were; written into the recipe of a run
    seed: int = 0  # of the splits and of the sample
