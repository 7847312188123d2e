from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from regraft.data import encode
from regraft.data.dataset import Dataset, Schema, Split
from regraft.data.encode import (
    encode_split,
    fit_table,
    load_preprocessor,
    open_arrays,
    preprocessor_for,
    preprocessor_from_json,
    row_names,
    save_preprocessor,
    store_arrays,
)
from regraft.data.images import ImagePreprocessor
from regraft.data.tables import TablePreprocessor
from regraft.data.text import TextPreprocessor
from regraft.errors import DataError, RunError


class InMemory(Dataset):
    """A data set whose raw values are the cells of its tables; `asked` notes how many rows were asked for at once."""

    asked: list[int] = []  # noqa: RUF012

    def raw(self, split: str, rows: np.ndarray) -> dict[str, list[object]]:
        self.asked.append(len(rows))
        return {name: self.splits[split].take(name, rows).to_pylist() for name in self.schema.inputs}


def dataset(modality, columns: dict[str, list], numeric: tuple[str, ...] = (), fingerprint: str = "f") -> InMemory:
    InMemory.asked.clear()
    table = pa.table(columns)
    inputs = tuple(name for name in columns if name != "file")
    split = Split(name="train", file="train.csv", table=table, rows=np.arange(table.num_rows) + 100)
    schema = Schema(modality=modality, inputs=inputs, label=(), task="binary", numeric=numeric)
    return InMemory(path=Path(), schema=schema, splits={"train": split}, fingerprint=fingerprint)


def png(seed: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (9, 7, 3), dtype=np.uint8)).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def three(minilm):
    words = ["card", "has", "not", "arrived", "yet", "🙂"]
    texts = [" ".join(words[: i % 7]) for i in range(25)]
    table = {"n": [None, *np.linspace(0, 1, 24).tolist()], "c": [f"v{i % 3}" for i in range(25)]}
    data = {
        "text": dataset("text", {"a": texts, "b": texts[::-1]}),
        "image": dataset("image", {"img": [png(i) for i in range(25)]}),
        "table": dataset("table", table, numeric=("n",)),
    }
    made = {
        "text": TextPreprocessor.from_model(minilm, columns=("a", "b"), max_length=12),
        "image": ImagePreprocessor.plain("img", (6, 8)),
        "table": fit_table(data["table"]),
    }
    return {name: (data[name], made[name]) for name in data}


@pytest.mark.parametrize("modality", ["text", "image", "table"])
def test_chunks_on_disk_in_memory_and_one_call_give_the_same_batches(modality, three, tmp_path, monkeypatch):
    data, preprocessor = three[modality]
    whole = preprocessor.encode(data.raw("train", np.arange(25)))
    monkeypatch.setitem(encode.CHUNK, modality, 4)
    InMemory.asked.clear()
    in_memory = encode_split(data, "train", preprocessor)
    assert max(InMemory.asked) == 4
    on_disk = encode_split(data, "train", preprocessor, folder=tmp_path)
    assert isinstance(next(iter(on_disk.arrays().values())), np.memmap)
    rows = np.array([24, 0, 7, 7])
    expected = whole.collate(rows)
    for encoded in (in_memory, on_disk):
        assert np.array_equal(encoded.lengths, whole.lengths)
        assert len(encoded) == 25
        batch = encoded.collate(rows)
        assert batch.keys() == expected.keys() == set(encoded.inputs)
        for key, value in batch.items():
            assert torch.equal(value, expected[key])
            assert value.dtype == expected[key].dtype


@pytest.mark.parametrize("modality", ["text", "image", "table"])
def test_some_rows_are_encoded_in_the_order_asked_for(modality, three):
    data, preprocessor = three[modality]
    rows = np.array([9, 2, 20])
    some, everything = encode_split(data, "train", preprocessor, rows=rows), encode_split(data, "train", preprocessor)
    for key, value in some.collate(np.arange(3)).items():
        assert torch.equal(value, everything.collate(rows)[key])


@pytest.mark.parametrize("modality", ["text", "image", "table"])
def test_every_preprocessor_survives_being_saved(modality, three, tmp_path):
    data, preprocessor = three[modality]
    save_preprocessor(preprocessor, tmp_path)
    again = load_preprocessor(tmp_path)
    assert preprocessor_from_json(tmp_path, json.loads(json.dumps(again.to_json()))) == again
    assert again.fingerprint == preprocessor.fingerprint
    for key, value in encode_split(data, "train", again).collate(np.arange(25)).items():
        assert torch.equal(value, encode_split(data, "train", preprocessor).collate(np.arange(25))[key])


