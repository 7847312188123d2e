"""A finished model, loaded from its folder: raw values in, labels with calibrated probabilities or numbers with intervals out."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from torch import nn

from regraft.config.data import DataSpec
from regraft.data import safe_image, wav
from regraft.data.dataset import LANGUAGE, Dataset, Schema
from regraft.data.encode import AnyPreprocessor, load_preprocessor, row_names
from regraft.data.images import ImagePreprocessor
from regraft.data.raw import table_values
from regraft.data.read import load_as
from regraft.data.sounds import SoundPreprocessor
from regraft.data.text import TextPreprocessor
from regraft.errors import DataError, RunError, suggest
from regraft.models.delta import Base
from regraft.models.load import find_model
from regraft.models.save import load_model
from regraft.phases.choose.features import model_outputs
from regraft.transforms.temperature import Calibration

CHUNK = {"text": 4096, "image": 256, "audio": 256, "table": 32_768}  # rows predicted at once
MODEL, CALIBRATION = "model", "calibration.json"


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What the model says about one row. Which fields are set depends on the task."""

    label: str | None = None  # one class: the likeliest
    probability: float | None = None  # of it, calibrated
    probabilities: Mapping[str, float] = field(default_factory=dict)  # of every class
    labels: tuple[str, ...] | None = None  # multi-label: those with a probability of at least a half
    value: float | None = None  # regression
    low: float | None = None  # regression: where the target lies with the stated coverage
    high: float | None = None
    values: Mapping[str, float] | None = None  # regression of several numbers, by their names
    reason: str | None = None  # why there is no prediction; only where bad rows are skipped
    missing: tuple[str, ...] = ()  # the fields that a prediction would have had

    def to_json(self) -> dict[str, Any]:
        """Plain JSON with only the fields of the task; of a bad row they are null, with the reason."""
        if self.reason is not None:
            return dict.fromkeys(self.missing) | {"reason": self.reason}
        if self.value is not None:
            limits = {} if self.low is None else {"low": self.low, "high": self.high}
            return {"value": self.value} | limits
        if self.values is not None:
            return {"values": dict(self.values)}
        if self.labels is not None:
            return {"labels": list(self.labels), "probabilities": dict(self.probabilities)}
        return {"label": self.label, "probability": self.probability, "probabilities": dict(self.probabilities)}


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """A model with everything it needs to be used: preprocessing, labels and calibration."""

    folder: Path
    model: nn.Module
    preprocessor: AnyPreprocessor
    schema: Schema  # of the data it was trained on; `label` is () where the folder does not say
    calibration: Calibration

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields of `Prediction` that the task fills."""
        if self.schema.task == "regression" and len(self.schema.label) > 1:
            return ("values",)
        if self.schema.task == "regression":
            return ("value", "low", "high") if self.calibration.kind == "residual" else ("value",)
        return (
            ("labels", "probabilities")
            if self.schema.task == "multilabel"
            else ("label", "probability", "probabilities")
        )

    def predict(self, data: Any, *, on_bad_sample: Literal["fail", "skip"] = "fail") -> list[Prediction]:
        """A prediction for each row.

        Args:
            data: texts; for images paths or bytes; rows as mappings by column name; a table such as a pandas, polars or Arrow
                one; a mapping of columns; or the path of a file or folder.
            on_bad_sample: a row without usable input stops ("fail"), or gets a prediction that only says why ("skip").

        Raises:
            DataError: columns are missing, or values are of another kind than the model takes.
        """
        if isinstance(data, str | Path):
            parts = self.predict_file(data, options={"on_bad_sample": on_bad_sample})
            return [one for part in parts for one in part]
        columns = columns_of(data, self.schema)
        count = len(next(iter(columns.values())))
        size = CHUNK[self.schema.modality]
        parts = [{name: values[at : at + size] for name, values in columns.items()} for at in range(0, count, size)]
        if on_bad_sample == "fail":
            return [one for part in parts for one in self.predictions(self.scores(part))]
        return [one for part in parts for one in self._careful(part)]

    def _careful(self, columns: dict[str, list[object]]) -> list[Prediction]:
        """Predictions of rows in memory, those that cannot be encoded without one."""
        count = len(next(iter(columns.values())))
        reasons: dict[int, str] = {}
        for at in range(count):
            try:
                self.preprocessor.encode({name: [values[at]] for name, values in columns.items()}, names=[f"row {at}"])
            except DataError as error:
                reasons[at] = str(error)
        good = {name: [v for at, v in enumerate(values) if at not in reasons] for name, values in columns.items()}
        made = iter(self.predictions(self.scores(good)))
        return [self.nothing(reasons[at]) if at in reasons else next(made) for at in range(count)]

    def nothing(self, reason: str) -> Prediction:
        """What stands in the place of a row that cannot be predicted."""
        return Prediction(reason=reason, missing=self.fields)

    def predict_file(self, path: str | Path, *, options: Mapping[str, Any] | None = None) -> Iterator[list[Prediction]]:
        """Predictions of the rows of a file or folder in their order, some rows at a time; memory stays bounded.

        Args:
            path: CSV, TSV, JSONL, Parquet, a text file with one text a line, an image or a folder of images.
            options: other fields of `DataSpec`, such as `encoding`, `delimiter` and `on_bad_sample`: with "skip" a bad row
                keeps its place, with a prediction that only says why there is none.

        Raises:
            DataError: the file cannot be read or lacks an input, or a row of it is bad.
        """
        dataset = self.read(path, options=options)
        for split in dataset.splits:
            if dataset.skipped is None:
                require_whole(dataset, split)
                yield from (self.predictions(scores) for scores in self.score_split(dataset, split))
            else:
                yield from self._with_gaps(dataset, split)

    def _with_gaps(self, dataset: Dataset, split: str) -> Iterator[list[Prediction]]:
        """Predictions of a split, with one that says why for each bad row in its place."""
        assert dataset.skipped is not None
        bad = sorted(row for rows in dataset.skipped.rows.get(split, {}).values() for row in rows.tolist())
        said = [p.message for p in dataset.problems if p.left_out and p.split == split]
        waiting = list(zip(bad, said, strict=True))[::-1]
        at = 0
        for scores in self.score_split(dataset, split):
            out: list[Prediction] = []
            rows = dataset.splits[split].rows[at : at + len(scores)].tolist()
            for row, made in zip(rows, self.predictions(scores), strict=True):
                while waiting and waiting[-1][0] < row:
                    out.append(self.nothing(waiting.pop()[1]))
                out.append(made)
            at += len(rows)
            yield out
        yield [self.nothing(reason) for _, reason in reversed(waiting)]

    def read(self, path: str | Path, *, options: Mapping[str, Any] | None = None) -> Dataset:
        """New data with the columns this model was trained on."""
        text = str(path)
        if not Path(text).expanduser().exists() and (len(text) > 240 or " " in text or "\n" in text):
            raise DataError(f"there is no file {text[:60]!r}; to predict texts give a list of them")
        return load_as(DataSpec(path=text, **(options or {})), self.schema)

    def score_split(self, dataset: Dataset, split: str) -> Iterator[np.ndarray]:
        """Calibrated scores of a split as `scores` gives them, some rows at a time."""
        size, count = CHUNK[self.schema.modality], len(dataset.splits[split])
        for at in range(0, count, size):
            rows = np.arange(at, min(at + size, count))
            yield self.scores(dataset.raw(split, rows), names=row_names(dataset, split, rows))

    def scores(self, columns: dict[str, list[object]], *, names: list[str] | None = None) -> np.ndarray:
        """Calibrated probabilities (N, C), or predictions (N,) for regression, from raw values by column name; fp32."""
        if not len(next(iter(columns.values()))):
            return np.empty((0, len(self.schema.classes)) if self.schema.classes else (0,))
        encoded = self.preprocessor.encode(columns, names=names)
        outputs = model_outputs(self.model, encoded, precision="fp32").numpy()
        return self.calibration.probabilities(outputs)

    def predictions(self, scores: np.ndarray) -> list[Prediction]:
        """Scores as predictions."""
        classes = self.schema.classes
        if self.schema.task == "regression" and scores.ndim == 2:
            targets = self.schema.label
            return [Prediction(values=dict(zip(targets, map(float, row), strict=True))) for row in scores]
        if self.schema.task == "regression":
            return list(self._values(scores))
        rows = [dict(zip(classes, map(float, row), strict=True)) for row in scores]
        if self.schema.task == "multilabel":
            chosen = [tuple(name for name, value in row.items() if value >= 0.5) for row in rows]
            return [Prediction(labels=names, probabilities=row) for names, row in zip(chosen, rows, strict=True)]
        best = [classes[int(index)] for index in scores.argmax(1)] if len(scores) else []
        return [
            Prediction(label=name, probability=row[name], probabilities=row)
            for name, row in zip(best, rows, strict=True)
        ]

    def _values(self, scores: np.ndarray) -> Iterator[Prediction]:
        if self.calibration.kind != "residual":
            yield from (Prediction(value=float(value)) for value in scores)
            return
        for value, low, high in zip(scores, *self.calibration.interval(scores), strict=True):
            known = math.isfinite(low) and math.isfinite(high)
            yield Prediction(value=float(value), low=float(low) if known else None, high=float(high) if known else None)


def load(run: str | Path, *, module: nn.Module | None = None, base: Base | str | None = None) -> Predictor:
    """The finished model of a run directory, or of the `model` folder in one; both may have been moved.

    Args:
        run: the folder.
        module: an instance of the class, where the model was a module of one's own.
        base: of a delta (`regraft export RUN --delta`), by name or loaded; default the one it names.

    Raises:
        RunError: there is no finished model.
    """
    folder = model_folder(Path(run).expanduser())
    model, info = load_model(folder, module=copy.deepcopy(module), base=base)  # the weights go into a copy
    if info["task"] == LANGUAGE:
        raise RunError(
            f"{folder} holds a language model, which has no label to predict; let transformers.AutoModelForCausalLM load it"
        )
    preprocessor = load_preprocessor(folder, tokenizer=_tokenizer_of(info, base))
    return Predictor(
        folder=folder,
        model=model,
        preprocessor=preprocessor,
        schema=_schema(info, preprocessor),
        calibration=_calibration(folder, info),
    )


def _tokenizer_of(info: Mapping[str, Any], base: Base | str | None) -> Path | None:
    """The folder of the base of a delta, where its tokenizer lies; None for a whole model, which has it beside it."""
    if "delta" not in info:
        return None
    return base.folder if isinstance(base, Base) else find_model(base or info["delta"]["base"])


def model_folder(run: Path) -> Path:
    """The folder with model.json: `run` itself or `run/model`. RunError where it is neither."""
    for folder in (run / MODEL, run):
        if (folder / "model.json").is_file():
            return folder
    if not run.exists():
        siblings = (
            [entry.name for entry in sorted(run.parent.iterdir()) if entry.is_dir()] if run.parent.is_dir() else []
        )
        hint = suggest(run.name, siblings)
        raise RunError(f"{run}: there is no such run{hint if hint.startswith('; did') else ''}")
    if (run / "recipe.yaml").is_file():
        raise RunError(f"{run}: the run has no finished model yet; go on with `regraft resume {run}`")
    raise RunError(f"{run}: is neither a run directory nor a model folder (it has no model.json)")


def _schema(info: Mapping[str, Any], preprocessor: AnyPreprocessor) -> Schema:
    """What the model takes and gives, from its folder."""
    extra = info.get("extra") or {}
    modality, numeric = "table", ()
    if isinstance(preprocessor, TextPreprocessor):
        modality, inputs = "text", tuple(preprocessor.columns)
    elif isinstance(preprocessor, ImagePreprocessor):
        modality, inputs = "image", (preprocessor.column,)
    elif isinstance(preprocessor, SoundPreprocessor):
        modality, inputs = "audio", (preprocessor.column,)
    else:
        numeric = tuple(part.column for part in preprocessor.numeric)
        fitted = (*numeric, *(part.column for part in preprocessor.categorical))
        inputs = tuple(extra.get("modality_inputs") or fitted)
    return Schema(
        modality=cast(Any, modality),
        inputs=inputs,
        label=tuple(extra.get("label") or ()),
        task=cast(Any, info["task"]),
        classes=tuple(str(label) for label in info["labels"]),
        numeric=numeric,
    )


def _calibration(folder: Path, info: Mapping[str, Any]) -> Calibration:
    """The calibration beside the model; none where the folder holds none."""
    file = folder / CALIBRATION
    if not file.is_file():
        return Calibration(kind="identity", task=str(info["task"]))
    try:
        return Calibration.from_json(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, KeyError) as error:
        raise RunError(f"{file} is damaged ({error}); copy the model folder again") from None


def require_whole(dataset: Dataset, split: str) -> None:
    """DataError where rows of a split could not be read: a prediction must stand beside every row of the file."""
    if dataset.skipped is not None:
        return  # they are left out on purpose, and counted
    lost = [p for p in dataset.problems if p.split in (split, "train") and p.row is not None]
    kept = set(dataset.splits[split].rows.tolist()) if lost else set()
    missing = [problem for problem in lost if problem.row not in kept]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise DataError(f"{missing[0].message}{more}; correct the file, so that every row gets its prediction")


# ---- raw values in memory


def columns_of(data: Any, schema: Schema) -> dict[str, list[object]]:
    """Raw values of the input columns by name from texts, images, rows or tables in memory; DataError where they do not fit."""
    names = getattr(data, "column_names", None) or getattr(data, "columns", None)
    if names is not None and not isinstance(data, Mapping):
        _need(schema, [str(name) for name in names])
        found = {name: _listed(data[name]) for name in schema.inputs}
    elif isinstance(data, Mapping):
        _need(schema, [str(name) for name in data])
        found = {name: _listed(data[name]) for name in schema.inputs}
    else:
        found = _from_rows(data, schema)
    lengths = {len(values) for values in found.values()}
    if len(lengths) > 1:
        raise DataError(f"columns must be of one length, got {', '.join(map(str, sorted(lengths)))}")
    return {name: _cleaned(values, schema) for name, values in found.items()}


def _from_rows(data: Any, schema: Schema) -> dict[str, list[object]]:
    if not isinstance(data, Sequence | np.ndarray) or isinstance(data, bytes | bytearray):
        raise DataError(f"data: give a list of {_kind(schema)}, a table or a path, got {type(data).__name__}")
    rows = list(data)
    if rows and isinstance(rows[0], Mapping):
        for row in rows:
            _need(schema, [str(name) for name in row])
        return {name: [row[name] for row in rows] for name in schema.inputs}
    if not rows or len(schema.inputs) == 1:
        return dict.fromkeys(schema.inputs, rows)
    if schema.modality == "text" and all(isinstance(row, tuple | list) and len(row) == 2 for row in rows):
        return {name: [row[at] for row in rows] for at, name in enumerate(schema.inputs)}
    wanted = ", ".join(schema.inputs[:6]) + (", ..." if len(schema.inputs) > 6 else "")
    got = type(rows[0]).__name__
    raise DataError(f"data: this model takes {len(schema.inputs)} columns ({wanted}); give rows as mappings, got {got}")


def _kind(schema: Schema) -> str:
    kinds = {"text": "texts", "image": "image paths or bytes", "audio": "paths or bytes of WAV files"}
    return kinds.get(schema.modality, "rows as mappings")


def _need(schema: Schema, names: Sequence[str]) -> None:
    missing = [name for name in schema.inputs if name not in names]
    if missing:
        raise DataError(f"data: has no column called {missing[0]!r}, which is an input{suggest(missing[0], names)}")


def _listed(values: Any) -> list[object]:
    """A column of whatever library as a list of Python values."""
    for method in ("to_pylist", "to_list", "tolist"):
        if hasattr(values, method):
            return list(getattr(values, method)())
    return list(values)


def _cleaned(values: list[object], schema: Schema) -> list[object]:
    """Cells as the preprocessor takes them: missing ones None, numpy scalars unwrapped, images as bytes."""
    plain = [value.item() if isinstance(value, np.generic) else value for value in values]
    plain = [None if type(value).__name__ in ("NAType", "NaTType") else value for value in plain]
    if schema.modality == "image":
        return [_file_bytes(value, "image", safe_image.MAX_BYTES) for value in plain]
    if schema.modality == "audio":
        return [_file_bytes(value, "sound", wav.MAX_BYTES) for value in plain]
    if schema.modality == "table":
        return table_values([int(value) if isinstance(value, bool) else value for value in plain], is_bool=False)
    wrong = next((value for value in plain if not isinstance(value, str | int | float | None)), None)
    if wrong is not None:
        raise DataError(f"data: this model takes texts, got {type(wrong).__name__}")
    return plain


def _file_bytes(value: object, what: str, most: int) -> object:
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes | bytearray):
        return bytes(value)
    if isinstance(value, str | Path):
        try:
            file = Path(value).expanduser()
            if file.stat().st_size > most:
                raise DataError(f"{value}: the {what} has more than {most:,} bytes; make it smaller or leave it out")
            return file.read_bytes()
        except OSError as error:
            raise DataError(f"{value}: the {what} cannot be read ({error.strerror})") from None
    raise DataError(f"data: this model takes {what}s as paths or bytes, got {type(value).__name__}")
