"""`load` on real files and on files that are wrong in one way, against pandas and the data's own documentation."""

from __future__ import annotations

import gzip
import io
import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from pyarrow import parquet

from regraft.config.data import DataSpec
from regraft.data.cache import cache_folder
from regraft.data.describe import describe
from regraft.data.read import load, load_as
from regraft.errors import DataError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("REGRAFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


WORDS = ("sun", "moon", "star", "sea", "wind", "rain", "snow", "fire", "ash", "oak", "elm", "fir")
TEXTS = [f"the {word} of number {k} is here" for k, word in enumerate(WORDS)]
GOOD = "text,label\n" + "".join(f"{text},{'xyz'[k % 3]}\n" for k, text in enumerate(TEXTS))


def write(path, rows, header=("text", "label"), **options):
    pd.DataFrame(rows, columns=list(header)).to_csv(path, index=False, **options)
    return path


@pytest.fixture
def small(tmp_path):
    """24 texts of two classes."""
    return write(
        tmp_path / "small.csv", [(f"{text}, {turn}", "ab"[k % 2]) for turn in "xy" for k, text in enumerate(TEXTS)]
    )


def png(value=0):
    stream = io.BytesIO()
    Image.new("RGB", (4, 4), (value, 0, 0)).save(stream, format="PNG")
    return stream.getvalue()


EXPECTED = [  # name, options, modality, inputs, label, task, classes, rows of the splits
    ("banking77", {}, "text", ("text",), "category", "multiclass", 77, {"train": 9000, "valid": 1003, "test": 3080}),
    ("sst2", {}, "text", ("sentence",), "label", "binary", 2, {"train": 6920, "valid": 872, "test": 1821}),
    ("ag_news", {}, "text", ("title", "description"), "label", "multiclass", 4, {"train": 4320, "valid": 480, "test": 1200}),
    ("sick_pairs", {}, "text", ("sentence_A", "sentence_B"), "entailment_judgment", "multiclass", 3, {"train": 4500}),
    ("sick_pairs", {"label": "relatedness_score"}, "text", None, "relatedness_score", "regression", 0, {"test": 4927}),
    ("adult", {}, "table", None, "income", "binary", 2, {"test": 4000}),
    ("wine_quality_red", {"task": "regression"}, "table", None, "quality", "regression", 0, {}),
    ("wine_quality_red", {}, "table", None, "quality", "multiclass", 6, {}),
    ("sign_digits", {}, "image", ("file",), "label", "multiclass", 10, {"train": 720, "valid": 80, "test": 200}),
    ("cifar10_jpg", {}, "image", ("img",), "label", "multiclass", 10, {"train": 1800, "test": 1000, "unlabelled": 8000}),
    ("fashion_mnist_900", {}, "image", ("image",), "label", "multiclass", 10, {"train": 540, "valid": 60, "test": 300}),
    ("mnist_5k", {}, "image", ("image",), "label", "multiclass", 10, {"test": 1000}),
    ("messy_text_dev/data", {}, "text", ("text",), "label", "multiclass", 19, {"test": 261}),
    ("messy_images_dev/data", {}, "image", ("file",), "label", "multiclass", 4, {"test": 29}),
    ("elec2", {}, "table", None, "class", "binary", 2, {}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options", "modality", "inputs", "label", "task", "classes", "rows"), EXPECTED)
def test_real_data_is_understood_as_its_readme_says(
    shared_data, name, options, modality, inputs, label, task, classes, rows
):
    data = load(DataSpec(path=str(shared_data(name)), **options), keep_bad="messy" in name)
    assert (data.schema.modality, data.schema.label, data.schema.task) == (modality, (label,), task)
    assert len(data.schema.classes) == classes
    assert inputs is None or data.schema.inputs == inputs
    assert {split: len(data.splits[split]) for split in rows} == rows
    for split, part in data.splits.items():
        assert len(data.targets(split)) == len(part) == len(part.take(data.schema.inputs[0]))
    assert len(describe(data)) >= 4


def test_text_and_labels_are_those_that_pandas_reads(shared_data):
    folder = shared_data("banking77")
    data = load(DataSpec(path=str(folder)))
    for split, file in (("train", "train.csv"), ("valid", "train.csv"), ("test", "test.csv")):
        frame = pd.read_csv(folder / file)
        part = data.splits[split]
        assert part.take("text").to_pylist() == frame.text.iloc[part.rows].tolist()
        names = [data.schema.classes[k] for k in data.targets(split)]
        assert names == frame.category.iloc[part.rows].tolist()
    assert (
        data.raw("valid", np.array([3, 1]))["text"] == data.splits["valid"].take("text", np.array([3, 1])).to_pylist()
    )


def test_unquoted_tab_separated_text_keeps_its_quotation_marks(shared_data):
    frame = pd.read_csv(shared_data("sick_pairs") / "train.tsv", sep="\t", quoting=3)
    data = load(DataSpec(path=str(shared_data("sick_pairs"))))
    assert data.splits["train"].take("sentence_A").to_pylist() == frame.sentence_A.tolist()
    assert not data.problems


def test_the_one_row_of_another_encoding_is_named_and_still_readable(shared_data):
    folder = shared_data("messy_text_dev")
    truth = json.loads((folder / "ground_truth.json").read_text())["defects"]["wrong_encoding_row"][0]
    data = load(DataSpec(path=str(folder / "data")), keep_bad=True)
    (problem,) = data.problems
    frame = pd.read_csv(folder / "data" / "train.csv", encoding="latin-1")
    assert (problem.kind, problem.file) == ("encoding", "train.csv")
    assert frame.id[problem.row] == truth["id"]
    assert "\ufffd" not in data.splits["train"].table.column("text")[problem.row].as_py()


def test_stray_files_and_empty_classes_of_an_image_folder_are_problems(shared_data):
    folder = shared_data("messy_images_dev")
    data = load(DataSpec(path=str(folder / "data")), keep_bad=True)
    truth = json.loads((folder / "ground_truth.json").read_text())["defects"]
    assert {p.file for p in data.problems if p.kind == "stray-file"} == {entry["file"] for entry in truth["stray_file"]}
    assert [p.file for p in data.problems if p.kind == "empty-class"] == ["train/empty_class"]
    files = [file for part in data.splits.values() for file in part.take("file").to_pylist()]
    assert "train/dog/Foto č. 1 (kopie).jpg" in files
    assert len(files) == len(set(files)) == 48 + 29 - 3 - 1  # all files but the strays and a .gitkeep


def test_integer_labels_get_the_names_that_stand_beside_the_data(shared_data):
    folder = shared_data("cifar10_jpg")
    data = load(DataSpec(path=str(folder)))
    assert list(data.schema.classes) == json.loads((folder / "classes.json").read_text())
    truth = parquet.read_table(folder / "test.parquet")
    assert data.targets("test").tolist() == truth.column("label").to_pylist()
    assert (data.targets("unlabelled") == -1).all()
    cell = data.raw("test", np.array([7]))["img"][0]
    assert cell == truth.column("img")[7].as_py()["bytes"]


def test_mnist_files_hold_the_pixels_that_were_packed(shared_data):
    folder = shared_data("fashion_mnist_900")
    data = load(DataSpec(path=str(folder)))
    raw = gzip.decompress((folder / "t10k-images-idx3-ubyte.gz").read_bytes())
    pixels = np.frombuffer(raw, np.uint8, offset=16).reshape(-1, 28, 28)
    (cell,) = data.raw("test", np.array([11]))["image"]
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(cell))), pixels[11])