def test_stored_examples_are_opened_again_until_anything_they_depend_on_changes(minilm, tmp_path):
    columns = {"t": ["one", "two", "three"]}
    preprocessor = TextPreprocessor.from_model(minilm, columns=("t",))
    other = TextPreprocessor.from_model(minilm, columns=("t",), max_length=9)
    encode_split(dataset("text", columns), "train", preprocessor, folder=tmp_path)

    def read(data, made, rows=None) -> int:
        InMemory.asked.clear()
        encode_split(data, "train", made, rows=rows, folder=tmp_path)
        return len(InMemory.asked)

    assert read(dataset("text", columns), preprocessor) == 0
    assert read(dataset("text", columns), other) == 1
    assert read(dataset("text", columns), preprocessor, np.array([2, 0])) == 1
    assert read(dataset("text", {"t": ["x", "y", "z"]}, fingerprint="g"), preprocessor) == 1
    assert read(dataset("text", columns), preprocessor) == 0


def test_growing_files_are_plain_npy_files(tmp_path):
    random = np.random.default_rng(0)
    chunks = [{"a": random.random((n, 3)), "b": random.integers(0, 9, n, dtype=np.int32)} for n in (1, 0, 500, 77)]
    store_arrays(tmp_path / "s", iter(chunks))
    opened = open_arrays(tmp_path / "s")
    for name in ("a", "b"):
        expected = np.concatenate([chunk[name] for chunk in chunks])
        assert np.array_equal(np.load(tmp_path / "s" / f"{name}.npy"), expected)
        assert np.array_equal(opened[name], expected)
    assert not opened["a"].flags.writeable


def test_an_error_half_way_leaves_nothing_behind_and_names_the_row(tmp_path, monkeypatch):
    monkeypatch.setitem(encode.CHUNK, "image", 2)
    data = dataset("image", {"img": [png(0), png(1), png(2), b"broken"]})
    with pytest.raises(DataError, match=r"^train\.csv row 103: not an image"):
        encode_split(data, "train", ImagePreprocessor.plain("img", (4, 4)), folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"the encoded examples cannot be written to .*: Not a directory"):
        store_arrays(tmp_path / "file" / "s", iter([]))


def test_rows_are_called_by_their_image_file_or_by_file_and_row():
    files = dataset("image", {"img": [b"", b""], "file": ["a/1.png", "b/2.png"]})
    assert row_names(files, "train", np.array([1, 0])) == ["b/2.png", "a/1.png"]
    assert row_names(dataset("text", {"t": ["", ""]}), "train", np.array([1])) == ["train.csv row 101"]


def test_an_unknown_split_is_refused_with_the_nearest_name(three):
    data, preprocessor = three["table"]
    with pytest.raises(DataError, match="the data has no 'trian' split; did you mean 'train'"):
        encode_split(data, "trian", preprocessor)


def test_the_preprocessor_follows_from_schema_and_model(minilm, shared_data):
    text = dataset("text", {"a": ["x"], "b": ["y"]})
    assert preprocessor_for(text, minilm) == TextPreprocessor.from_model(minilm, columns=("a", "b"))
    folder = shared_data("weights_mobilenetv1_025_vww")
    image = preprocessor_for(dataset("image", {"img": [b""]}), folder)
    assert isinstance(image, ImagePreprocessor)
    assert (image.size, image.key, image.column) == ((96, 96), "pixel_values", "img")
    table = preprocessor_for(dataset("table", {"n": [1, 2], "c": ["a", "b"]}, numeric=("n",)), None)
    assert isinstance(table, TablePreprocessor)
    assert [part.column for part in (*table.numeric, *table.categorical)] == ["n", "c"]
    with pytest.raises(DataError, match="text data needs a model folder"):
        preprocessor_for(text, None)


def test_a_table_is_fitted_on_at_most_a_bounded_sample(monkeypatch):
    monkeypatch.setattr(encode, "FIT_ROWS", 5)
    data = dataset("table", {"n": list(range(100))}, numeric=("n",))
    preprocessor = fit_table(data)
    assert InMemory.asked == [5]
    assert preprocessor.numeric[0].median == 49


def test_a_damaged_or_missing_description_is_one_sentence(tmp_path):
    with pytest.raises(RunError, match=r"has no preprocessing\.json"):
        load_preprocessor(tmp_path)
    (tmp_path / "preprocessing.json").write_text("{")
    with pytest.raises(RunError, match=r"preprocessing\.json is damaged"):
        load_preprocessor(tmp_path)
    with pytest.raises(RunError, match="no preprocessor is of kind 'txt'; did you mean 'text'"):
        preprocessor_from_json("m", {"kind": "txt"})
