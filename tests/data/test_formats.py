"""Every file format gives the same rows, whatever its types, shards, long rows and size."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from regraft.config.data import DataSpec
from regraft.data.read import load
from regraft.errors import DataError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("REGRAFT_CACHE", str(tmp_path / "cache"))


WORDS = ("sun", "moon", "star", "sea", "wind", "rain", "snow", "fire", "ash", "oak", "elm", "fir")
TEXTS = [f"the {word} of number {k} is here" for k, word in enumerate(WORDS)]


def write(path, rows, header=("text", "label"), **options):
    pd.DataFrame(rows, columns=list(header)).to_csv(path, index=False, **options)
    return path


def test_a_number_column_that_turns_to_text_late_is_text_from_the_start(tmp_path, monkeypatch):
    monkeypatch.setattr("regraft.data.delimited.BLOCK", 256)
    rows = [(k, k / 7, "ab"[k % 2]) for k in range(400)] + [("x9", 0.5, "a")]
    data = load(
        DataSpec(path=str(write(tmp_path / "a.csv", rows, header=("code", "size", "label"))), features=("code", "size"))
    )
    table = data.splits["train"].table
    assert table.column("code").to_pylist() == [str(row[0]) for row in rows]
    assert table.column("size").to_pylist() == [row[1] for row in rows]
    assert data.schema.numeric == ("size",)


def test_a_row_longer_than_a_block_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("regraft.data.delimited.BLOCK", 512)
    rows = [(text, "ab"[k % 2]) for k, text in enumerate(TEXTS)] + [("word " * 3000, "a")]
    data = load(DataSpec(path=str(write(tmp_path / "a.csv", rows))))
    assert data.splits["train"].table.column("text")[len(TEXTS)].as_py() == "word " * 3000


@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet", "csv", "tsv"])
def test_every_format_gives_the_same_data(tmp_path, suffix):
    frame = pd.DataFrame({"text": TEXTS * 2, "label": [k % 3 for k in range(24)], "size": [k / 4 for k in range(24)]})
    path = tmp_path / f"a.{suffix}"
    match suffix:
        case "jsonl":
            frame.to_json(path, orient="records", lines=True)
        case "json":
            frame.to_json(path, orient="records")
        case "parquet":
            frame.to_parquet(path)
        case _:
            frame.to_csv(path, index=False, sep="\t" if suffix == "tsv" else ",")
    data = load(DataSpec(path=str(path)))
    assert data.splits["train"].table.to_pydict() == frame.to_dict("list")
    assert (data.schema.inputs, data.schema.classes) == (("text",), ("0", "1", "2"))


def test_lines_that_are_no_json_objects_are_named(tmp_path):
    lines = [json.dumps({"text": text, "label": "ab"[k % 2]}) for k, text in enumerate(TEXTS)]
    lines[2:2] = ["{broken", "[1, 2]"]
    lines.append(json.dumps({"text": "a late key comes here", "label": "a", "extra": 1}))
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    data = load(DataSpec(path=str(tmp_path / "a.jsonl")), keep_bad=True)
    assert [(p.kind, p.row) for p in data.problems] == [("unreadable", 2), ("unreadable", 3)]
    assert data.splits["train"].table.column("extra").to_pylist() == [None] * 12 + [1]


def test_hub_folders_shards_and_class_names_are_read(tmp_path):
    info = {
        "info": {"features": {"label": {"names": ["bad", "good"], "_type": "ClassLabel"}, "text": {"dtype": "string"}}}
    }
    folder = tmp_path / "hub" / "data"
    folder.mkdir(parents=True)
    for shard in range(2):
        table = pa.table({"text": TEXTS[6 * shard : 6 * shard + 6], "label": [0, 1, 0, 1, 0, 1]})
        table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
        parquet.write_table(table, folder / f"train-0000{shard}-of-00002.parquet")
        parquet.write_table(table, folder / "validation-00000-of-00001.parquet")
        parquet.write_table(table, folder / "test-00000-of-00001.parquet")
    (tmp_path / "hub" / "README.md").write_text("about it")
    data = load(DataSpec(path=str(tmp_path / "hub")))
    assert data.schema.classes == ("bad", "good")
    assert data.splits["train"].take("text").to_pylist() == TEXTS
    assert data.splits["train"].rows.tolist() == list(range(12))
    assert data.splits["train"].file == "data/train-*-of-00002.parquet"
    assert data.given == {"train", "valid", "test"}


def test_folders_of_save_to_disk_are_read(tmp_path):
    for split, rows in (("train", TEXTS), ("test", TEXTS[:4])):
        folder = tmp_path / "saved" / split
        folder.mkdir(parents=True)
        table = pa.table({"text": rows, "label": ["a", "b"] * (len(rows) // 2)})
        with pa.ipc.new_stream(str(folder / "data-00000-of-00001.arrow"), table.schema) as writer:
            writer.write_table(table)
        (folder / "state.json").write_text("{}")
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    data = load(DataSpec(path=str(tmp_path / "saved")))
    assert data.splits["test"].take("text").to_pylist() == TEXTS[:4]
    assert data.given == {"train", "test"}


def test_shards_with_other_columns_are_refused(tmp_path):
    for shard, names in enumerate((("text", "label"), ("text", "label", "more"))):
        columns = {name: ["a", "b"] for name in names}
        parquet.write_table(pa.table(columns), tmp_path / f"train-0000{shard}-of-00002.parquet")
    with pytest.raises(DataError, match=r"the files of one split differ in their columns \(more\)"):
        load(DataSpec(path=str(tmp_path)))


def test_json_values_of_other_kinds_and_broken_characters_do_not_stop_reading(tmp_path):
    rows = [{"text": text, "label": "ab"[k % 2], "extra": k} for k, text in enumerate(TEXTS)]
    rows[2] |= {"text": "half a pair \ud83d of characters", "extra": "seven"}
    rows[3] |= {"text": "", "extra": {"a": [1, None]}}
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    table = load(DataSpec(path=str(tmp_path / "a.jsonl")), keep_bad=True).splits["train"].table
    assert table.column("text").to_pylist()[:4] == [*TEXTS[:2], "half a pair ? of characters", None]
    assert table.column("extra").to_pylist()[:5] == ["0", "1", "seven", '{"a": [1, null]}', "4"]


@pytest.mark.slow
def test_a_large_file_is_read_and_cut_in_little_memory(tmp_path):
    """600,000 rows of 200 bytes: 120 MB of text."""
    with (tmp_path / "a.csv").open("w") as stream:
        stream.write("text,label\n")
        for part in range(60):
            words = np.random.default_rng(part).integers(0, 1000, (10_000, 40))
            stream.writelines(f"{' '.join(map(str, row))} and so on and so on,{row[0] % 7}\n" for row in words.tolist())
    code = f"""
import resource
from regraft.config.data import DataSpec
from regraft.data.read import load
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert load(DataSpec(path={str(tmp_path / "a.csv")!r})).splits["train"].table.num_rows == 600_000
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=200)
    assert float(out.stdout) < 450