def test_text_without_a_label_is_refused_with_the_columns_to_choose_from(shared_data):
    with pytest.raises(
        DataError, match="no column looks like a label; give it with --label, one of: fname, dialogue, summary, topic"
    ):
        load(DataSpec(path=str(shared_data("dialogsum_dev"))))


def test_marks_for_missing_values_of_a_table_are_none_and_numbers_are_numbers(shared_data):
    data = load(DataSpec(path=str(shared_data("adult"))))
    frame = pd.read_csv(shared_data("adult") / "test.csv", na_values=["?"])
    raw = data.raw("test", np.arange(len(frame)))
    assert [value is None for value in raw["occupation"]] == frame.occupation.isna().tolist()
    assert raw["age"] == frame.age.tolist()
    assert {"age", "fnlwgt", "hours_per_week"} <= set(data.schema.numeric)
    assert "sex" not in data.schema.numeric


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_encoding_and_delimiter_are_found(tmp_path, encoding, delimiter):
    rows = [(f"Größe {k}, das Maß; der {text}", "ja" if k % 2 else "nein") for k, text in enumerate(TEXTS * 2)]
    data = load(DataSpec(path=str(write(tmp_path / "a.csv", rows, sep=delimiter, encoding=encoding))))
    assert data.splits["train"].table.column("text").to_pylist() == [text for text, _ in rows]
    assert data.schema.classes == ("ja", "nein")
    assert not data.problems
    said = " ".join(data.schema.reasons)
    assert ("UTF-16" in said, "Windows-1252" in said) == (encoding == "utf-16", encoding == "cp1252")


