"""Commands on finished runs: predict, evaluate, report, diff."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from regraft.cli.app import app
from regraft.cli.options import Common, OnBad, OnBadRow, Run, command
from regraft.cli.screen import screen, show_json, show_lines, show_table
from regraft.data.csv_cells import harmless

if TYPE_CHECKING:
    from regraft.phases.predict import Prediction, Predictor

TOP = 3  # classes shown beside a label to people


@command(app)
def predict(
    run: Run,
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE|-", help="csv, tsv, jsonl, parquet, txt, an image, a folder of images; - is standard input."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Write to a .csv, .jsonl or .json file instead.")
    ] = None,
    encoding: Annotated[str | None, typer.Option(metavar="NAME", help="Of text files, such as latin-1.")] = None,
    delimiter: Annotated[str | None, typer.Option(metavar="CHAR", help="Between the fields of a CSV file.")] = None,
    on_bad_sample: OnBadRow = None,
    common: Common = Common(),  # noqa: B008
) -> None:
    """Labels with calibrated probabilities, or numbers with intervals, for every row of a file."""
    from regraft.cli.stdin import readable_input
    from regraft.errors import RunError
    from regraft.phases.predict import load

    if out is not None and out.exists():
        raise RunError(f"{out} exists; predictions are only written to a new file, give another --out")
    predictor = load(run)
    given = (("encoding", encoding), ("delimiter", delimiter), ("on_bad_sample", on_bad_sample))
    options = {name: value for name, value in given if value is not None}
    with readable_input(file, predictor.schema) as path:
        parts = predictor.predict_file(path, options=options)
        first = next(parts, [])  # what is wrong with the file shows before anything is written
        as_json = common.json or (out is not None and out.suffix in (".jsonl", ".json"))
        with _target(out) as stream:
            write = _json_lines if as_json else _rows(stream, predictor, reasons=on_bad_sample == "skip")
            for part in chain((first,), parts):
                write(stream, part)


def _json_lines(stream: IO[str], part: list[Prediction]) -> None:
    for prediction in part:
        stream.write(json.dumps(prediction.to_json(), ensure_ascii=False) + "\n")


def _rows(stream: IO[str], predictor: Predictor, *, reasons: bool) -> Any:
    """A writer of CSV rows, the header before the first of them; `reasons` adds the column that bad rows need."""
    writer = csv.writer(stream, lineterminator="\n")
    names = [name for name in predictor.fields if name not in ("probabilities", "values")]
    names += list(predictor.schema.label) if "values" in predictor.fields else []
    names += list(predictor.schema.classes) if predictor.schema.task == "multilabel" else []
    writer.writerow([harmless(name) for name in [*names, *(["reason"] if reasons else [])]])

    def write(_: IO[str], part: list[Prediction]) -> None:
        for prediction in part:
            record = _record(prediction) | {"reason": prediction.reason or ""}
            cells = [record.get(name, "") for name in names] + ([record["reason"]] if reasons else [])
            writer.writerow([harmless(cell) for cell in cells])

    return write


def _record(prediction: Prediction) -> dict[str, str]:
    """The columns of a CSV line, none of them for a bad row."""
    if prediction.reason is not None:
        return {}
    if prediction.value is not None:
        limits = {} if prediction.low is None else {"low": f"{prediction.low:.6g}", "high": f"{prediction.high:.6g}"}
        return {"value": f"{prediction.value:.6g}"} | limits
    if prediction.values is not None:
        return {name: f"{value:.6g}" for name, value in prediction.values.items()}
    if prediction.labels is not None:
        shown = {name: f"{value:.4f}" for name, value in prediction.probabilities.items()}
        return shown | {"labels": " | ".join(prediction.labels)}
    return {"label": str(prediction.label), "probability": f"{prediction.probability:.4f}"}


@contextmanager
def _target(out: Path | None) -> Iterator[IO[str]]:
    """Standard output, or a file that appears only when it is whole."""
    from regraft.errors import RunError

    if out is None:
        yield sys.stdout
        return
    partial = out.with_name(f".{out.name}.partial")
    try:
        with partial.open("w", encoding="utf-8", newline="") as stream:
            yield stream
        partial.replace(out)
    except OSError as error:
        raise RunError(f"{out}: cannot be written ({error.strerror}); give another --out") from error
    finally:
        partial.unlink(missing_ok=True)


@command(app)
def evaluate(
    run: Run,
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="New labelled data with the columns of the training data.")
    ],
    label: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN", help="Label column; default the one of the training data.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of a folder with several: train, valid or test. Default test.")
    ] = None,
    encoding: Annotated[str | None, typer.Option(metavar="NAME", help="Of text files, such as latin-1.")] = None,
    delimiter: Annotated[str | None, typer.Option(metavar="CHAR", help="Between the fields of a CSV file.")] = None,
    on_bad_sample: OnBad = None,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    common: Common = Common(),  # noqa: B008
) -> None:
    """Metrics with 95 % intervals on new labelled data."""
    from regraft.phases.predict import load
    from regraft.phases.scoring import score_data

    given = (("encoding", encoding), ("delimiter", delimiter), ("on_bad_sample", on_bad_sample))
    options = {name: value for name, value in given if value is not None}
    with screen(common.quiet or common.json) as reporter:
        scored = score_data(
            load(run), data, label=tuple(label or ()), split=split, seed=seed, options=options, reporter=reporter
        )
    if common.json:
        show_json(scored)
        return
    rows = [_metric_row(name, entry) for name, entry in scored["metrics"].items()]
    title = f"{scored['rows']:,} rows of {scored['data']} ({scored['split']})"
    show_table(title, ("metric", "value", "95 % interval"), rows, right=("value",))


def _metric_row(name: str, entry: dict[str, Any]) -> tuple[str, str, str]:
    value = entry["value"]
    if value is None:
        return name, "-", entry.get("reason", "not defined here")
    if name in ("n", "excluded", "resamples"):
        return name, f"{value:,}", ""
    return name, f"{value:.4f}", f"{entry['low']:.4f} to {entry['high']:.4f}"


@command(app)
def report(run: Run, common: Common = Common()) -> None:  # noqa: B008
    """Write report.html anew from the files of a run."""
    from regraft.phases.report.document import write_report
    from regraft.phases.report.summary import text_summary

    path, lines = write_report(run), text_summary(run)
    if common.json:
        show_json({"report": str(path), "summary": lines})
        return
    show_lines([*lines, "", f"Report: {path}"])


@command(app)
def diff(
    first: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")],
    second: Annotated[Path, typer.Argument(metavar="RUN", help="Another one.")],
    common: Common = Common(),  # noqa: B008
) -> None:
    """Two runs side by side: metrics, cost, and the fields of their recipes that differ."""
    from regraft.phases.report.diff import diff_runs

    lines = diff_runs(first, second)
    if common.json:
        show_json([line.to_json() for line in lines])
        return
    rows = [
        (
            line.section,
            line.name,
            _short(line.a),
            _short(line.b),
            _change(line.difference, line.low, line.high),
            line.better or "",
        )
        for line in lines
    ]
    show_table(f"a = {first}, b = {second}", ("", "what", "a", "b", "b - a (95 % interval)", "better"), rows)


def _short(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else "-" if value is None else str(value)
    return text if len(text) <= 48 else text[:45] + "..."


def _change(difference: float | None, low: float | None, high: float | None) -> str:
    if difference is None:
        return ""
    return f"{difference:+.4g}" + (f" ({low:+.4g} to {high:+.4g})" if low is not None and high is not None else "")
