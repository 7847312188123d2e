"""Any text whatever, given to a parser of regraft, is read or refused with an error of regraft: never another exception.

Inputs are sound files with bytes, words and values exchanged, a function of a seed. The default suite takes a sample for each
parser; `make test-all` takes `REGRAFT_FUZZ` inputs (default 100,000) for each that reads memory, a tenth for those of files.
"""

from __future__ import annotations

import json
import os
import random
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from regraft.config.plain_json import NotPlain, plain_json
from regraft.config.plain_yaml import NotPlainYaml, plain_yaml
from regraft.config.recipe import dump_recipe, parse_recipe
from regraft.core.checkpoint import load as load_checkpoint
from regraft.core.checkpoint import save as save_checkpoint
from regraft.errors import RegraftError
from regraft.models import headers
from regraft.models.config_check import Unsafe, check_config
from regraft.models.headers import checked_header
from regraft.models.safety import checked_config
from regraft.phases.report.read import read_run
from regraft.phases.rundir import EventLog, RunDirectory

MANY = int(os.environ.get("REGRAFT_FUZZ", "100000"))
SAMPLE = 200

RECIPES = (
    "data: {main: {path: wine}}\nmodels: {main: {}}\n",
    """format: regraft.recipe/1
seed: 7
data: {main: {path: tickets.csv, text: body, label: [queue], task: auto, valid: 0.1}}
models: {main: {name: minilm, head: depths, depths: [2, 4], pools: [mean, max]}, teacher: {name: runs/a}}
train: {batch_size: 32, micro: 2, optimizer: {AdamW: {lr: 3.0e-4}}, schedule: Cosine, max_norm: null}
stages:
  - {name: adapt, steps: 900}
techniques:
  - LoRA: {rank: 8, targets: "attn.*"}
  - SAM
validate: {times: 4, patience: 2}
checkpoint: {every_steps: 200}
""",
    "data: {main: &m {path: digits}, other: *m}\nmodels: {main: {network: {MLP: {width: 8}}}}\nseed: 0x1F\n"
    "budget_s: 6.5e+1\n",
)
JSONS = (
    '{"format": "regraft.phase/1", "winner": "lora", "scores": [0.5, -1e-3, null, true], "nested": {"a": {"b": [[1]]}}}',
    '{"text": "\\u20ac \\"quoted\\" \\\\ and \\n more", "n": 12345678901234567890, "e": {}}',
    json.dumps({f"k{i}": [i, str(i)] for i in range(20)}),
)
CONFIGS = (
    '{"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 100}',
    '{"model_type": "vit", "image_size": 32, "patch_size": 8, "hidden_size": 32, "id2label": {"0": "a", "1": "b"}, '
    '"dtype": "float32"}',
    '{"model_type": "llama", "rope_parameters": {"rope_theta": 1e4}, "_attn_implementation": "sdpa", "head_dim": null}',
)
EVENTS = (
    '{"candidate": "lora", "stage": "adapt", "step": 1, "loss": 0.5}\n'
    '{"candidate": "lora", "stage": "adapt", "step": 2, "loss": 0.4}\n',
    '{"stage": "adapt", "step": 10, "name": "loss", "value": 3.7, "unit": "nats"}\n'
    '{"candidate": "x", "stage": "a", "step": 3}\n{"cand',
)
HEADER = json.dumps(
    {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "b": {"dtype": "I8", "shape": [4], "data_offsets": [24, 28]},
    }
)
WORDS = (
    "null", "true", "~", ".nan", ".inf", "1e999", "-1", "0", "9" * 30, "9" * 5000, "[]", "{}", "''", '""', "&a", "*a", "<<", "!!",
    "!!python/name:os.system", "!x", "|", ">", "- ", "? ", ": ", "\n", "\t", "\x00", "\ufeff", "\ud800", "\u2028",
    "---", "...", "%YAML 9",
    "data", "models", "main", "path", "train", "SAM", "LoRA", "AdamW", "techniques", "name", "2026-13-45", "1:2:3", "0x", "0b", 
    "[" * 70,
    "{" * 70, "]", "}", ",", '"', "\\", "\\u", "NaN", "Infinity", "model_type", "auto_map", "_attn_implementation", "num_labels",
    "stage", "step", "candidate", "loss", "sha256", "format", "dtype", "shape", "data_offsets", "F32", "__metadata__",
)  # fmt: skip