def test_bad_rows_are_counted_left_out_and_named_by_record_not_by_line(tmp_path):
    lines = ["text,label"] + [f'"{text}\nsecond line",{"ab"[k % 2]}' for k, text in enumerate(TEXTS)]
    lines.insert(4, "only one field")
    lines.insert(9, "one,two,three")
    (tmp_path / "a.csv").write_bytes("\n".join(lines).encode() + b"\ncaf\xe9 is open all day long,a\nb\xe4d,row,here\n")
    data = load(DataSpec(path=str(tmp_path / "a.csv")), keep_bad=True)
    assert [(p.kind, p.row) for p in data.problems] == [
        ("field-count", 3),
        ("field-count", 8),
        ("encoding", 14),
        ("field-count", 15),
    ]
    rows = np.sort(np.concatenate([part.rows for part in data.splits.values()]))
    assert rows.tolist() == [0, 1, 2, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14]
    table = data.splits["train"].table
    assert table.column("text")[3].as_py() == f"{TEXTS[3]}\nsecond line"
    assert table.column("text")[12].as_py() == "café is open all day long"


def test_blank_lines_before_the_header_do_not_shift_row_numbers(tmp_path):
    (tmp_path / "a.csv").write_text(
        "\n\ntext,label\n" + "".join(f"{t},{'ab'[k % 2]}\n" for k, t in enumerate(TEXTS)) + "bad\n"
    )
    data = load(DataSpec(path=str(tmp_path / "a.csv")), keep_bad=True)
    assert [p.row for p in data.problems] == [len(TEXTS)]
    assert data.splits["train"].table.column("text")[0].as_py() == TEXTS[0]


def test_codes_with_leading_zeros_stay_text(tmp_path):
    rows = [(f"00{k % 5}", k * 0.5, "ab"[k % 2]) for k in range(40)]
    data = load(DataSpec(path=str(write(tmp_path / "a.csv", rows, header=("plant", "size", "label")))))
    assert data.raw("test", np.array([0]))["plant"][0].startswith("00")


def test_a_table_with_paths_of_images_gives_their_bytes(tmp_path):
    (tmp_path / "pictures").mkdir()
    for k in range(12):
        (tmp_path / "pictures" / f"{k}.png").write_bytes(png(k))
    write(tmp_path / "train.csv", [(f"pictures/{k}.png", "ab"[k % 2]) for k in range(12)], header=("file", "kind"))
    data = load(DataSpec(path=str(tmp_path / "train.csv"), label="kind"))
    assert (data.schema.modality, data.schema.inputs) == ("image", ("file",))
    part = data.splits["train"]
    assert data.raw("train", np.array([1]))["file"] == [png(int(part.rows[1]))]


def test_reading_again_uses_the_cache_and_a_changed_file_does_not(small, monkeypatch):
    first = load(DataSpec(path=str(small)))
    entries = {path.name: path.stat().st_mtime_ns for path in cache_folder("tables").iterdir()}
    again = load(DataSpec(path=str(small)))
    assert entries == {path.name: path.stat().st_mtime_ns for path in cache_folder("tables").iterdir()}
    assert again.fingerprint == first.fingerprint
    small.write_text(small.read_text() + "a new row that was not there,a\n")
    changed = load(DataSpec(path=str(small)))
    assert changed.fingerprint != first.fingerprint
    assert changed.splits["train"].table.num_rows == 25


def test_the_fingerprint_knows_the_content_the_meaning_and_the_cut_but_not_the_place(small, tmp_path):
    base = load(DataSpec(path=str(small))).fingerprint
    (tmp_path / "elsewhere").mkdir()
    copy = tmp_path / "elsewhere" / small.name
    copy.write_bytes(small.read_bytes())
    assert load(DataSpec(path=str(copy))).fingerprint == base
    assert load(DataSpec(path=str(small), seed=1)).fingerprint != base
    assert load(DataSpec(path=str(small), task="multiclass")).fingerprint != base


