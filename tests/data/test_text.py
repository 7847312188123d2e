from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from regraft.data.encode import load_preprocessor, preprocessor_from_json, save_preprocessor
from regraft.data.text import TextPreprocessor, position_limit
from regraft.errors import ConfigError, DataError, ModelError

TEXTS = [
    "My card has not arrived yet.",
    "",
    "naïve café, 东京, 🙂 and " + "a very long tail " * 40,
    "I still have not received my new card, I ordered over a week ago.",
]


@pytest.fixture(scope="module")
def reference(minilm):
    return AutoTokenizer.from_pretrained(str(minilm), local_files_only=True)


def test_a_batch_equals_what_the_transformers_tokenizer_pads_itself(minilm, reference):
    preprocessor = TextPreprocessor.from_model(minilm, columns=("text",), max_length=32)
    batch = preprocessor.encode({"text": TEXTS}).collate(np.arange(4))
    expected = reference(TEXTS, padding=True, truncation=True, max_length=32, return_tensors="pt")
    assert set(batch) == {"input_ids", "attention_mask"}
    for key, value in batch.items():
        assert torch.equal(value, expected[key]), key
        assert value.dtype == torch.int64


def test_a_pair_equals_the_transformers_tokenizer_with_token_types(minilm, reference):
    preprocessor = TextPreprocessor.from_model(minilm, columns=("a", "b"), max_length=24)
    encoded = preprocessor.encode({"a": TEXTS, "b": TEXTS[::-1]})
    batch = encoded.collate(np.arange(4))
    expected = reference(
        TEXTS, TEXTS[::-1], padding=True, truncation="longest_first", max_length=24, return_tensors="pt"
    )
    assert encoded.inputs == ("input_ids", "attention_mask", "token_type_ids")
    for key in encoded.inputs:
        assert torch.equal(batch[key], expected[key]), key


def test_rows_come_in_the_order_asked_for_and_may_repeat(minilm):
    encoded = TextPreprocessor.from_model(minilm, columns=("t",)).encode({"t": TEXTS})
    rows = np.array([3, 0, 3])
    batch = encoded.collate(rows)
    for i, row in enumerate(rows):
        single = encoded.collate(np.array([row]))["input_ids"][0]
        assert torch.equal(batch["input_ids"][i, : len(single)], single)
        assert int(batch["attention_mask"][i].sum()) == len(single) == encoded.lengths[row]
    assert torch.equal(batch["input_ids"][0], batch["input_ids"][2])


def test_padding_does_not_change_what_the_model_says(minilm):
    encoded = TextPreprocessor.from_model(minilm, columns=("t",)).encode({"t": TEXTS})
    model = AutoModel.from_pretrained(str(minilm)).eval()
    with torch.no_grad():
        together = model(**encoded.collate(np.arange(4))).last_hidden_state[:, 0]
        alone = torch.cat([model(**encoded.collate(np.array([i]))).last_hidden_state[:, 0] for i in range(4)])
    assert torch.allclose(together, alone, atol=1e-5)


def test_only_texts_beyond_the_limit_count_as_cut(minilm):
    preprocessor = TextPreprocessor.from_model(minilm, columns=("t",), max_length=8)
    exact = "one two three four five six"  # 6 words + 2 special tokens
    encoded = preprocessor.encode({"t": [exact, exact + " seven", ""]})
    assert encoded.lengths.tolist() == [8, 8, 2]
    assert encoded.cut.tolist() == [False, True, False]
    assert encoded.num_cut == 1


def test_chunks_join_to_the_same_examples(minilm, monkeypatch):
    preprocessor = TextPreprocessor.from_model(minilm, columns=("a", "b"))
    columns = {"a": TEXTS * 5, "b": TEXTS[::-1] * 5}
    whole = preprocessor.encode(columns).arrays()
    monkeypatch.setattr("regraft.data.text.CHUNK", 3)
    for name, array in preprocessor.encode(columns).arrays().items():
        assert np.array_equal(array, whole[name]), name
        assert array.dtype == whole[name].dtype


def test_missing_texts_are_empty_and_numbers_are_their_digits(minilm):
    preprocessor = TextPreprocessor.from_model(minilm, columns=("t",))
    odd = preprocessor.encode({"t": [None, float("nan"), 42, 1.5]})
    plain = preprocessor.encode({"t": ["", "", "42", "1.5"]})
    assert np.array_equal(odd.ids, plain.ids)


def test_what_is_no_text_is_refused_with_its_row_and_column(minilm):
    preprocessor = TextPreprocessor.from_model(minilm, columns=("t",))
    with pytest.raises(DataError, match=r"^row 1: column 't' must hold text, got bytes$"):
        preprocessor.encode({"t": ["a", b"b"]})
    with pytest.raises(DataError, match=r"^text column 't' is not in the data, which has 'text'$"):
        preprocessor.encode({"text": ["a"]})


def test_no_rows_give_no_examples(minilm):
    encoded = TextPreprocessor.from_model(minilm, columns=("t",)).encode({"t": []})
    assert len(encoded) == 0
    assert encoded.collate(np.arange(0))["input_ids"].shape == (0, 0)


def test_json_and_the_saved_tokenizer_give_the_same_ids(minilm, tmp_path):
    preprocessor = TextPreprocessor.from_model(minilm, columns=("a", "b"), max_length=20)
    again = preprocessor_from_json(minilm, json.loads(json.dumps(preprocessor.to_json())))
    assert again == preprocessor
    save_preprocessor(preprocessor, tmp_path / "model")
    loaded = load_preprocessor(tmp_path / "model")
    columns = {"a": TEXTS, "b": TEXTS[::-1]}
    assert np.array_equal(loaded.encode(columns).ids, preprocessor.encode(columns).ids)
    assert loaded.fingerprint == preprocessor.fingerprint


def test_the_fingerprint_changes_with_the_limit(minilm):
    one, two = (TextPreprocessor.from_model(minilm, columns=("t",), max_length=n) for n in (16, 17))
    assert one.fingerprint != two.fingerprint


def test_limits_come_from_the_model_and_are_checked(minilm, tmp_path):
    assert TextPreprocessor.from_model(minilm, columns=("t",)).max_length == 256
    with pytest.raises(ConfigError, match=r"max_length must be from 3 to 512, .* got 513"):
        TextPreprocessor.from_model(minilm, columns=("t",), max_length=513)
    with pytest.raises(ConfigError, match="one column, or two for pairs, got 3"):
        TextPreprocessor.from_model(minilm, columns=("a", "b", "c"))
    with pytest.raises(ModelError, match="no tokenizer could be loaded from"):
        TextPreprocessor.from_model(tmp_path, columns=("t",))


def test_roberta_loses_positions_to_its_padding_index(reference):
    config = {"model_type": "roberta", "max_position_embeddings": 130, "pad_token_id": 1}
    assert position_limit(reference, config) == 128
    assert position_limit(reference, {"n_positions": 100}) == 100
    assert position_limit(reference, {}) == 512
