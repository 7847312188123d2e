"""The inventory of checkpoints: what is listed, by which licence, and what is blocked."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from regraft.errors import ModelError
from regraft.models.inventory import inventory
from regraft.models.licences import allows_commercial_use, stated_licence, why_not_commercial
from regraft.models.load import find_model


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """A folder of models: one with each kind of licence, an adapter, a pickle, and what is no model."""
    from transformers import BertConfig, BertModel

    root = tmp_path_factory.mktemp("zoo")
    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32,
    )  # fmt: skip
    torch.manual_seed(0)
    model = BertModel(config, add_pooling_layer=False)
    for name in ("free", "forbidden", "silent", "by-file"):
        model.save_pretrained(root / name)
    (root / "free" / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\n# Model\n")
    (root / "forbidden" / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    (root / "by-file" / "LICENSE").write_text(
        "MIT License\n\nPermission is hereby granted, free of charge, to any\nperson"
    )
    (root / "adapter").mkdir()
    (root / "adapter" / "adapter_config.json").write_text("{}")
    save_file({"a": torch.ones(2)}, root / "adapter" / "adapter_model.safetensors")
    (root / "pickled").mkdir()
    (root / "pickled" / "config.json").write_text(json.dumps({"model_type": "bert"}))
    torch.save({"a": torch.ones(3)}, root / "pickled" / "pytorch_model.bin")
    (root / "nothing").mkdir()
    (root / "nothing" / "notes.txt").write_text("no model")
    (root / "nothing" / "config.json").write_text('{"a": 1}')
    return root


def listed(root, **options):
    return {each.name.rpartition("/")[2]: each for each in inventory([root], **options)}


@pytest.mark.inventory("checkpoint-inventory", by="regraft models")
def test_every_checkpoint_is_listed_with_licence_hash_and_size(zoo):
    found = listed(zoo)
    assert {"free", "forbidden", "silent", "by-file", "adapter", "pickled"} <= found.keys()
    assert "nothing" not in found
    for name in ("free", "silent"):
        file = zoo / name / "model.safetensors"
        assert found[name].sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
        assert found[name].bytes == file.stat().st_size
        assert found[name].architecture == "bert"
    licences = {name: found[name].licence for name in ("free", "forbidden", "silent", "by-file")}
    assert licences == {"free": "apache-2.0", "forbidden": "cc-by-nc-4.0", "silent": None, "by-file": "mit"}
    usable = {name for name, each in found.items() if each.usable}
    assert {"free", "forbidden", "silent", "by-file"} <= usable
    assert "is an adapter, not a whole model" in found["adapter"].why
    assert "only as pytorch_model.bin" in found["pickled"].why
    assert found["free"].parameters == sum(t.numel() for t in load_file(zoo / "free" / "model.safetensors").values())


@pytest.mark.inventory("checkpoint-inventory", by="regraft models --commercial")
def test_what_is_not_licensed_for_commercial_use_is_blocked_when_asked(zoo):
    found = listed(zoo, commercial=True)
    assert {name for name in ("free", "forbidden", "silent", "by-file") if found[name].usable} == {"free", "by-file"}
    assert found["forbidden"].why == "its licence cc-by-nc-4.0 forbids commercial use"
    assert found["silent"].why.startswith("its licence is not stated")


@pytest.mark.inventory("checkpoint-inventory", by="models.main.commercial: true")
def test_a_recipe_can_refuse_weights_that_forbid_commercial_use(zoo, tmp_path):
    from regraft.config.recipe import parse_recipe
    from regraft.phases.materials import readable_model

    spec = parse_recipe(
        json.dumps(
            {"data": {"main": {"path": "x"}}, "models": {"main": {"name": str(zoo / "forbidden"), "commercial": True}}}
        )
    ).main_model()
    with pytest.raises(ModelError, match=r"its licence cc-by-nc-4.0 forbids commercial use; give another model"):
        readable_model(spec, _Materials())


class _Materials:
    """Enough of `Materials` for a model that is refused before any data is looked at."""

    class dataset:
        class schema:
            modality, classes = "text", ("a", "b")

    @staticmethod
    def example():
        raise AssertionError("no data is read")


@pytest.mark.inventory("backbone-nlp", by="regraft models")
def test_gpt_3_is_recorded_as_closed_and_cannot_be_asked_for():
    entry = next(each for each in inventory([]) if each.name == "gpt-3")
    assert (entry.licence, entry.usable, entry.path) == ("closed", False, None)
    with pytest.raises(ModelError, match=r"'GPT-3' is closed: the weights were never published.*gpt2"):
        find_model("GPT-3")


@pytest.mark.parametrize(
    ("licence", "allowed"),
    [
        ("apache-2.0", True), ("MIT", True), ("BSD-2-Clause", True), ("cc-by-4.0", True), ("creativeml-openrail-m", True),
        ("llama-community", True), ("cc-by-nc-4.0", False), ("cc-by-nc-sa-4.0", False), ("nvidia-source-code-nc", False),
        ("non-commercial", False), ("research-only", False), ("other", None), ("mitre-research", None),
        ("apache-2.0-research", None), ("bigscience-bloom-rail-1.0", True), ("Apache-2.0 license", True),
        ("llama3.1", True), ("bespoke", None), (None, None),
    ],
)  # fmt: skip
def test_licences_are_told_apart_by_name(licence, allowed):
    assert allows_commercial_use(licence) is allowed
    assert (why_not_commercial(licence) is None) == (allowed is True)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Apache License\n                           Version 2.0, January 2004", "apache-2.0"),
        ("Redistribution and use in source and binary forms, with or without\nmodification", "bsd-2-clause"),
        ("Redistribution and use in source and binary forms ... Neither the name of the", "bsd-3-clause"),
        ("Nvidia Source Code License-NC", "nvidia-source-code-nc"),
        ("CreativeML Open RAIL-M\ndated August 22, 2022", "creativeml-openrail-m"),
        ("Creative Commons Attribution-NonCommercial 4.0 International", "cc-by-nc-4.0"),
        ("All rights reserved.", "other"),
    ],
)
def test_the_text_of_a_licence_file_is_recognised(tmp_path, text, name):
    (tmp_path / "LICENSE").write_text(text)
    assert stated_licence(tmp_path, {}).name == name


def test_config_comes_before_readme_before_licence_file(tmp_path):
    (tmp_path / "LICENSE").write_text("Permission is hereby granted, free of charge")
    assert stated_licence(tmp_path, {}).where == "LICENSE"
    (tmp_path / "README.md").write_text("---\nlicense: bsd-3-clause\n---")
    assert stated_licence(tmp_path, {}).where == "README.md"
    assert stated_licence(tmp_path, {"license": "cc0-1.0"}).name == "cc0-1.0"


@pytest.mark.inventory("checkpoint-inventory", by="regraft models FOLDER")
def test_the_checkpoints_of_the_shared_data_are_known(shared_data):
    folders = [shared_data("stories260k"), shared_data("weights_resnet20_cifar10")]
    found = {each.name.rpartition("/data/")[2]: each for each in inventory(folders)}
    llama, cnn = found["stories260k/hf"], found["weights_resnet20_cifar10"]
    assert (llama.architecture, llama.licence, llama.usable) == ("llama", "MIT", True)
    assert llama.sha256.startswith("407a7c58")
    assert (cnn.architecture, cnn.licence, cnn.usable) == ("ResNet", "BSD-2-Clause", True)
    assert cnn.sha256.startswith("067e58d1")


@pytest.mark.parametrize(
    ("front", "licence"),
    [
        ("license:\n- mit\ntags:\n- x", "mit"),
        ("license:\n  - mit\n  - cc-by-nc-4.0", "cc-by-nc-4.0"),
        ("license: [mit, 'apache-2.0']", "mit"),
        ('license: ["mit", cc-by-nc-4.0]', "cc-by-nc-4.0"),
        ("license: 'apache-2.0' # as the code", "apache-2.0"),
        ("license:\ntags:\n- mit", None),
        ("license: []\ntags:\n- mit", None),
    ],
)
def test_a_readme_may_name_several_licences_or_none(tmp_path, front, licence):
    (tmp_path / "README.md").write_text(f"---\n{front}\n---\n# A model\n")
    found = stated_licence(tmp_path, {})
    assert (None if found is None else found.name) == licence


def test_of_a_readme_of_any_size_only_the_beginning_is_read(tmp_path):
    file = tmp_path / "README.md"
    with file.open("wb") as out:
        out.write(b"license: mit\n")
        out.truncate(1 << 33)  # gigabytes of nothing
    assert stated_licence(tmp_path, {}).name == "mit"
