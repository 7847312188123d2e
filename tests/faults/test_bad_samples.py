"""R7: 1 % of the rows damaged, in every format: stopped at by file and row, or left out with exact counts, also on resume."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from faults.archive_injectors import zipped
from faults.bad_data import FORMATS, ROWS, csv_numbers, csv_targets, csv_text, delimited, image_folder, table_rows
from typer.testing import CliRunner, Result

from regraft.config.data import DataSpec
from regraft.config.parse import dump_fields
from regraft.config.recipe import RecipeSpec, dump_recipe, read_recipe
from regraft.data import bad_images
from regraft.data.bad_policy import bad_sample_facts, from_ranges, left_out_of, ranges
from regraft.data.csv_cells import harmless
from regraft.data.read import load
from regraft.errors import DataError
from regraft.phases.predict import load as load_predictor


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REGRAFT_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


def regraft(*arguments: object) -> Result:
    from regraft.cli.app import app

    return CliRunner().invoke(app, [str(each) for each in arguments])


def left_out(data) -> dict[int, str]:
    return {row: kind for kind, rows in data.skipped.rows.get("train", {}).items() for row in rows.tolist()}


@pytest.mark.parametrize("name", FORMATS)
def test_the_first_bad_row_stops_the_job_with_its_file_and_its_row(tmp_path: Path, name: str):
    planted = FORMATS[name](tmp_path / "data")
    first = min(planted.bad)
    with pytest.raises(DataError) as caught:
        load(planted.spec())
    said = str(caught.value)
    file = rf"row {first} of \S+" if name != "image_folder" else r"(calm|busy)/\d+\.jpg"
    assert re.match(file, said), said
    assert "--on-bad-sample skip" in said
    assert "\n" not in said


@pytest.mark.parametrize("name", FORMATS)
def test_exactly_the_planted_rows_are_left_out_and_counted_by_kind(tmp_path: Path, name: str):
    planted = FORMATS[name](tmp_path / "data")
    data = load(planted.spec(on_bad_sample="skip"))
    assert left_out(data) == planted.bad
    kept = [row for part in data.splits.values() if part.file != "test.csv" for row in part.rows.tolist()]
    assert len(kept) == len(set(kept))
    assert not set(kept) & set(planted.bad)
    facts = bad_sample_facts(data)
    assert facts["rows"] == len(planted.bad)
    assert sum(facts["counts"]["train"].values()) == len(planted.bad)
    assert len(facts["first"]) == min(5, len(planted.bad))
    assert facts["of"] == len(kept) + len(planted.bad) + (60 if name == "split_folder" else 0)
    for split in data.splits:
        targets = data.targets(split)
        assert np.isfinite(targets).all()
        assert targets.dtype.kind == "f" or (targets >= 0).all()


@pytest.mark.parametrize("name", FORMATS)
def test_a_recipe_that_names_the_rows_leaves_out_the_same_ones_without_looking(tmp_path, monkeypatch, name):
    planted = FORMATS[name](tmp_path / "data")
    data = load(planted.spec(on_bad_sample="skip"))
    given = left_out_of(data)
    monkeypatch.setattr(bad_images, "fault", lambda _: pytest.fail("an image was judged again"))
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    again = load(planted.spec(on_bad_sample="skip", left_out=given))
    assert again.fingerprint == data.fingerprint
    assert bad_sample_facts(again)["counts"] == bad_sample_facts(data)["counts"]
    assert {s: p.rows.tolist() for s, p in again.splits.items()} == {s: p.rows.tolist() for s, p in data.splits.items()}


def test_the_line_is_that_of_the_editor_where_rows_span_several(tmp_path):
    rows = [[f'"two lines\nof the text {row}"', "ab"[row % 2]] for row in range(30)]
    rows[10] = ["one field"]
    file = delimited(tmp_path / "a.csv", ["text", "label"], rows)
    with pytest.raises(DataError, match=r"row 10 of a.csv \(line 22\) has 1 field instead of 2"):
        load(csv_text(tmp_path / "other").spec(path=str(file)))


def test_more_bad_rows_than_allowed_stop_the_job_and_a_share_of_ones_own_allows_them(tmp_path):
    planted = csv_text(tmp_path)
    with pytest.raises(
        DataError, match=r"4 of 400 rows are bad \(a wrong number of fields: 2, .*more than the 0.99 % "
    ):
        load(planted.spec(on_bad_sample="skip", most_bad=0.0099))
    assert left_out(load(planted.spec(on_bad_sample="skip", most_bad=0.01))) == planted.bad


def test_rows_named_for_other_data_are_refused(tmp_path):
    planted = csv_text(tmp_path)
    given = left_out_of(load(planted.spec(on_bad_sample="skip")))
    planted.path.write_bytes(planted.path.read_bytes() + b"one more text of some words,calm\n")
    with pytest.raises(DataError, match="is not the data in which the rows of data"):
        load(planted.spec(on_bad_sample="skip", left_out=given))


def test_clean_data_with_gaps_in_its_table_and_codes_in_its_columns_is_not_bad(tmp_path):
    rows = table_rows()
    rows[4][0], rows[5][2], rows[6][1] = "", "?", "NA"
    coded = [[*row[:3], "V57" if k % 40 == 0 else 100 + k, row[3]] for k, row in enumerate(rows)]
    data = load(csv_text(tmp_path / "o").spec(path=str(delimited(
        tmp_path / "a.csv", ["width", "height", "place", "code", "kind"], coded)), text=(), label="kind"))  # fmt: skip
    assert sum(len(part) for part in data.splits.values()) == ROWS
    assert "code" not in data.schema.numeric
    assert {"width", "height"} <= set(data.schema.numeric)


def test_ranges_are_the_rows_again_and_nothing_else_is_taken_for_them():
    rows = np.unique(np.random.default_rng(0).integers(0, 400, 150))
    assert from_ranges(ranges(rows), most=len(rows)) == rows.tolist()
    assert from_ranges(ranges(np.array([], np.int64)), most=0) == []
    for wrong in ("1-", "-3", "a", "1,,2", "1-2-3", "0-99999999999", "\u0663", "9" * 50):
        with pytest.raises(DataError):
            from_ranges(wrong, most=10)


def test_the_audit_names_all_bad_rows_and_its_copy_has_none_of_them(tmp_path):
    planted = csv_numbers(tmp_path / "data")
    shown = regraft("audit", planted.path, "--label", "kind", "--json")
    assert shown.exit_code == 1
    named = {row for f in json.loads(shown.stdout)["findings"] if f["severity"] == "error" for row in f["rows"]}
    assert named == set(planted.bad)
    skipped = regraft("audit", planted.path, "--label", "kind", "--json", "--on-bad-sample", "skip")
    assert skipped.exit_code == 0
    assert json.loads(skipped.stdout)["facts"]["bad_samples"]["rows"] == len(planted.bad)
    assert regraft("audit", planted.path, "--label", "kind", "--fix", tmp_path / "clean", "--quiet").exit_code == 1
    clean = load(planted.spec(path=str(tmp_path / "clean")))
    assert sum(len(part) for part in clean.splits.values()) == ROWS - len(planted.bad)


@pytest.fixture(scope="module")
def adapted(tmp_path_factory) -> tuple[Path, Path]:
    """(the data, a finished run on it without its bad rows)."""
    folder = tmp_path_factory.mktemp("adapted")
    planted = csv_numbers(folder / "data")
    result = regraft(
        "adapt", planted.path, "--label", "kind", "--out", folder / "run", "--budget", "15s", "--quiet",
        "--strategy", "probe", "--on-bad-sample", "skip",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    return planted.path, folder / "run"


def test_the_files_of_a_run_say_how_many_rows_were_left_out_and_which(adapted):
    _, run = adapted
    audit = json.loads((run / "audit.json").read_text())["facts"]["bad_samples"]
    metrics = json.loads((run / "metrics.json").read_text())["data"]["bad_samples"]
    assert audit == metrics
    assert (audit["rows"], audit["of"]) == (4, ROWS)
    assert audit["counts"] == {"train": {"missing-label": 1, "not-a-number": 1, "not-finite": 2}}
    assert audit["first"][0] == "row 9 of data.csv holds '1.2.3' in the column 'width', which holds numbers"
    assert "4 of 400 rows are bad and were left out" in (run / "report.html").read_text()
    named = read_recipe(run / "recipe.yaml").main_data().left_out
    assert named is not None
    assert named.rows == {"train": {"missing-label": "301", "not-a-number": "9", "not-finite": "50,300"}}


def test_a_resumed_run_leaves_out_the_same_rows_and_ends_with_the_same_bits(adapted, tmp_path, monkeypatch):
    _, run = adapted
    again = tmp_path / "again"
    shutil.copytree(run, again)
    for phase in (again / "phases").glob("*.json"):
        if phase.stem not in ("audit", "measure", "probe", "plan"):
            phase.unlink()
    monkeypatch.setattr("regraft.data.bad_policy._in_tables", lambda *_: pytest.fail("rows were judged again"))
    result = regraft("resume", again, "--quiet")
    assert result.exit_code == 0, result.stderr
    one, two = ((folder / "model" / "model.safetensors").read_bytes() for folder in (run, again))
    assert one == two
    kept = [json.loads((folder / "metrics.json").read_text())["data"] for folder in (run, again)]
    assert kept[0] == kept[1]


def test_train_leaves_out_what_it_is_told_to_and_fails_otherwise(tmp_path):
    planted = csv_targets(tmp_path / "data")
    tree = {
        "models": {"main": {"network": {"MLP": {"width": 8, "depth": 1}}}},
        "stages": [{"name": "all", "steps": 3}],
        "data": {"main": dump_fields(planted.spec())},
    }
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({"format": RecipeSpec.model_fields["format"].default, **tree}))
    stopped = regraft("train", recipe, "--out", tmp_path / "no", "--quiet")
    assert stopped.exit_code == 2
    assert stopped.stderr.startswith("regraft: row 2 of data.csv (line 4) holds 'unknown'")
    assert not (tmp_path / "no").exists()
    done = regraft("train", recipe, "--out", tmp_path / "run", "--quiet", "--on-bad-sample", "skip")
    assert done.exit_code == 0, done.stderr
    facts = json.loads((tmp_path / "run" / "metrics.json").read_text())["data"]["bad_samples"]
    assert facts["counts"] == {"train": {"bad-target": 3, "missing-label": 1}}
    assert read_recipe(tmp_path / "run" / "recipe.yaml").main_data().left_out is not None
    assert "left_out" in dump_recipe(read_recipe(tmp_path / "run" / "recipe.yaml"))
    assert regraft("train", recipe, "--out", tmp_path / "x", "--on-bad-sample", "skipp").exit_code == 2


def test_predictions_keep_the_place_of_bad_rows_and_say_why(adapted, tmp_path):
    _, run = adapted
    rows = [row[:3] for row in table_rows()[:20]]
    clean = regraft(
        "predict", run, delimited(tmp_path / "clean.csv", ["width", "height", "place"], rows)
    ).stdout.splitlines()
    rows[0][0], rows[7], rows[19] = "wide", [1, 2, "north", "more"], ["", "", ""]
    file = delimited(tmp_path / "new.csv", ["width", "height", "place"], rows)
    stopped = regraft("predict", run, file)
    assert stopped.exit_code == 2
    assert stopped.stderr.startswith("regraft: row 0 of new.csv (line 2) holds 'wide' in the column 'width'")
    lines = regraft("predict", run, file, "--on-bad-sample", "skip").stdout.splitlines()
    assert lines[0] == "label,probability,reason"
    assert len(lines) == len(clean) == 21
    for place in range(20):
        if place in (0, 7, 19):
            assert lines[1 + place].startswith(',,"row ') or lines[1 + place].startswith(",,row ")
        else:
            assert lines[1 + place] == clean[1 + place] + ","
    as_json = regraft("predict", run, file, "--on-bad-sample", "skip", "--json").stdout.splitlines()
    assert json.loads(as_json[0])["label"] is None
    assert json.loads(as_json[7])["reason"] == "row 7 of new.csv has 4 fields instead of 3"
    assert json.loads(as_json[1])["label"] in ("x", "y")


def test_an_evaluation_counts_what_it_leaves_out(adapted):
    data, run = adapted
    assert regraft("evaluate", run, data).stderr.startswith("regraft: row 9 of data.csv (line 11) holds '1.2.3'")
    done = regraft("evaluate", run, data, "--on-bad-sample", "skip", "--json")
    assert done.exit_code == 0, done.stderr
    scored = json.loads(done.stdout)
    assert scored["rows"] == ROWS - 3  # a row without a label is no bad input
    assert scored["bad_samples"]["counts"] == {"test": {"not-a-number": 1, "not-finite": 2}}


def test_rows_in_memory_keep_their_place_too(adapted):
    predictor = load_predictor(adapted[1])
    rows = [dict(zip(("width", "height", "place"), row, strict=False)) for row in table_rows()[:5]]
    clean = predictor.predict(rows)
    rows[2]["width"] = float("inf")
    with pytest.raises(DataError, match="row 2: column 'width' must hold finite numbers"):
        predictor.predict(rows)
    made = predictor.predict(rows, on_bad_sample="skip")
    assert made[2].reason == "row 2: column 'width' must hold finite numbers, got inf"
    assert [one.label for at, one in enumerate(made) if at != 2] == [
        one.label for at, one in enumerate(clean) if at != 2
    ]


def test_images_are_judged_once_and_the_answer_is_kept(tmp_path, monkeypatch):
    planted = image_folder(tmp_path / "data")
    first = load(planted.spec(on_bad_sample="skip"))
    monkeypatch.setattr(bad_images, "fault", lambda _: pytest.fail("an image was judged again"))
    assert left_out(load(planted.spec(on_bad_sample="skip"))) == left_out(first) == planted.bad


# ---- CSV that is written

FORMULAS = [
    "=1+1",
    "+1+cmd|' /C calc'!A0",
    "-2+3",
    "@SUM(A1)",
    "\t=1",
    '=HYPERLINK("http://x")',
    "-1.5",
    "+7e3",
    "plain",
]


def test_labels_that_are_formulas_are_text_in_predictions_and_findings(tmp_path):
    labels = {"a": "=cmd(A0)", "b": "-1"}
    rows = [[a, b, f'"{labels["ab"[kind == "y"]]}"'] for a, b, _, kind in table_rows()[:200]]
    file = delimited(tmp_path / "data.csv", ["width", "=height", "kind"], rows)
    done = regraft(
        "adapt", file, "--label", "kind", "--out", tmp_path / "run", "--budget", "10s", "--quiet", "--strategy", "probe"
    )
    assert done.exit_code == 0, done.stderr
    lines = regraft("predict", tmp_path / "run", file).stdout.splitlines()
    assert {line.rsplit(",", 1)[0] for line in lines[1:]} == {"'=cmd(A0)", "-1"}
    assert load_predictor(tmp_path / "run").predict(file)[0].label in labels.values()
    for line in (tmp_path / "run" / "findings.csv").read_text().splitlines():
        for cell in next(csv.reader([line])):
            assert harmless(cell) == cell


def test_a_cleaned_copy_holds_the_cells_of_the_original_to_the_letter(tmp_path):
    rows = [
        [f'"{FORMULAS[k % 9].replace(chr(34), chr(34) * 2)} of the row {k} and more"', "ab"[k % 2]] for k in range(90)
    ]
    rows[40][0] = ""
    file = delimited(tmp_path / "data.csv", ["text", "label"], rows)
    spec = DataSpec(path=str(file), text="text", label="label", on_bad_sample="skip")
    original = load(spec)
    assert regraft(
        "audit", file, "--text", "text", "--label", "label", "--fix", tmp_path / "clean", "--quiet"
    ).exit_code in (0, 1)
    copy = load(spec.replaced(path=str(tmp_path / "clean")))

    def texts(data) -> list[str]:
        return sorted(text for part in data.splits.values() for text in part.take("text").to_pylist())

    assert set(texts(copy)) <= set(texts(original))
    assert len(texts(copy)) == 89


def test_the_whole_job_takes_an_archive(tmp_path):
    rows = table_rows()[:200]
    file = delimited(tmp_path / "points.csv", ["width", "height", "place", "kind"], rows)
    archive = zipped(tmp_path / "points.zip", {"points/points.csv": file.read_bytes()})
    outs = []
    for name, data in (("plain", file), ("packed", archive)):
        done = regraft(
            "adapt",
            data,
            "--label",
            "kind",
            "--out",
            tmp_path / name,
            "--budget",
            "10s",
            "--quiet",
            "--strategy",
            "probe",
        )
        assert done.exit_code == 0, done.stderr
        outs.append((tmp_path / name / "model" / "model.safetensors").read_bytes())
    assert outs[0] == outs[1]
