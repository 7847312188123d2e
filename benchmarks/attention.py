"""Attention on a processor: regraft's plain formula beside the model's own and PyTorch's fused one, by length of text.

    python benchmarks/attention.py [--rounds 9] [--threads 1]

MiniLM, 1,024 tokens a batch, bf16 autocast; all arms take turns. Reading is one forward pass without gradients, a step is a
forward and a backward pass. The largest difference of the outputs from the model's own stands beside the times.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from harness import RESULTS, Store, ratio, say, summary

from regraft.data.samples import minilm_folder
from regraft.models.attention import NAME, use_plain_attention
from regraft.models.graft import Graft
from regraft.models.load import load_backbone

ARMS = {"regraft": NAME, "eager": "eager", "sdpa": "sdpa"}
LENGTHS, TOKENS = (8, 12, 15, 24, 64, 128), 1024


def batch_of(length: int) -> dict[str, torch.Tensor]:
    """Random ids, the end of one text padded."""
    ids = torch.randint(1000, 20_000, (TOKENS // length, length), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, -2:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def read(model: Graft, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """What the head reads."""
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        return model.features(**batch)


def step(model: Graft, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """A loss and its gradients."""
    model.zero_grad(set_to_none=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(**batch).float().logsumexp(1).mean()
    loss.backward()
    return loss.detach()


def main() -> None:
    """Measure, and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS / "attention.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    backbone = load_backbone(str(minilm_folder()), modality="text")
    use_plain_attention(backbone.module, backbone.example)
    model = Graft(backbone, depths=(6,), pools=("mean",), num_outputs=77).eval()
    found: dict[str, dict[str, Any]] = {}
    for length in LENGTHS:
        batch, times = batch_of(length), {(what, arm): [] for what in ("read", "step") for arm in ARMS}
        outputs = {}
        for number in range(options.rounds + 1):
            for arm, name in ARMS.items():
                backbone.module.set_attn_implementation(name)
                for what, run in (("read", read), ("step", step)):
                    began = time.perf_counter()
                    out = run(model, batch)
                    if number:
                        times[what, arm].append(1e3 * (time.perf_counter() - began))
                    outputs[what, arm] = out
        off = float((outputs["read", "regraft"] - outputs["read", "eager"]).abs().max())
        found[str(length)] = {"difference": off} | {
            what: {
                "regraft_ms": summary(times[what, "regraft"]),
                **{f"over_{arm}": ratio(times[what, "regraft"], times[what, arm]) for arm in ("eager", "sdpa")},
            }
            for what in ("read", "step")
        }
        say(
            f"{length} tokens: "
            + ", ".join(f"{w} {found[str(length)][w]['over_eager']['median']:.2f}" for w in ("read", "step"))
        )
    Store(options.out, settings={"tokens": TOKENS, "rounds": options.rounds, "threads": options.threads}).write(
        found=found
    )


if __name__ == "__main__":
    main()
