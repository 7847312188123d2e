"""Deltas of language models, whose output layer is often the table of their words."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from regraft.models.save import load_model, save_model
from regraft.models.standard import load_language_model
from regraft.phases.export import export_delta

SIZES = {"vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2}


@pytest.fixture
def base(tmp_path, request):
    """A folder with a decoder and its output layer, of random weights."""
    import transformers as t

    llama = SIZES | {
        "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
        "max_position_embeddings": 40,
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        whole = {
            "gpt2": lambda: t.GPT2LMHeadModel(t.GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=40, **SIZES)),
            "tied": lambda: t.LlamaForCausalLM(t.LlamaConfig(tie_word_embeddings=True, **llama)),
            "apart": lambda: t.LlamaForCausalLM(t.LlamaConfig(tie_word_embeddings=False, **llama)),
        }[request.param]()
    whole.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.mark.inventory("delta-only", by="regraft export RUN --delta OUT")
@pytest.mark.parametrize(
    ("base", "also"), [("gpt2", set()), ("tied", set()), ("apart", {"lm_head.weight"})], indirect=["base"]
)
@pytest.mark.parametrize("words", [False, True])
def test_a_delta_of_a_language_model_holds_what_changed_once_and_ties_what_was_tied(base, also, words, tmp_path):
    model = load_language_model(str(base))
    trained = [name for name, _ in model.whole.named_parameters() if "norm" in name or ".ln_" in name]
    trained += [
        name for name, p in model.whole.named_parameters() if words and len(p) == 50 and name != "lm_head.weight"
    ]
    with torch.no_grad():
        for name in trained:
            model.whole.get_parameter(name).add_(0.1)
    run = save_model(model, tmp_path / "run", preprocessor_json={}, labels=[], task="language-model")
    export_delta(run, tmp_path / "delta")
    assert load_file(tmp_path / "delta" / "changed.safetensors").keys() == set(trained) | also
    again, _ = load_model(tmp_path / "delta")
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items())
    tied = [
        part.get_output_embeddings().weight is part.get_input_embeddings().weight for part in (model.whole, again.whole)
    ]
    assert tied[0] == tied[1] == (not also)
