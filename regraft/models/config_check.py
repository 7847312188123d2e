"""The configuration of a model as data: nothing in it may name code or another model to fetch, and its sizes must be sane.

Known ways to have code run from a configuration: `auto_map` and `trust_remote_code`, also inside nested configurations
(CVE-2026-5241), the names of attention implementations, which are fetched as kernels from a hub (CVE-2026-4372), quantisers
and kernels, other weight files, classes by path (`_target_`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from regraft.config.spec import shown

ATTENTION = {"eager", "sdpa", "flash_attention_2", "flash_attention_3", "flash_attention_4", "flex_attention"}
EXPERTS = {"batched_mm", "grouped_mm"}
CODE_KEYS = {
    "auto_map", "trust_remote_code", "custom_pipelines", "custom_generate", "custom_modules", "_target_", "py/object",
    "__class__", "__module__", "__reduce__", "use_kernels", "kernel_config", "hub_kernels", "transformers_weights",
    "use_pretrained_backbone", "pretrained_backbone",
}  # fmt: skip
DTYPES = re.compile(r"(torch\.)?(auto|float(16|32|64)|bfloat16|half|float|float8_\w+|u?int(8|16|32|64)|bool)")
MOST = {  # largest whole number that a field of this name may hold; no published model comes near
    **dict.fromkeys(
        ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers", "depths",
         "num_encoder_layers", "num_decoder_layers", "num_blocks", "num_hidden_groups", "layer_count"), 2048),
    **dict.fromkeys(
        ("hidden_size", "hidden_sizes", "d_model", "dim", "n_embd", "embed_dim", "embedding_size", "hidden_dim", "head_dim",
         "d_kv", "d_head", "projection_dim", "neck_hidden_sizes", "channels", "num_channels", "stem_channels"), 2**18),
    **dict.fromkeys(
        ("intermediate_size", "d_ff", "n_inner", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "moe_intermediate_size",
         "type_vocab_size"), 2**22),
    **dict.fromkeys(("vocab_size",), 2**25),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "position_buckets"), 2**25),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "n_head", "n_heads", "num_heads", "num_experts",
                     "num_local_experts", "n_routed_experts", "encoder_attention_heads"), 2**14),
    **dict.fromkeys(("image_size", "patch_size", "window_size", "kernel_size", "conv_kernel", "sampling_rate"), 2**20),
    **dict.fromkeys(("num_labels", "_num_labels"), 200_000),
}  # fmt: skip
ANY_NUMBER = 10**13  # bases of rotary positions go to 10^11
MOST_ENTRIES = 500_000  # keys and list items of a whole configuration
LONGEST_TEXT = 100_000


class Unsafe(Exception):
    """A configuration that is not taken; the message is the reason: field, what it is, what to do."""


def check_config(config: Mapping[str, Any], known: frozenset[str] | set[str], *, name: str = "config.json") -> None:
    """Nothing, where a configuration holds plain sizes and names only.

    Args:
        config: as read from JSON.
        known: the model types transformers has code for.
        name: how the file is called in a message.

    Raises:
        Unsafe: a field names code, another model or a size that no model has.
    """
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in known:
        raise Unsafe(
            f"{name} is not of a model that transformers knows (model_type is {shown(kind, 60)}); give another model"
        )
    check_code(config, name=name)
    for path, key, value in entries(config, name):
        if key == "quantization_config" and value:
            raise Unsafe("holds quantised weights, which cannot be adapted; give the fp32, fp16 or bf16 model")
        if key in ("dtype", "torch_dtype") and isinstance(value, str) and not DTYPES.fullmatch(value):
            raise Unsafe(f"{path} must be a type of numbers, got {shown(value, 60)}; remove it")
        _check_size(path, key, value)


def check_code(config: Mapping[str, Any], *, name: str) -> None:
    """Nothing, where no field of a JSON file beside a model names code to run; `Unsafe` with the reason otherwise."""
    for number, (path, key, value) in enumerate(entries(config, name)):
        if number > MOST_ENTRIES:
            raise Unsafe(f"{name} must have at most {MOST_ENTRIES:,} entries; give another model")
        if key in CODE_KEYS and value not in (None, False, {}, [], ""):
            what = "asks for code of the model's author, or for another model, to be fetched and run"
            raise Unsafe(f"{path} {what}, which regraft never does; use another model")
        if "attn_implementation" in key or "experts_implementation" in key:
            _check_implementation(path, value)


def _check_implementation(path: str, value: Any) -> None:
    """`Unsafe` unless an implementation is one that transformers has itself; others are fetched and run from a hub."""
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else (value,)
    for item in values:
        if item is None or item is False or (isinstance(item, str) and item in ATTENTION | EXPERTS):
            continue
        raise Unsafe(
            f"{path} is {shown(item, 80)}, which names code outside transformers; remove it or use another model"
        )


def _check_size(path: str, key: str, value: Any) -> None:
    """`Unsafe` where a number is larger than that of any model, or a size is no number."""
    most = MOST.get(key)
    for item in value if isinstance(value, list) else (value,):
        if isinstance(item, str) and (most is not None or len(item) > LONGEST_TEXT):
            raise Unsafe(
                f"{path} must be {'a number' if most is not None else 'short'}, got {shown(item, 60)}; use another model"
            )
        if isinstance(item, bool) or not isinstance(item, int | float):
            continue
        if abs(item) > (ANY_NUMBER if most is None and isinstance(item, int) else most or float("inf")):
            raise Unsafe(f"{path} must be at most {most or ANY_NUMBER:,}, got {shown(item, 40)}; use another model")


def entries(value: Any, path: str) -> Iterator[tuple[str, str, Any]]:
    """(path, key, value) of every key of nested mappings and lists; the file's JSON was bounded in depth when it was read."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield f"{path}: {str(key)[:100]}", str(key), item
            yield from entries(item, f"{path}: {str(key)[:100]}")
    elif isinstance(value, list):
        for item in value:
            yield from entries(item, path)
