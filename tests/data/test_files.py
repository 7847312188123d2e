"""Which layout is found in a folder, and what of it is not data."""

from __future__ import annotations

import pytest

from regraft.data.files import find_layout, images_in, split_of
from regraft.errors import DataError


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", "train"),
        ("Validation", "valid"),
        ("val", "valid"),
        ("dev", "valid"),
        ("trial", "valid"),
        ("test", "test"),
        ("unlabeled", "unlabelled"),
        ("train-00000-of-00001", "train"),
        ("train-00003-of-00010-0a1b2c3d", "train"),
        ("tickets", None),
        ("trainer", None),
    ],
)
def test_names_of_splits(name, split):
    assert split_of(name) == split


def test_split_files_are_found_and_other_files_are_not_data(tmp_path):
    touch(
        tmp_path,
        "train.csv",
        "dev.tsv",
        "test.jsonl",
        "unlabelled.parquet",
        "README.md",
        "categories.json",
        ".DS_Store",
        "classes.txt",
    )
    layout = find_layout(tmp_path)
    assert {split: layout.name_of(split) for split in layout.files} == {
        "train": "train.csv",
        "valid": "dev.tsv",
        "test": "test.jsonl",
        "unlabelled": "unlabelled.parquet",
    }


def test_two_files_of_one_split_are_refused(tmp_path):
    touch(tmp_path, "train.csv", "train.jsonl")
    with pytest.raises(DataError, match=r"train.csv and train.jsonl, which are all the train split; keep one"):
        find_layout(tmp_path)


def test_a_lone_file_beside_its_readme_is_the_data_and_two_are_a_question(tmp_path):
    touch(tmp_path, "wine.csv", "README.md", "dataset_info.json")
    assert find_layout(tmp_path).files == {"train": (tmp_path / "wine.csv",)}
    touch(tmp_path, "beer.csv")
    with pytest.raises(DataError, match=r"several data files \(beer.csv, wine.csv\); give one of them"):
        find_layout(tmp_path)


def test_data_one_folder_down_is_found_and_named_from_the_top(tmp_path):
    touch(tmp_path, "data/train.csv", "data/test.csv", "ground_truth.json")
    layout = find_layout(tmp_path)
    assert (layout.root, layout.name_of("train")) == (tmp_path, "data/train.csv")
    touch(tmp_path / "hub", "plain_text/train-00000-of-00001.parquet")
    assert find_layout(tmp_path / "hub").name_of("train") == "plain_text/train-00000-of-00001.parquet"


def test_shards_stay_in_order_under_one_name(tmp_path):
    touch(tmp_path, *(f"data/train-0000{k}-of-00003.parquet" for k in (2, 0, 1)))
    layout = find_layout(tmp_path)
    assert [path.name[6:11] for path in layout.files["train"]] == ["00000", "00001", "00002"]
    assert layout.name_of("train") == "data/train-*-of-00003.parquet"


def test_class_folders_with_and_without_splits(tmp_path):
    touch(tmp_path / "a", "train/cat/1.jpg", "train/dog/2.PNG", "val/cat/3.jpeg", "notes.txt")
    assert {split: folder[0].name for split, folder in find_layout(tmp_path / "a").files.items()} == {
        "train": "train",
        "valid": "val",
    }
    touch(tmp_path / "b", "cat/1.jpg", "dog/deep/2.webp", "README.md")
    layout = find_layout(tmp_path / "b")
    images, problems = images_in(layout.files["train"][0], split="train", root=layout.root)
    assert images == [("cat/1.jpg", "cat"), ("dog/deep/2.webp", "dog")]
    assert not problems


def test_what_is_no_image_in_a_class_folder_is_a_problem_but_a_placeholder_is_not(tmp_path):
    touch(tmp_path, "train/cat/1.jpg", "train/cat/notes.txt", "train/.DS_Store", "train/dog/.gitkeep")
    images, problems = images_in(tmp_path / "train", split="train", root=tmp_path)
    assert images == [("train/cat/1.jpg", "cat")]
    assert [(p.kind, p.file) for p in problems] == [
        ("stray-file", "train/.DS_Store"),
        ("stray-file", "train/cat/notes.txt"),
        ("empty-class", "train/dog"),
    ]


def test_mnist_files_are_paired_with_their_labels(tmp_path):
    touch(
        tmp_path,
        "train-images-idx3-ubyte.gz",
        "train-labels-idx1-ubyte.gz",
        "t10k-images-idx3-ubyte.gz",
        "t10k-labels-idx1-ubyte.gz",
    )
    layout = find_layout(tmp_path)
    assert layout.kind == "idx"
    assert {split: [file.name[:12] for file in files] for split, files in layout.files.items()} == {
        "train": ["train-images", "train-labels"],
        "test": ["t10k-images-", "t10k-labels-"],
    }


def test_a_folder_and_a_file_that_are_no_data_are_refused(tmp_path):
    touch(tmp_path, "README.md", "song.mp3")
    with pytest.raises(DataError, match="holds no data that is understood"):
        find_layout(tmp_path)
    with pytest.raises(DataError, match=r"has the suffix '.mp3'; it must be one of .csv"):
        find_layout(tmp_path / "song.mp3")
