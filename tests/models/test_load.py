from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from regraft.errors import ModelError
from regraft.models.load import find_model, load_backbone, suggest_models
from regraft.models.save import describe_model


def folder_with(tmp_path, **config):
    """A model folder with this configuration and weights of no tensors."""
    target = tmp_path / "model"
    target.mkdir()
    (target / "config.json").write_text(json.dumps({"model_type": "bert"} | config))
    save_file({}, target / "model.safetensors")
    return target


def refusal(name, modality="text"):
    with pytest.raises(ModelError) as caught:
        load_backbone(str(name), modality=modality)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_minilm_gives_the_hidden_states_of_plain_transformers(minilm):
    from transformers import AutoModel

    backbone = load_backbone("minilm", modality="text")
    plain = AutoModel.from_pretrained(minilm).eval()
    with torch.no_grad():
        got = backbone.module(**backbone.example).last_hidden_state
        want = plain(**backbone.example).last_hidden_state
    assert torch.equal(got, want)
    assert len(backbone.boundaries()) == 7
    assert backbone.licence == "apache-2.0"
    assert describe_model(backbone.module)["parameters"] == 22_565_376
    assert "minilm" in suggest_models()


def test_mobilenet_of_the_shared_weights_has_27_boundaries(shared_data):
    backbone = load_backbone(str(shared_data("weights_mobilenetv1_025_vww")), modality="image", num_channels=3)
    assert [place.depth for place in backbone.boundaries()] == list(range(27))
    assert backbone.licence == "Apache-2.0"


def test_model_of_the_wrong_modality_is_refused_both_ways(minilm, shared_data):
    folder = shared_data("weights_mobilenetv1_025_vww")
    assert refusal(folder) == (
        f"'{folder}' is a vision model (mobilenet_v1), but the data is text; give a text encoder"
    )
    assert "'minilm' is not a vision model (bert), but the data is images" in refusal("minilm", "image")
    assert "leave the model out" in refusal("minilm", "table")
    with pytest.raises(ModelError, match="takes images of 3 channels, but the data has 1"):
        load_backbone(str(folder), modality="image", num_channels=1)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"auto_map": {"AutoModel": "evil.Model"}}, "asks for code"),
        ({"text_config": {"auto_map": {"AutoModel": "evil.Model"}}}, "asks for code"),
        ({"trust_remote_code": True}, "asks for code"),
        ({"_attn_implementation": "evil/kernel"}, "names code outside transformers"),
        ({"_attn_implementation_internal": {"": "evil/kernel:f"}}, "names code outside transformers"),
        ({"attn_implementation": "paged|evil/kernel"}, "names code outside transformers"),
        ({"quantization_config": {"quant_method": "x"}}, "quantised"),
        ({"model_type": "t5", "is_encoder_decoder": True}, "is an encoder-decoder model (t5)"),
        ({"model_type": "nonesuch"}, "not of a model that transformers knows"),
    ],
)
def test_configurations_that_are_not_safe_or_not_encoders_are_refused(tmp_path, config, words):
    assert words in refusal(folder_with(tmp_path, **config))


def test_folders_without_safe_weights_are_refused(tmp_path):
    target = folder_with(tmp_path)
    assert "describes a network of 109,482,240 parameters, but the weights beside it hold 0" in refusal(target)
    (target / "model.safetensors").rename(target / "pytorch_model.bin")
    assert "only as pytorch_model.bin" in refusal(target)
    (target / "pytorch_model.bin").unlink()
    assert "has no model.safetensors" in refusal(target)
    (target / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../x.safetensors"}}))
    assert "got '../x.safetensors'" in refusal(target)
    (target / "config.json").write_text("{")
    assert "is not JSON" in refusal(target)
    shutil.rmtree(target)
    assert "there is no model folder" in refusal(target)


def test_missing_folder_suggests_the_nearest_sibling(tmp_path):
    (tmp_path / "minilm-l6").mkdir()
    with pytest.raises(ModelError, match="did you mean 'minilm-l6'"):
        find_model(str(tmp_path / "minilm-l7"))


def test_hub_id_that_cannot_be_had_offline_says_so_and_suggests(monkeypatch):
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="nor in the Hugging Face cache, and the hub cannot be reached"):
        find_model("sentence-transformers/no-such-model")