def changed(text: str, rng: random.Random) -> str:
    """The text with one to four parts exchanged, taken out, doubled or put in."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        start = rng.randrange(len(text) + 1)
        stop = min(len(text), start + rng.choice((0, 1, 1, 3, 10, 40)))
        kind = rng.randrange(5)
        if kind == 0:
            put = rng.choice(WORDS)
        elif kind == 1:
            put = chr(rng.choice((rng.randrange(128), rng.randrange(0x110000))))
        elif kind == 2:
            put = ""
        elif kind == 3:
            put = text[start:stop] * 2
        else:
            other = rng.randrange(len(text) + 1)
            put = text[other : other + rng.randrange(30)]
        text = text[:start] + put + text[stop:]
    return text


def texts(corpus: tuple[str, ...], count: int, seed: int = 0) -> Iterator[str]:
    rng = random.Random(seed)
    for _ in range(count):
        yield changed(rng.choice(corpus), rng)


def raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def run_all(parse: Callable[[str], object], inputs: Iterator[str]) -> int:
    """How many inputs were refused; an exception of another kind fails the test with the input that caused it."""
    refused = 0
    for text in inputs:
        try:
            parse(text)
        except RegraftError:
            refused += 1
        except Exception as error:
            raise AssertionError(f"{type(error).__name__} ({error}) from {text[:2000]!r}") from error
    return refused


@pytest.fixture
def parsers(tmp_path, monkeypatch) -> dict[str, tuple[Callable[[str], object], tuple[str, ...]]]:
    """What parses a text, and sound texts to begin with, by the name of the parser."""
    run, model = tmp_path / "run", tmp_path / "model"
    (run / "phases").mkdir(parents=True)
    (run / "recipe.yaml").write_text(RECIPES[0])
    model.mkdir()
    weights, events = tmp_path / "weights.safetensors", run / "events.jsonl"
    save_file({"a": torch.zeros(2, 3), "b": torch.ones(4, dtype=torch.int8)}, weights, metadata={"format": "pt"})
    content = weights.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header, tensors = content[8 : 8 + length].decode().rstrip(), content[8 + length :]
    saved = tmp_path / "step-00000001"
    save_checkpoint(saved, {"model": {"w": torch.zeros(2)}, "step": 1, "log": [{"loss": 0.5}]})
    manifest = (saved / "manifest.json").read_text()
    state = next(file for file in sorted(saved.glob("*.json")) if file.name != "manifest.json")
    values = state.read_text()

    def recipe(text: str) -> None:
        spec = parse_recipe(text)
        parse_recipe(dump_recipe(spec))

    def phase(text: str) -> None:
        (run / "phases" / "audit.json").write_bytes(raw(text))
        RunDirectory.open(run).read_json("phases/audit.json")

    def config(text: str) -> None:
        (model / "config.json").write_bytes(raw(text))
        checked_config(model)

    def log(text: str) -> None:
        events.write_bytes(raw(text))
        EventLog(events, candidate="lora").rewind(0, 1)

    def files_of_a_run(text: str) -> None:
        for name in ("audit", "metrics", "manifest", "ledger"):
            (run / f"{name}.json").write_bytes(raw(text))
        events.write_bytes(raw(text))
        read_run(run)

    def safetensors(text: str) -> None:
        encoded = raw(text)
        weights.write_bytes(struct.pack("<Q", len(encoded)) + encoded + tensors)
        checked_header(weights)

    def checkpoint_manifest(text: str) -> None:
        (saved / "manifest.json").write_bytes(raw(text))
        load_checkpoint(saved)

    def checkpoint_state(text: str) -> None:
        (saved / "manifest.json").write_text(manifest)
        state.write_bytes(raw(text))
        if text != values:
            load_checkpoint(saved)

    return {
        "recipe": (recipe, RECIPES),
        "phase": (phase, JSONS),
        "config": (config, CONFIGS),
        "events": (log, EVENTS),
        "run": (files_of_a_run, (*JSONS, *EVENTS)),
        "safetensors": (safetensors, (header,)),
        "checkpoint manifest": (checkpoint_manifest, (manifest,)),
        "checkpoint state": (checkpoint_state, (values,)),
    }


NAMES = ("recipe", "phase", "config", "events", "run", "safetensors", "checkpoint manifest", "checkpoint state")


@pytest.mark.parametrize("name", NAMES)
def test_a_changed_text_is_read_or_refused_in_a_sentence(parsers, name):
    parse, corpus = parsers[name]
    for text in corpus:
        parse(text)
    refused = run_all(parse, texts(corpus, SAMPLE))
    assert (
        refused > 0 or name == "run"
    )  # the changes reach the parser; of a run, what is damaged is named in the report


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", NAMES)
def test_many_changed_texts_are_read_or_refused_in_a_sentence(parsers, name):
    parse, corpus = parsers[name]
    run_all(parse, texts(corpus, MANY // 10, seed=1))


def json_of_memory(text: str) -> None:
    with translated(NotPlain):
        plain_json(raw(text))


def yaml_of_memory(text: str) -> None:
    with translated(NotPlainYaml):
        plain_yaml(text)


def config_of_memory(text: str) -> None:
    with translated(NotPlain, Unsafe):
        value = plain_json(raw(text), finite=False)
        if isinstance(value, dict):
            check_config(value, {"bert", "vit", "llama"})


def header_of_memory(text: str) -> None:
    with translated(NotPlain, headers._Unsound):
        headers._header(raw(text), 28)


@contextmanager
def translated(*kinds: type[Exception]) -> Iterator[None]:
    try:
        yield
    except kinds as error:
        raise RegraftError(str(error)) from None


MEMORY = {
    "JSON": (json_of_memory, JSONS),
    "YAML": (yaml_of_memory, RECIPES),
    "config": (config_of_memory, CONFIGS),
    "header": (header_of_memory, (HEADER,)),
}


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", MEMORY)
def test_very_many_changed_texts_are_read_or_refused(name):
    parse, corpus = MEMORY[name]
    assert run_all(parse, texts(corpus, MANY if name != "YAML" else MANY // 10, seed=2)) > 0


def test_overrides_are_read_or_refused_in_a_sentence():
    texts_ = texts(
        ("train.batch_size=64", "techniques.SAM.rho=0.1", "stages.0.steps=4", "data.main={path: x}"), 3 * SAMPLE
    )
    assert run_all(lambda text: parse_recipe(RECIPES[1], overrides=[text]), texts_) > 0


def test_the_fuzzer_sees_an_exception_that_is_no_error_of_regraft():
    with pytest.raises(AssertionError, match="JSONDecodeError"):
        run_all(lambda text: json.loads(text), texts(JSONS, 100))


def test_a_file_of_a_run_that_is_missing_is_refused_in_a_sentence(tmp_path: Path):
    with pytest.raises(RegraftError):
        RunDirectory(tmp_path).read_json("phases/none.json")
