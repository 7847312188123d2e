"""How a transformers backbone is run on several examples in one row: which mask and positions it takes, proved on a batch."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from regraft.core.modes import eval_mode
from regraft.errors import ModelError
from regraft.layers.packing import Layout, layout_of
from regraft.models.attention import adds_its_mask
from regraft.models.causal import is_causal
from regraft.models.trace import call, tensors_in

MASK, POSITIONS, IDS = "attention_mask", "position_ids", "input_ids"
TOLERANCE = 1e-5  # of the largest output: sums run over other lengths, so the last bits differ
LENGTHS = (24, 9, 17, 3, 14, 1, 6)  # tokens of the examples a packing is proved on
WINDOWS = (
    "sliding_window",
    "local_attention",
    "attention_window",
    "attention_chunk_size",
)  # what longer examples must test


@dataclass(frozen=True, kw_only=True)
class Packing:
    """One way to hand packed rows to a backbone.

    Attributes:
        mask: `own`: positions that restart tell the backbone where an example begins, and it makes its mask itself, with
            sliding windows where it has them (decoders of transformers); `blocks`: it is given a block-diagonal mask.
        causal: do tokens see only what stands before them?
        padding_id: where it is not None, positions count the tokens that are not this one and start at one more than it, as in
            RoBERTa; else they start at 0.
    """

    mask: Literal["own", "blocks"]
    causal: bool
    padding_id: int | None = None

    def inputs(self, module: nn.Module, inputs: Mapping[str, Tensor], layout: Layout) -> dict[str, Any]:
        """What the backbone is called on: `inputs` (N, L) as rows (R, C), with positions and mask."""
        rows: dict[str, Any] = {key: layout.pack(value) for key, value in inputs.items() if key != MASK}
        if self.padding_id is None:
            rows[POSITIONS] = layout.positions
        else:
            counted = inputs[IDS].ne(self.padding_id).long()
            rows[POSITIONS] = layout.pack(counted.cumsum(1) * counted + self.padding_id, fill=self.padding_id)
        if self.mask == "own":
            return rows | {"use_cache": False}
        visible = layout.visible(causal=self.causal)
        return rows | {MASK: _additive(visible, module) if adds_its_mask(module) else visible}


def _additive(visible: Tensor, module: nn.Module) -> Tensor:
    """0 where the mask is true and the lowest number elsewhere, in the type of the module's weights."""
    dtype = next(module.parameters()).dtype
    zero = torch.zeros((), dtype=dtype, device=visible.device)
    return torch.where(visible, zero, torch.finfo(dtype).min)


def saves_rows(inputs: Mapping[str, Tensor]) -> bool:
    """Is there more than one example to pack? One alone is run as it is (so is each under `torch.func.vmap`)."""
    return inputs[MASK].shape[0] > 1


def proved_packing(module: nn.Module, *, name: str) -> Packing:
    """The way in which this backbone gives packed the numbers it gives unpacked, to 1e-5 of the largest, in eval mode.

    Ways are tried in turn on examples of several lengths, one longer than the attention's window where it has one.

    Raises:
        ModelError: it takes no positions, or other numbers come out in every way.
    """
    config: Any = getattr(module, "config", None)
    if config is None or POSITIONS not in inspect.signature(module.forward).parameters:
        raise _refused(name, "it does not take positions, so examples in one row cannot be told apart")
    inputs = _trial(module, config)
    layout = layout_of(inputs[MASK])
    reasons: list[str] = []
    with eval_mode(module):
        for way in _ways(config):
            reason = _difference(module, way, inputs, layout)
            if reason is None:
                return way
            reasons.append(reason)
    raise _refused(name, reasons[0])


def _ways(config: Any) -> list[Packing]:
    """Ways to try, the likeliest first."""
    causal = is_causal(config)
    ways = [Packing(mask="own", causal=True)] if causal else []
    ways.append(Packing(mask="blocks", causal=causal))
    padding_id = getattr(config, "pad_token_id", None)
    return ways if padding_id is None else [*ways, Packing(mask="blocks", causal=causal, padding_id=int(padding_id))]


def _trial(module: nn.Module, config: Any) -> dict[str, Tensor]:
    """Padded examples of several lengths whose ids are no padding."""
    longest = LENGTHS[0]
    for window in (getattr(config, name, None) for name in WINDOWS):
        widest = max(window, default=0) if isinstance(window, (list, tuple)) else window
        longest = max(longest, int(widest or 0) + 8)
    limit = getattr(config, "max_position_embeddings", None)
    longest = min(longest, int(limit) - 4) if limit else longest
    lengths = [longest, *(min(length, longest) for length in LENGTHS[1:])]
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(4, max(6, min(int(config.vocab_size), 1000)), (len(lengths), longest), generator=generator)
    padding_id = getattr(config, "pad_token_id", None)
    ids = torch.where(ids == (-1 if padding_id is None else padding_id), 3 if padding_id != 3 else 4, ids)
    mask = (torch.arange(longest) < torch.tensor(lengths).unsqueeze(1)).long()
    device = next(module.parameters()).device
    return {IDS: torch.where(mask == 1, ids, padding_id or 0).to(device), MASK: mask.to(device)}


@torch.no_grad()
def _difference(module: nn.Module, way: Packing, inputs: Mapping[str, Tensor], layout: Layout) -> str | None:
    """Why this way will not do; None where packed and unpacked numbers agree."""
    want = tensors_in(call(module, inputs))[0]
    try:
        packed = tensors_in(call(module, way.inputs(module, inputs, layout)))[0]
    except (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError, NotImplementedError) as error:
        return f"it does not run on packed rows ({' '.join(str(error).split())[:120]})"
    if want.ndim != 3 or packed.shape[:2] != torch.Size(layout.rows):
        return "it does not give one vector a token"
    real = inputs[MASK].unsqueeze(-1).bool()
    apart = ((layout.unpack(packed) - want) * real).abs().max() / (want * real).abs().max()
    share = float(apart)
    return None if share <= TOLERANCE else f"packed it gives other numbers (by {share:.0e} of the largest)"


def _refused(name: str, reason: str) -> ModelError:
    """The error of a backbone that cannot be packed."""
    return ModelError(
        f"packing: {name} cannot be packed: {reason}; leave `packing` out, length buckets are used anyway"
    )
