"""Twenty recipes with one planted mistake each: the linter finds it and nothing else; the shipped recipes get no warning."""

from pathlib import Path

import pytest

from regraft.config.recipe import parse_recipe, read_recipe
from regraft.errors import DataError, ModelError
from regraft.phases.advice.lint import lint

SOUND = {
    "text": """
        data: {main: {path: PATH}}
        models: {main: {name: MODEL}}
        stages: [{name: adapt, steps: 100}]
        train: {optimizer: {AdamW: {lr: 2e-5, weight_decay: 0.01}}, schedule: {Linear: {warmup: 0.06}}}
        techniques: [Discriminative]
    """,
    "image": """
        data: {main: {path: digits}}
        models: {main: {network: {ConvNet: {width: 8}}, image_size: 8}}
        stages: [{name: adapt, steps: 100}]
        train: {optimizer: {AdamW: {lr: 3e-3, weight_decay: 0.01}}, schedule: Cosine}
    """,
    "table": """
        data: {main: {path: wine}}
        models: {main: {network: MLP}}
        stages: [{name: adapt, steps: 100}]
        train: {optimizer: {SGD: {lr: 0.1, momentum: 0.9}}, schedule: Cosine}
    """,
}
PLANTED = [
    ("RATE1", "text", ["techniques=[]"]),
    ("RATE1", "text", ["techniques=[SAM]"]),
    ("RATE2", "text", ["train.optimizer.AdamW.lr=0.003"]),
    ("RATE3", "text", ["train.schedule=Linear"]),
    ("RATE3", "table", ["train.batch_size=256", "train.optimizer.SGD.lr=0.4"]),
    ("RATE4", "table", ["train.schedule=Constant"]),
    ("RATE4", "image", ["train.schedule=Power"]),
    ("RATE4", "table", ["train.schedule=Exponential"]),
    ("RATE5", "table", ["train.batch_size=512", "train.optimizer=SGD", "train.schedule={Cosine: {warmup: 0.1}}"]),
    ("RATE6", "table", ["train.schedule=ReduceLROnPlateau", "validate.times=3"]),
    ("DECAY1", "image", ["train.optimizer.AdamW.weight_decay=0.3"]),
    ("DECAY1", "table", ["train.optimizer.SGD.weight_decay=1e-6"]),
    ("BATCH1", "table", ["train.batch_size=4"]),
    ("BATCH1", "table", ["train.batch_size=100"]),
    ("BATCH2", "image", ["train.micro=8"]),
    ("DATA1", "image", ["train.flip=true"]),
    ("DATA1", "image", ["techniques=[{ImageGeometry: {flip: 0.5}}]"]),
    ("DATA2", "image", ["techniques=[{ImageGeometry: {rotate: 180}}]"]),
    ("FREEZE1", "text", ["data.main.limit=300"]),
    ("OPT2", "table", ["techniques=[GAN]", "models.main.network=GenerativePair", "train.optimizer={Adam: {lr: 2e-4}}"]),
]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A table of 2,400 short texts, and a BERT of random weights that reads them."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    root = tmp_path_factory.mktemp("planted")
    lines = [f"row number n{k},{'ab'[k % 2]}" for k in range(2400)]
    (root / "data.csv").write_text("\n".join(["text,label", *lines]))
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "[PAD]": 1, "row": 2, "number": 3}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(root / "bert")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        BertModel(BertConfig(vocab_size=8, max_position_embeddings=32, **sizes)).save_pretrained(root / "bert")
    return {"PATH": str(root / "data.csv"), "MODEL": str(root / "bert")}


def codes(kind, places, overrides=()):
    text = SOUND[kind]
    for name, value in places.items():
        text = text.replace(name, value)
    return {finding.code for finding in lint(parse_recipe(text, overrides=overrides))}


@pytest.mark.parametrize("kind", SOUND)
def test_the_recipes_without_a_mistake_get_no_advice(kind, places):
    assert codes(kind, places) == set()


@pytest.mark.inventory("uniform-lr-mistake", "early-unfreeze-mistake", "weight-decay-range", by="regraft lint")
@pytest.mark.parametrize(("code", "kind", "overrides"), PLANTED)
def test_a_planted_mistake_is_found_and_no_other(code, kind, overrides, places):
    assert codes(kind, places, overrides) == {code}


def test_there_are_twenty_of_them():
    assert len(PLANTED) == 20


SHIPPED = sorted((Path(__file__).parents[3] / "regraft_recipes").glob("*.yaml"))


@pytest.mark.parametrize("recipe", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_recipe_gets_no_warning(recipe, minilm):
    small = [f"data.{name}.limit=40" for name in read_recipe(recipe).data] if "minilm" in recipe.read_text() else []
    try:
        found = lint(read_recipe(recipe, small))
    except (DataError, ModelError) as reason:
        pytest.skip(f"needs what is not here: {reason}")
    assert [finding for finding in found if finding.severity == "warning" and finding.code != "FREEZE1"] == []
