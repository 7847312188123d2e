"""Plain attention gives the numbers of transformers, and a text the same bits in every batch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from regraft.models.attention import NAME, adds_its_mask, plain_attention, use_plain_attention


def tokens(n: int, length: int, *, real: int | None = None, vocabulary: int = 90) -> dict[str, torch.Tensor]:
    ids = torch.randint(5, vocabulary, (n, length), generator=torch.Generator().manual_seed(length))
    mask = torch.ones_like(ids)
    if real is not None:
        mask[1:, real:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def made(kind: str) -> nn.Module:
    from transformers import AutoConfig, AutoModel

    sizes = {
        "vocab_size": 100,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    }
    more = {
        "bert": {},
        "roberta": {"max_position_embeddings": 64},
        "llama": {"num_key_value_heads": 2},
        "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4},
        "gemma2": {"num_key_value_heads": 2, "head_dim": 8, "attn_logit_softcapping": 1.0},
    }[kind]
    if kind == "gpt2":
        sizes = {"vocab_size": 100}
    config = AutoConfig.for_model(kind, **sizes, **more, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModel.from_config(config).eval()


@pytest.mark.parametrize("kind", ["bert", "roberta", "llama", "gpt2"])
def test_numbers_and_gradients_are_those_of_the_model(kind):
    model = made(kind)
    outputs, gradients = [], []
    for batch in (tokens(3, 7, real=5), tokens(3, 20, real=11)):
        for choose in (
            lambda: model.set_attn_implementation("eager"),
            lambda: use_plain_attention(model, tokens(2, 8, real=5)),
        ):
            choose()
            model.zero_grad()
            out = model(**batch).last_hidden_state * batch["attention_mask"][..., None]
            out.square().sum().backward()
            outputs.append(out.detach())
            gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
        assert model.config._attn_implementation == NAME
        assert adds_its_mask(model)
        torch.testing.assert_close(outputs[-1], outputs[-2], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(gradients[-1], gradients[-2], rtol=1e-4, atol=1e-4)


def test_a_model_with_another_formula_keeps_its_own():
    model = made("gemma2")  # it squashes the scores
    use_plain_attention(model, tokens(2, 8, real=5))
    assert model.config._attn_implementation == "eager"
    plain = nn.Linear(2, 2)
    use_plain_attention(plain, {})
    assert adds_its_mask(plain)


def test_without_a_mask_fewer_keys_than_a_register_weigh_what_the_formula_says():
    random = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 3, 5, 8, generator=random, dtype=torch.float64) for _ in range(3))
    out, weights = plain_attention(nn.Identity().eval(), query.float(), key.float(), value.float(), None)
    expected = torch.softmax(query @ key.transpose(2, 3) / 8**0.5, -1)
    torch.testing.assert_close(weights.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(out.double(), (expected @ value).transpose(1, 2), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("real", [6, 11, 20])
def test_a_text_gets_the_same_bits_in_any_batch_padded_to_any_length(real):
    """What a store holds is then what a run without it computes."""
    from transformers import AutoModel

    from regraft.data.samples import minilm_folder
    from regraft.models.load import quiet

    with quiet():
        model = AutoModel.from_pretrained(str(minilm_folder()), add_pooling_layer=False, dtype=torch.float32).eval()
    use_plain_attention(model, tokens(2, 8, real=5))
    texts = tokens(40, real)["input_ids"] + 2000

    @torch.no_grad()
    def hidden(n: int, length: int) -> torch.Tensor:
        ids = nn.functional.pad(texts[:n], (0, length - real))
        mask = (torch.arange(length) < real).long().expand(n, length)
        return model(input_ids=ids, attention_mask=mask).last_hidden_state[:8, :real]

    first = hidden(40, real)
    assert all(torch.equal(hidden(n, length), first) for n in (8, 33) for length in (real, real + 1, 24, 40))


def test_dropout_is_torchs_own_and_keeps_a_byte_a_weight():
    module = nn.Module().train()
    query, key, value = (torch.randn(2, 3, 20, 8, generator=torch.Generator().manual_seed(k)) for k in range(3))
    outputs, gradients, kept = [], [], []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[-1] += tensor.nbytes if tensor.shape[-2:] == (20, 20) else 0
        return tensor

    def formula(q: torch.Tensor) -> torch.Tensor:
        weights = (q @ key.transpose(2, 3) * 8**-0.5).softmax(-1)
        return (nn.functional.dropout(weights, 0.3) @ value).transpose(1, 2)

    for attend in (formula, lambda q: plain_attention(module, q, key, value, None, dropout=0.3)[0]):
        own = query.clone().requires_grad_()
        kept.append(0)
        torch.manual_seed(5)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            outputs.append(attend(own))
        outputs[-1].square().sum().backward()
        gradients.append(own.grad)
    assert (outputs[0] - outputs[1]).abs().max() <= 1e-6
    assert (gradients[0] - gradients[1]).abs().max() <= 1e-5
    entries = 2 * 3 * 20 * 20
    assert kept[0] - kept[1] == 3 * entries, "a byte for each weight, where fp32 took four"
