"""A cache of its own for the searches of these tests, and a tiny model with texts to adapt it to."""

from __future__ import annotations

import random

import pytest

WORDS = ["the", "a", "film", "play", "was", "is", "good", "bad", "fine", "poor"]


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REGRAFT_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory):
    """A folder with a BERT of three blocks and random weights, with a tokenizer of ten words."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("models") / "tiny"
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]")
    fast.save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=64,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def texts(tmp_path_factory):
    """A CSV file of sixty short texts with two labels."""
    draw = random.Random(0)
    lines = [f"{' '.join(draw.choices(WORDS[:6], k=6))} {WORDS[6 + i % 2]},{WORDS[6 + i % 2]}" for i in range(60)]
    file = tmp_path_factory.mktemp("texts") / "texts.csv"
    file.write_text("\n".join(["text,label", *lines]) + "\n")
    return file
