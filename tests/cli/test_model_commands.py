"""predict, evaluate, report and diff on finished runs, and the catalogue commands."""

from __future__ import annotations

import csv
import io
import json
import shutil

import pytest
from cli.tables import HEADER, points, write_csv


@pytest.fixture
def new_rows(tmp_path):
    return write_csv(tmp_path / "new.csv", HEADER, points(50, seed=9))


def test_predict_gives_one_json_object_for_each_row_in_order(regraft, finished, new_rows):
    result = regraft("predict", finished, new_rows, "--json")
    assert result.exit_code == 0, result.stderr
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    labels = [row[3] for row in points(50, seed=9)]
    assert sum(line["label"] == label for line, label in zip(lines, labels, strict=True)) >= 40
    for line in lines:
        assert set(line) == {"label", "probability", "probabilities"}
        assert line["probability"] == line["probabilities"][line["label"]] == max(line["probabilities"].values())
        assert sum(line["probabilities"].values()) == pytest.approx(1)


def test_predict_reads_every_format_to_the_same_predictions(regraft, finished, new_rows, tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    rows = [dict(zip(HEADER, row, strict=True)) for row in points(50, seed=9)]
    (tmp_path / "new.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "new.parquet")
    expected = regraft("predict", finished, new_rows, "--json").stdout
    assert regraft("predict", finished, tmp_path / "new.jsonl", "--json").stdout == expected
    assert regraft("predict", finished, tmp_path / "new.parquet", "--json").stdout == expected
    assert regraft("predict", finished, "-", "--json", stdin=new_rows.read_bytes()).stdout == expected
    assert regraft("predict", finished, "-", "--json", stdin=(tmp_path / "new.jsonl").read_bytes()).stdout == expected


def test_predict_needs_no_label_column(regraft, finished, tmp_path):
    data = write_csv(tmp_path / "bare.csv", HEADER[:3], [row[:3] for row in points(5)])
    result = regraft("predict", finished, data)
    assert [row["label"] for row in csv.DictReader(io.StringIO(result.stdout))] == [row[3] for row in points(5)]


def test_a_run_that_was_moved_predicts_the_same_and_so_does_its_model_folder(regraft, finished, new_rows, tmp_path):
    expected = regraft("predict", finished, new_rows, "--json").stdout
    shutil.copytree(finished, tmp_path / "elsewhere")
    shutil.copytree(finished / "model", tmp_path / "only-the-model")
    assert regraft("predict", tmp_path / "elsewhere", new_rows, "--json").stdout == expected
    assert regraft("predict", tmp_path / "only-the-model", new_rows, "--json").stdout == expected


def test_predictions_of_numbers_come_with_the_interval_that_holds_them(regraft, finished_numbers, numbers_table):
    lines = [
        json.loads(line) for line in regraft("predict", finished_numbers, numbers_table, "--json").stdout.splitlines()
    ]
    with numbers_table.open() as stream:
        targets = [float(row["target"]) for row in csv.DictReader(stream)]
    assert sum(abs(line["value"] - target) < 1.5 for line, target in zip(lines, targets, strict=True)) > 130
    inside = [
        line["low"] <= target <= line["high"] for line, target in zip(lines, targets, strict=True) if "low" in line
    ]
    assert not inside or sum(inside) / len(inside) > 0.8


def test_predict_writes_a_file_whole_and_never_over_another(regraft, finished, new_rows, tmp_path):
    target = tmp_path / "out.jsonl"
    result = regraft("predict", finished, new_rows, "--out", target)
    assert (result.exit_code, result.stdout) == (0, "")
    assert target.read_text() == regraft("predict", finished, new_rows, "--json").stdout
    again = regraft("predict", finished, new_rows, "--out", target)
    assert again.exit_code == 2
    assert "exists; predictions are only written to a new file" in again.stderr


def test_predict_without_an_input_column_names_the_nearest(regraft, finished, tmp_path):
    data = write_csv(tmp_path / "new.csv", ["widht", "height", "place"], [row[:3] for row in points(5)])
    result = regraft("predict", finished, data)
    assert result.exit_code == 2
    assert result.stderr == (
        "regraft: new.csv (test) has no column called 'width', which is an input; did you mean 'widht'?\n"
    )
    assert result.stdout == ""


def test_a_row_that_cannot_be_read_is_named_rather_than_left_out(regraft, finished, tmp_path):
    data = tmp_path / "new.csv"
    data.write_text("width,height,place\n1,2,north\n3,4,south,oops,again\n5,6,north\n")
    result = regraft("predict", finished, data, "--json")
    assert result.exit_code == 2
    assert "row 1 of new.csv" in result.stderr
    assert result.stdout == ""


def test_empty_standard_input_is_refused(regraft, finished):
    result = regraft("predict", finished, "-", stdin="")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "standard input is empty" in result.stderr


def test_predict_on_an_unfinished_run_says_how_to_finish_it(regraft, tmp_path):
    (tmp_path / "recipe.yaml").write_text("")
    result = regraft("predict", tmp_path, "-", stdin="x")
    assert (
        result.stderr
        == f"regraft: {tmp_path}: the run has no finished model yet; go on with `regraft resume {tmp_path}`\n"
    )


def test_evaluate_agrees_with_the_labels_counted_by_hand(regraft, finished, new_rows):
    result = regraft("evaluate", finished, new_rows, "--json")
    assert result.exit_code == 0, result.stderr
    content = json.loads(result.stdout)
    predicted = [
        json.loads(line)["label"] for line in regraft("predict", finished, new_rows, "--json").stdout.splitlines()
    ]
    truth = [row[3] for row in points(50, seed=9)]
    accuracy = sum(a == b for a, b in zip(predicted, truth, strict=True)) / 50
    measured = content["metrics"]["accuracy"]
    assert measured["value"] == pytest.approx(accuracy)
    assert measured["low"] <= accuracy <= measured["high"]
    assert (content["format"], content["rows"], content["split"]) == ("regraft.evaluation/1", 50, "test")


def test_evaluate_leaves_out_labels_the_model_does_not_know_and_says_so(regraft, finished, tmp_path):
    data = write_csv(tmp_path / "new.csv", HEADER, [*points(50, seed=9), [0, 0, "north", "zebra"]])
    result = regraft("evaluate", finished, data)
    assert "1 rows have no label that the model knows" in result.stderr
    metrics = json.loads(regraft("evaluate", finished, data, "--json").stdout)["metrics"]
    assert (metrics["n"]["value"], metrics["excluded"]["value"]) == (50, 1)


def test_evaluate_without_labels_says_which_column_is_missing(regraft, finished, tmp_path):
    data = write_csv(tmp_path / "bare.csv", HEADER[:3], [row[:3] for row in points(5)])
    result = regraft("evaluate", finished, data)
    assert result.exit_code == 2
    assert "--label: bare.csv has no column called 'kind'" in result.stderr


def test_the_report_is_written_again_with_its_five_lines(regraft, finished):
    (finished / "report.html").unlink()
    result = regraft("report", finished)
    assert (finished / "report.html").stat().st_size > 10_000
    assert [line.partition(":")[0] for line in result.stdout.splitlines() if line] == [
        "Asked", "Won", "Gained", "Calibrated", "Cost", "Report",
    ]  # fmt: skip


def test_a_run_does_not_differ_from_itself_in_any_metric(regraft, finished):
    lines = json.loads(regraft("diff", finished, finished, "--json").stdout)
    metrics = [line for line in lines if line["section"] == "metric"]
    assert metrics
    assert all(line["difference"] in (0, None) and line["better"] is None for line in metrics)
    assert not [line for line in lines if line["section"] == "recipe"]


def test_the_catalogue_lists_every_name_once_with_a_sentence(regraft):
    from regraft.config.catalogue import CATALOGUE

    listed = json.loads(regraft("techniques", "--json").stdout)
    names = [(one["family"], one["name"]) for one in listed]
    assert set(names) >= {(family, name) for family, members in CATALOGUE.items() for name in members}
    assert len(set(names)) == len(names)
    assert all(one["what"].endswith(".") for one in listed)


def test_a_technique_is_shown_with_fields_bounds_source_and_a_recipe_that_parses(regraft):
    import yaml

    found = json.loads(regraft("techniques", "sam", "--json").stdout)
    rho = next(field for field in found["fields"] if field["name"] == "rho")
    assert (rho["type"], rho["default"], rho["bounds"]) == ("float", "default 0.05", "at least 0")
    assert "Foret et al., 2021, arXiv:2010.01412" in found["source"]
    assert "SAM" in str(yaml.safe_load(found["recipe"])["techniques"])


def test_every_entry_of_the_catalogue_has_a_recipe_of_valid_yaml(regraft):
    import yaml

    from regraft.phases.describing import catalogue, entry

    for one in catalogue():
        assert one["name"] in str(yaml.safe_load(entry(one["name"])["recipe"]))


def test_an_unknown_technique_is_corrected(regraft):
    result = regraft("techniques", "lorra")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "regraft: nothing in the catalogue is called 'lorra'; did you mean 'LoRA'?\n"


def test_explain_says_where_each_value_comes_from(regraft, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "data: {main: {path: wine}}\nmodels: {main: {network: MLP}}\nseed: 5\n"
        "stages: [{name: adapt, steps: 10}]\ntechniques: [SAM]\n"
    )
    result = regraft("explain", recipe, "--json", "--set", "techniques.SAM.rho=0.2")
    assert result.exit_code == 0, result.stderr
    content = json.loads(result.stdout)
    found = {value["field"]: (value["value"], value["from"]) for value in content["values"]}
    assert found["seed"] == (5, "recipe")
    assert found["techniques.SAM.rho"] == (0.2, "override")
    assert found["techniques.SAM.adaptive"] == (False, "default")
    assert found["stages.0.steps"] == (10, "recipe")
    assert found["train.optimizer.AdamW.lr"] == (1e-3, "default")
    assert any("Climbing(Descent(AdamW" in line for line in content["compiled"])
