"""Augmented texts: rates are honoured, protected words stay, a judge keeps labels, and steps can be taken up again."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from toy import mlp, recipe, stage

from regraft.config.data import DataSpec
from regraft.config.recipe import recipe_from_tree
from regraft.core import compile, fit
from regraft.data.encode import encode_split
from regraft.data.read import load
from regraft.data.sources import Examples
from regraft.data.text import TextPreprocessor
from regraft.data.toys import ToyTexts
from regraft.data.words import edited, sentences, with_synonyms
from regraft.errors import ConfigError, Conflict
from regraft.techniques.augment.back_translation import BackTranslation, Translator
from regraft.techniques.augment.text import Neighbours, SynonymReplacement, TextEdit
from regraft.techniques.speed.prefetch import Prefetch
from regraft.techniques.transfer.cache_prefix import CachePrefix
from regraft.testing import blobs

WORDS = [f"w{i}" for i in range(20)]
POOL = ["other", "more"]


@pytest.fixture(scope="module")
def tickets(shared_data, minilm):
    """Encoded questions to a bank with their raw texts, and class ids."""
    dataset = load(DataSpec(path=str(shared_data("banking77"))))
    preprocessor = TextPreprocessor.from_model(minilm, columns=dataset.schema.inputs)
    rows = np.arange(0, 4000, 20)
    return encode_split(dataset, "train", preprocessor, rows=rows), torch.from_numpy(dataset.targets("train")[rows])


class Ids(nn.Module):
    """Something to call on tokens."""

    inputs = ("input_ids", "attention_mask")

    def __init__(self, size: int = 31_000) -> None:
        super().__init__()
        self.embedding = nn.Embedding(size, 8)

    def forward(self, input_ids, attention_mask):
        return self.embedding(input_ids).mean(1)


def batches(encoded, targets, *techniques, start=0, steps=3, models=None):
    source = Examples(encoded, targets, batch_size=32, seed=0)
    made = compile(recipe(stage(source=source, model=Ids()), models=models or {}), techniques).stages[0]
    drawn = made.source.batches(made.model, start)
    return [next(drawn) for _ in range(steps)]


def texts_of(encoded, batch) -> list[str]:
    tokenizer = encoded.origin.tokenizer
    return [tokenizer.decode(row.tolist()) for row in batch["input_ids"]]


# ---- edits


@pytest.mark.inventory("nlp-random-edit", by="technique TextEdit")
def test_each_operation_does_what_it_says_at_its_rate():
    def over(**rates) -> list[list[str]]:
        return [edited(WORDS, POOL, Random(seed), **rates) for seed in range(1500)]

    deleted = over(delete=0.15)
    assert np.mean([len(out) for out in deleted]) == pytest.approx(20 * 0.85, abs=0.15)
    assert all(out == [word for word in WORDS if word in set(out)] for out in deleted), "the order stays"
    inserted = over(insert=0.17)
    assert np.mean([len(out) for out in inserted]) == pytest.approx(20 * 1.17, abs=0.06)
    assert all([word for word in out if word in set(WORDS)] == WORDS for out in inserted)
    replaced = over(replace=0.17)
    assert np.mean([sum(word in POOL for word in out) for out in replaced]) == pytest.approx(3.4, abs=0.06)
    assert all(len(out) == 20 for out in replaced)
    swapped = over(swap=0.05)
    assert all(Counter(out) == Counter(WORDS) for out in swapped)
    assert {sum(a != b for a, b in zip(out, WORDS, strict=True)) for out in swapped} == {2}
    assert edited(WORDS, POOL, Random(0)) == WORDS


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text("ab. !", min_size=1), max_size=8), st.integers(0, 99))
def test_at_least_one_unit_stays_and_nothing_comes_from_nowhere(units, seed):
    out = edited(units, [], Random(seed), insert=0.5, delete=0.95, swap=0.5, replace=0.5)
    assert bool(out) == bool(units)
    assert set(out) <= set(units)


@pytest.mark.inventory("nlp-random-edit", by="technique TextEdit")
def test_sentences_are_edited_like_words():
    text = "First one. Is it? Yes! And so on"
    assert sentences(text) == ["First one.", "Is it?", "Yes!", "And so on"]
    spec = TextEdit(delete=0, swap=0, sentences={"swap": 0.25})
    out = spec.retell({"text": [text] * 30}, list(range(30)), lambda columns: {})["text"]
    assert all(Counter(sentences(one)) == Counter(sentences(text)) or "And so on" in one for one in out)
    assert len(set(out)) > 3
    drawn = TextEdit(delete=0, swap=0, sentences={"replace": 0.5}).retell(
        {"text": [text, "Another text. It has two."]}, [1, 2], lambda columns: {}
    )
    assert drawn["text"][0] != text
    assert set(sentences(drawn["text"][0])) <= {*sentences(text), "Another text.", "It has two."}


@pytest.mark.parametrize(
    "technique",
    [TextEdit(), TextEdit(insert=0.2, replace=0.2), SynonymReplacement(table={"card": ("ticket",)}, share=1.0)],
    ids=["edit", "insert", "synonyms"],
)
def test_texts_are_tokenised_anew_as_a_function_of_seed_step_and_example(tickets, technique):
    encoded, targets = tickets
    plain, whole = batches(encoded, targets), batches(encoded, targets, technique)
    assert all(torch.equal(a["y"], b["y"]) and torch.equal(a["id"], b["id"]) for a, b in zip(plain, whole, strict=True))
    changed = [a != b for a, b in zip(texts_of(encoded, plain[2]), texts_of(encoded, whole[2]), strict=True)]
    assert sum(changed) > 4
    for late in (
        batches(encoded, targets, technique, start=2),
        batches(encoded, targets, technique, Prefetch(), start=2),
    ):
        assert all(torch.equal(late[0][key], whole[2][key]) for key in whole[2])
    again = batches(encoded, targets, technique, steps=15)  # the second epoch: other words for the same examples
    looks = {int(row): text for row, text in zip(again[0]["id"], texts_of(encoded, again[0]), strict=True)}
    later = {int(r): t for b in again[7:14] for r, t in zip(b["id"], texts_of(encoded, b), strict=True)}
    if isinstance(technique, TextEdit):
        assert any(later[row].replace(" [PAD]", "") != text.replace(" [PAD]", "") for row, text in looks.items())


def test_two_changes_follow_each_other_in_one_pass_over_the_tokenizer(tickets):
    encoded, targets = tickets
    loud = BackTranslation(share=1.0, translate=lambda texts: [f"alpha {text}" for text in texts])
    bravo = SynonymReplacement(share=1.0, table={"alpha": ("bravo",)})
    for order in ((loud, bravo), (bravo, loud)):
        assert all("bravo" in text for text in texts_of(encoded, batches(encoded, targets, *order)[0]))


def test_texts_that_look_new_each_time_cannot_be_stored_and_what_is_no_text_is_refused():
    model = mlp()
    model[0].requires_grad_(False)
    x, y = blobs()
    source = Examples(ToyTexts(x), y, batch_size=32, seed=0)
    compile(recipe(stage(source=source, model=model)), [CachePrefix()])
    with pytest.raises(Conflict, match="differ each time"):
        compile(recipe(stage(source=source, model=model)), [TextEdit(), CachePrefix()])
    with pytest.raises(Conflict, match="TextEdit changes texts before they are tokenised"):
        compile(recipe(stage()), [TextEdit()])


# ---- synonyms


@pytest.mark.inventory("nlp-synonyms", by="technique SynonymReplacement")
def test_the_share_of_replaced_words_is_the_one_asked_for_and_protected_words_stay(tickets):
    encoded, _ = tickets
    texts = encoded.origin.texts(np.arange(200))["text"]
    kept = frozenset({"card", "refund"})
    replaced = total = 0
    for seed, text in enumerate(texts):
        out = with_synonyms(text, Random(seed), share=0.2, synonyms=lambda word: ("xx",), kept=kept)
        assert len(out.split()) == len(text.split())
        replaced += sum(a != b for a, b in zip(text.split(), out.split(), strict=True))
        total += len(text.split())
        for before, after in zip(text.split(), out.split(), strict=True):
            assert before.lower().strip("?.!,") not in kept or before == after
    assert replaced / total == pytest.approx(0.2, abs=0.015)


def test_punctuation_spaces_and_capitals_stay():
    table = {"big": ("large",), "blue": ("azure",)}
    out = with_synonyms(
        "Big  (blue), cars!\n", Random(0), share=1.0, synonyms=lambda word: table.get(word, ()), kept=frozenset()
    )
    assert out == "Large  (azure), cars!\n"


@pytest.mark.inventory("nlp-synonyms", by="technique SynonymReplacement")
def test_without_a_table_synonyms_are_neighbours_in_the_models_own_embedding(tickets, minilm):
    from safetensors import safe_open

    encoded, targets = tickets
    with safe_open(minilm / "model.safetensors", "pt") as file:
        name = next(key for key in file.keys() if key.endswith("word_embeddings.weight"))  # noqa: SIM118
        weight = file.get_tensor(name)
    near = Neighbours(weight, encoded.origin.tokenizer, most=5, least=0.5)
    assert "buying" in near.synonyms("purchase") or "buy" in near.synonyms("purchase")
    assert near.synonyms("zzzzqx") == ()
    # the nearest by an argsort of all cosines, computed apart
    tokenizer = encoded.origin.tokenizer
    unit = torch.nn.functional.normalize(weight, dim=1)
    cosines = unit @ unit[tokenizer.token_to_id("money")]
    words = [tokenizer.id_to_token(i) for i in cosines.argsort(descending=True)[1:6].tolist() if cosines[i] >= 0.5]
    assert list(near.synonyms("money")) == [word for word in words if word.isalpha()]
    assert len(words) > 1
    model = Ids(len(weight))
    with torch.no_grad():
        model.embedding = nn.Embedding.from_pretrained(weight.clone(), freeze=False)
    source = Examples(encoded, targets, batch_size=32, seed=0)
    protect = SynonymReplacement(share=0.5, protect=("account",))
    made = compile(recipe(stage(source=source, model=model)), [protect]).stages[0]
    with torch.no_grad():
        model.embedding.weight.zero_()  # training moves the weights, and a resumed run must not see other synonyms
    batch, plain = next(made.source.batches(model, 0)), source.batch_at(0)
    before, after = texts_of(encoded, plain), texts_of(encoded, batch)
    assert all(a != b for a, b in zip(before, after, strict=True))
    held = [
        (one.split().count("account"), other.split().count("account")) for one, other in zip(before, after, strict=True)
    ]
    assert all(kept >= had for had, kept in held)
    assert any(had for had, _ in held)


def test_a_table_comes_from_a_file_and_a_wrong_one_is_said_to_be(tmp_path):
    x, y = blobs()
    source = Examples(ToyTexts(x), y, batch_size=32, seed=0)
    file = tmp_path / "words.json"
    file.write_text('{"a": ["b"]}')
    compile(recipe(stage(source=source)), [SynonymReplacement(table=str(file))])
    for text, said in (("[1]", "must hold"), ('{"a": [1]}', "must hold"), ("{", "cannot be read as JSON")):
        file.write_text(text)
        with pytest.raises(ConfigError, match=said):
            compile(recipe(stage(source=source)), [SynonymReplacement(table=str(file))])
    with pytest.raises(Conflict, match="has no embedding of words"):
        compile(recipe(stage(source=source)), [SynonymReplacement()])


# ---- back-translation


@pytest.mark.inventory("nlp-backtranslation", by="technique BackTranslation")
def test_any_function_from_texts_to_texts_will_do_and_each_text_is_translated_once(tickets):
    encoded, targets = tickets
    asked: list[str] = []

    def translate(texts: list[str]) -> list[str]:
        asked.extend(texts)
        return [" ".join(reversed(text.split())) for text in texts]

    drawn = batches(encoded, targets, BackTranslation(share=0.5, translate=translate), steps=21)  # three epochs
    assert len(asked) == len(set(asked))
    assert 0.8 * 200 < len(asked) <= 200, "an example is left as it is three times in a row in one of eight"
    plain = batches(encoded, targets, steps=21)
    ids = torch.nn.utils.rnn.pad_sequence([b["input_ids"][0] for b in drawn]).T
    assert len(ids) == 21
    same = sum(texts_of(encoded, a) == texts_of(encoded, b) for a, b in zip(plain, drawn, strict=True))
    assert same == 0


class Judge(nn.Module):
    """Says 1 where the token of "lost" is in the text, else 0."""

    inputs = ("input_ids", "attention_mask")

    def __init__(self, token: int) -> None:
        super().__init__()
        self.token, self.calls = token, 0

    def forward(self, input_ids, attention_mask):
        self.calls += 1
        found = (input_ids == self.token).any(1).float()
        return torch.stack([1 - found, found], 1)


@pytest.mark.inventory("nlp-backtranslation", by="technique BackTranslation, judge:")
def test_a_paraphrase_that_the_judge_labels_otherwise_is_not_used(tickets):
    encoded, targets = tickets
    texts = encoded.origin.texts(np.arange(200))["text"]
    table = {text: (f"lost {text}" if i % 2 else f"well {text}",) for i, text in enumerate(texts)}
    judge = Judge(encoded.origin.tokenizer.token_to_id("lost"))
    spec = BackTranslation(share=1.0, paraphrases=table, judge="judge")
    for batch in batches(encoded, targets, spec, models={"judge": judge}):
        for row, text in zip(batch["id"].tolist(), texts_of(encoded, batch), strict=True):
            already = "lost" in re.findall("[a-z]+", texts[row].lower())
            assert text.startswith("lost") == (row % 2 == 1 and already)
            assert text.startswith("well") == (row % 2 == 0)
    assert judge.calls == 6, "the texts and their paraphrases, a batch each"
    with pytest.raises(Conflict, match="no model is called 'judg'"):
        batches(encoded, targets, spec.replaced(judge="judg"), models={"judge": judge})


def test_it_needs_exactly_one_translator():
    x, y = blobs()
    source = Examples(ToyTexts(x), y, batch_size=32, seed=0)
    for spec in (BackTranslation(), BackTranslation(there="a"), BackTranslation(paraphrases={"a": "b"}, translate=len)):
        with pytest.raises(ConfigError, match="needs one of"):
            compile(recipe(stage(source=source)), [spec])
    with pytest.raises(ConfigError, match="must give a text for each of 32 texts"):
        fit(compile(recipe(stage(source=source)), [BackTranslation(share=1.0, translate=lambda texts: texts[:1])]))


@pytest.fixture
def translator_folder(tmp_path) -> Path:
    """A tiny sequence-to-sequence model with random weights."""
    import transformers as t
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<pad>", "</s>", "<unk>", "my", "card", "is", "lost", "where", "now"]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = t.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    config = t.T5Config(
        vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, decoder_start_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(1)
        t.T5ForConditionalGeneration(config).save_pretrained(tmp_path / "there")
    tokenizer.save_pretrained(tmp_path / "there")
    return tmp_path / "there"


@pytest.mark.inventory("nlp-backtranslation", by="technique BackTranslation, there: and back:")
def test_two_local_folders_translate_there_and_back_each_text_by_itself(translator_folder):
    import transformers as t

    folder = str(translator_folder)
    translate = Translator(folder, folder, most_tokens=8)
    texts = ["my card is lost", "where is my card now"]
    out = translate(texts)
    assert [Translator(folder, folder, most_tokens=8)([text])[0] for text in texts] == out
    model = t.T5ForConditionalGeneration.from_pretrained(translator_folder).eval()
    tokenizer = t.AutoTokenizer.from_pretrained(translator_folder)
    for text, got in zip(texts, out, strict=True):
        for _ in range(2):
            ids = tokenizer(text, return_tensors="pt").input_ids
            made = [0]  # greedy decoding by hand
            while made[-1] != 1 and len(made) <= 8:
                logits = model(input_ids=ids, decoder_input_ids=torch.tensor([made])).logits
                made.append(int(logits[0, -1].argmax()))
            text = tokenizer.decode(made, skip_special_tokens=True)
            if not text:
                break
        assert got == text
    with pytest.raises(ConfigError, match="must be a local folder of a sequence-to-sequence model"):
        Translator("/nowhere/at-all", "/nowhere/at-all")(["a"])


def test_a_recipe_with_paraphrases_and_a_judge_trains_and_says_what_the_judge_let_through(
    shared_data, minilm, tmp_path
):
    from regraft.phases.train import train_job

    data = DataSpec(path=str(shared_data("banking77")), limit=24, limit_valid=8, limit_test=8)
    train = load(data).splits["train"].column("text").to_pylist()
    (tmp_path / "other.json").write_text(json.dumps({text: [f"please tell me: {text}"] for text in train}))
    tree = {
        "data": {"main": data.model_dump(exclude_defaults=True)},
        "models": {"main": {"name": "minilm"}, "judge": {"name": "minilm"}},
        "train": {"batch_size": 8},
        "stages": [{"name": "adapt", "steps": 2}],
        "techniques": [
            {"BackTranslation": {"paraphrases": str(tmp_path / "other.json"), "judge": "judge"}},
            {"TextEdit": {"delete": 0.1}},
            {"LastK": {"blocks": 1}},
        ],
    }
    run = train_job(recipe_from_tree(tree), tmp_path / "run")
    notes = run.done("train")["notes"]
    assert any("texts were drawn in other words, and the judge gave" in note for note in notes), notes
