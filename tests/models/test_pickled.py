from __future__ import annotations

import shutil
import socket

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertModel

from regraft.config.recipe import ModelSpec
from regraft.errors import ModelError
from regraft.models.load import load_backbone

SMALL = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 30}


@pytest.fixture
def plain(tmp_path, monkeypatch):
    """A tiny model folder with safetensors; the cache is empty."""
    monkeypatch.setenv("REGRAFT_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    BertModel(BertConfig(**SMALL, max_position_embeddings=16)).save_pretrained(tmp_path / "plain")
    return tmp_path / "plain"


@pytest.fixture
def pickled(plain):
    """The same with its weights as pytorch_model.bin."""
    folder = plain.parent / "pickled"
    shutil.copytree(plain, folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


def test_pickled_weights_are_refused_with_the_option_that_allows_them(pickled):
    with pytest.raises(ModelError, match=r"pytorch_model.bin.*--set models.main.allow_pickled_weights=true"):
        load_backbone(str(pickled), modality="text")
    assert "allow_pickled_weights" in ModelSpec.model_fields


def test_allowed_pickled_weights_give_the_model_that_safetensors_give(plain, pickled):
    want = load_backbone(str(plain), modality="text")
    got = load_backbone(str(pickled), modality="text", allow_pickled_weights=True)
    with torch.no_grad():
        pairs = [b.module(**want.example).last_hidden_state for b in (want, got)]
    assert torch.equal(*pairs)


def test_a_converted_file_is_never_opened_by_torch_again_and_a_changed_one_is(pickled, monkeypatch):
    first = load_backbone(str(pickled), modality="text", allow_pickled_weights=True)
    opened = []
    real = torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **options: opened.append(args[0]) or real(*args, **options))
    again = load_backbone(str(pickled), modality="text", allow_pickled_weights=True)
    assert (opened, again.source) == ([], first.source)
    state = real(pickled / "pytorch_model.bin", weights_only=True)
    torch.save({"state_dict": {name: tensor + 1 for name, tensor in state.items()}}, pickled / "pytorch_model.bin")
    changed = load_backbone(str(pickled), modality="text", allow_pickled_weights=True)
    assert len(opened) == 1
    weight = "embeddings.word_embeddings.weight"
    assert torch.equal(changed.module.state_dict()[weight], first.module.state_dict()[weight] + 1)


def test_files_in_shards_are_joined(pickled):
    import json

    state = torch.load(pickled / "pytorch_model.bin", weights_only=True)
    names = sorted(state)
    (pickled / "pytorch_model.bin").unlink()
    mapping = {}
    for number, part in enumerate((names[::2], names[1::2])):
        file = f"pytorch_model-{number}.bin"
        torch.save({name: state[name] for name in part}, pickled / file)
        mapping |= dict.fromkeys(part, file)
    (pickled / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": mapping}))
    got = load_backbone(str(pickled), modality="text", allow_pickled_weights=True).module.state_dict()
    assert all(torch.equal(got[name], state[name]) for name in got if name in state)


def test_a_local_folder_and_its_tokenizer_are_loaded_without_a_socket(minilm, monkeypatch):
    from regraft.data.text import load_tokenizer

    def refuse(*arguments, **options):
        raise AssertionError(f"a socket was used: {arguments}")

    for name in ("connect", "connect_ex", "bind", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    load_backbone(str(minilm), modality="text")
    assert load_tokenizer(minilm)("a text")["input_ids"]