def test_nothing_half_written_stays_in_the_cache_when_reading_fails(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 this is none PAR1")
    with pytest.raises(DataError, match="is not a Parquet file that can be read"):
        load(DataSpec(path=str(tmp_path / "a.parquet")))
    assert not list(cache_folder("tables").iterdir())


def test_a_test_file_without_labels_is_unlabelled_and_a_test_split_is_cut(small, tmp_path):
    folder = tmp_path / "kaggle"
    folder.mkdir()
    (folder / "train.csv").write_bytes(small.read_bytes())
    write(folder / "test.csv", [(text,) for text in TEXTS], header=("text",))
    data = load(DataSpec(path=str(folder)))
    assert set(data.splits) == {"train", "valid", "test", "unlabelled"}
    assert data.given == {"train", "unlabelled"}
    assert any("read as unlabelled" in reason for reason in data.schema.reasons)


def test_new_rows_are_read_with_the_schema_of_a_run_without_labels(small, tmp_path):
    schema = load(DataSpec(path=str(small))).schema
    new = write(tmp_path / "new.csv", [(text,) for text in TEXTS], header=("text",))
    data = load_as(DataSpec(path=str(new)), schema)
    assert data.raw("test", np.array([2]))["text"] == [TEXTS[2]]
    assert (data.targets("test") == -1).all()
    (tmp_path / "new.txt").write_text("\n".join(TEXTS))
    assert load_as(DataSpec(path=str(tmp_path / "new.txt")), schema).raw("test", np.array([0]))["text"] == [TEXTS[0]]
    with pytest.raises(
        DataError, match=r"new.csv \(test\) has no column called 'txt', which is an input; did you mean 'text'\?"
    ):
        load_as(DataSpec(path=str(new)), type(schema)(**{**vars(schema), "inputs": ("txt",)}))


def test_images_without_classes_are_read_for_prediction(shared_data, tmp_path):
    schema = load(DataSpec(path=str(shared_data("sign_digits")))).schema
    for k in range(3):
        (tmp_path / f"{k}.png").write_bytes(png(k))
    assert load_as(DataSpec(path=str(tmp_path)), schema).raw("test", np.arange(3))["file"] == [png(0), png(1), png(2)]
    assert load_as(DataSpec(path=str(tmp_path / "1.png")), schema).raw("test", np.arange(1))["file"] == [png(1)]


BAD = [  # content of a.csv, options, message
    ("", {}, r"a\.csv is empty; it must hold at least one row"),
    ("  \n\n", {}, r"a\.csv is empty"),
    ("text,label\n", {}, r"a\.csv has a header but no rows"),
    ("text,text\nx,y\n", {}, r"has more than one column called 'text'"),
    ("text,label\n" + "".join(f"{t},a\n" for t in TEXTS), {}, r"only the class 'a' in the training rows; there"),
    ("text,label\n" + "".join(f"{t},\n" for t in TEXTS), {"label": "label"}, r"'label' holds no value in the training"),
    (GOOD, {"label": "lable"}, r"called 'lable'; did you mean 'label'\?"),
    (GOOD, {"text": "txt"}, r"--text: .*'txt'; did you mean 'text'\?"),
    (GOOD, {"task": "regression"}, r"'label' holds text"),
    (GOOD, {"task": "binary"}, r"--task binary needs two classes"),
    (GOOD, {"text": "text", "modality": "table"}, r"contradicts --text"),
    (GOOD, {"text": "text", "label": "text"}, r"both as --text and as --label"),
    (GOOD, {"encoding": "utf-99"}, r"'utf-99' is no encoding that Python knows"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "options", "message"), BAD)
def test_bad_input_is_refused_in_one_sentence(tmp_path, content, options, message):
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        load(DataSpec(path=str(tmp_path / "a.csv"), **options))
    assert "\n" not in str(caught.value)


def test_a_missing_path_names_its_nearest_neighbour(tmp_path, small):
    with pytest.raises(DataError, match=r"smal\.csv does not exist in .*; did you mean 'small\.csv'\?"):
        load(DataSpec(path=str(tmp_path / "smal.csv")))
    with pytest.raises(DataError, match="did you mean 'stdlib-docstrings'"):
        load(DataSpec(path="stdlib-docstring"))
    with pytest.raises(DataError, match="nor does the folder"):
        load(DataSpec(path=str(tmp_path / "nowhere" / "a.csv")))


def test_a_hub_id_that_cannot_be_had_is_one_sentence():
    with pytest.raises(
        DataError, match="'nobody/nothing-at-all' is no path on this machine, and the Hugging Face hub did not give"
    ):
        load(DataSpec(path="nobody/nothing-at-all"))


def test_given_features_are_never_taken_for_the_label(tmp_path):
    rows = [(k % 3, k * 0.5, "ab"[k % 2]) for k in range(60)]
    path = write(tmp_path / "a.csv", rows, header=("kind", "size", "colour"))
    data = load(DataSpec(path=str(path), features=("size", "colour")))
    assert (data.schema.inputs, data.schema.label) == (("size", "colour"), ("kind",))
