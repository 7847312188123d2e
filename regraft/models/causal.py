"""Decoders: networks whose tokens see only what stands before them."""

from __future__ import annotations

from typing import Any


def is_causal(config: Any) -> bool:
    """Is a network of this transformers configuration a decoder? False where there is no configuration.

    A model type that has a causal and a masked language model (BERT) is an encoder unless its configuration says otherwise.
    """
    kind = getattr(config, "model_type", None)
    if kind is None:
        return False
    from transformers.models.auto import modeling_auto as auto

    if kind in auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES:
        return False
    only = kind in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return bool(only or getattr(config, "is_decoder", False))
