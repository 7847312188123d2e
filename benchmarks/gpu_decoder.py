"""A decoder of random weights fine-tuned on a GPU: tokens a second, peak memory, precisions, packing; beside the Trainer.

    python benchmarks/gpu_decoder.py [--sizes 0.5 2] [--rounds 5] [--steps 12]
    python benchmarks/gpu_decoder.py --device cpu --tiny        try the code; nothing is written

Llama's architecture, synthetic tokens, lengths skewed as FLAN's are (log-normal, cut at the longest). Arms take turns, each on
a fresh copy of the same weights and the same examples: regraft's loop on padded and on packed batches, and the Trainer with
random batches and with batches of like length; all in bf16 with fused AdamW, once with LoRA on frozen bf16 weights and once
training all weights. Figures are medians over rounds of real tokens a second, and the largest peak of allocated memory. First,
packed and padded losses must agree to 1e-5 in fp32. Where there is no GPU it says so and writes nothing. The Trainer needs the
packages of benchmarks/requirements.txt. The result is benchmarks/results/gpu_decoder.json.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from harness import RESULTS, commit, machine, summary
from torch import Tensor, nn

from regraft.core import Clock, Hook, Loss, Recipe, Run, Stage, compile, fit
from regraft.core.protocols import Source
from regraft.core.values import Batch
from regraft.layers.low_rank import LowRank, find_targets, inject
from regraft.layers.packing import layout_of
from regraft.optim.build import DescentBuilder
from regraft.optim.optimizers import AdamW

SHAPE = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size")
SIZES = {  # billions of parameters -> the numbers of Llama's configuration named above
    "tiny": (64, 2, 4, 2, 128),
    "0.5": (1280, 24, 20, 4, 3456),
    "2": (2048, 32, 16, 8, 7168),
}
ARMS = ("regraft, padded", "regraft, packed", "Trainer, random batches", "Trainer, batches of like length")
WARM = 3  # steps that are not counted
IGNORED = -100


@dataclass(frozen=True)
class Work:
    """What every arm does.

    Attributes:
        examples: token ids of each example.
        batch: examples of a step.
        longest: tokens an example has at most.
        steps: of an arm's run.
    """

    examples: list[Tensor]
    batch: int
    longest: int
    steps: int
    device: torch.device


# ---- model and data


def made(options: argparse.Namespace) -> Work:
    """Examples of skewed lengths: most are short, a few are as long as may be."""
    longest, median, batch = (64, 12, 4) if options.tiny else (2048, 160, 8)
    draw = np.random.default_rng(0)
    lengths = np.clip(np.round(median * np.exp(draw.normal(0.0, 1.0, size=batch * options.steps))), 8, longest)
    vocabulary = 512 if options.tiny else 32_000
    examples = [torch.from_numpy(draw.integers(3, vocabulary, size=int(length))) for length in lengths]
    return Work(examples, batch, longest, options.steps, torch.device(options.device))


def decoder(size: str, mode: str, device: torch.device) -> nn.Module:
    """A causal language model of random weights, the same each time: bf16 and frozen under LoRA, or fp32."""
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=512 if size == "tiny" else 32_000,
        max_position_embeddings=4096,
        use_cache=False,
        **dict(zip(SHAPE, SIZES[size], strict=True)),
    )
    torch.manual_seed(0)
    with torch.device(device):
        model: nn.Module = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    if mode == "LoRA":
        model = model.to(torch.bfloat16).requires_grad_(False)
        targets = find_targets(model.model)  # type: ignore[arg-type]
        description = LowRank(targets=tuple(f"model.{name}" for name in targets), rank=16, alpha=32.0)
        model = inject(model, description)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data = parameter.data.float()
                parameter.requires_grad_(True)
    return model.train()


def padded(examples: Sequence[Tensor]) -> Batch:
    """Examples padded to the longest; labels are the ids, and what is padding is no label."""
    longest = max(map(len, examples))
    ids = torch.zeros(len(examples), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, example in enumerate(examples):
        ids[row, : len(example)], mask[row, : len(example)] = example, 1
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.where(mask == 1, ids, IGNORED)}


def packed(batch: Batch) -> Batch:
    """The examples of a padded batch in rows; an example's first token is no label, for nothing stands before it."""
    layout = layout_of(batch["attention_mask"])
    first = (layout.positions == 0) | (layout.segments < 0)
    ids = layout.pack(batch["input_ids"])
    return {
        "input_ids": ids,
        "position_ids": layout.positions,
        "labels": torch.where(first, IGNORED, ids),
    }


class Rows(Source):
    """One batch a step, padded or packed, moved to the device."""

    def __init__(self, work: Work, *, packing: bool) -> None:
        self.work, self.packing = work, packing
        self.inputs = {"input_ids": "id"}

    def batches(self, model: nn.Module, start: int = 0, /) -> Iterator[Batch]:
        """Batches in the order of the examples, endlessly."""
        work = self.work
        while True:
            at = start % work.steps * work.batch
            batch = padded(work.examples[at : at + work.batch])
            batch = packed(batch) if self.packing else batch
            yield {key: value.to(work.device, non_blocking=True) for key, value in batch.items()}
            start += 1


def next_token(model: nn.Module, batch: Batch, clock: Clock | None = None) -> Loss:
    """Mean cross-entropy of each next token; logits are made only where there is one."""
    given = {key: batch[key] for key in ("input_ids", "attention_mask", "position_ids") if key in batch}
    hidden = model.model(**given).last_hidden_state  # type: ignore[operator]
    labels = batch["labels"][:, 1:]
    known = labels != IGNORED
    logits = model.lm_head(hidden[:, :-1][known])  # type: ignore[operator]
    return Loss(nn.functional.cross_entropy(logits.float(), labels[known]), 1.0)


# ---- measuring


class Timed(Hook):
    """Notes the time after each step; the device is waited for, in all arms alike."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.times = device, list[float]()

    def note(self) -> None:
        """The time now, with all work done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())

    def on_step(self, run: Run, loss: Loss) -> None:
        """Note it."""
        self.note()


def rate(work: Work, times: Sequence[float]) -> float:
    """Real tokens a second of the steps after the first few."""
    tokens = sum(len(example) for example in work.examples[WARM * work.batch :])
    return tokens / (times[-1] - times[WARM - 1])


def by_regraft(work: Work, model: nn.Module, *, packing: bool) -> float:
    """Tokens a second of regraft's loop."""
    timed = Timed(work.device)
    update = DescentBuilder(optimizer=AdamW(lr=1e-5), max_norm=1.0, precision="bf16")
    source = Rows(work, packing=packing)
    stage = Stage(
        name="bench", model=model, source=source, objective=next_token, update=update, steps=work.steps, hooks=(timed,)
    )
    fit(compile(Recipe(model=model, stages=(stage,)), []))
    return rate(work, timed.times)


def by_trainer(work: Work, model: nn.Module, *, grouped: bool) -> float:
    """Tokens a second of the Trainer; grouped batches hold other examples in a step, so all tokens are counted."""
    import transformers

    timed = Timed(work.device)

    class AfterStep(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            timed.note()

    seen: list[int] = []

    def collate(rows: list[dict[str, Tensor]]) -> Batch:
        seen.append(sum(len(row["input_ids"]) for row in rows))
        return padded([row["input_ids"] for row in rows])

    arguments = transformers.TrainingArguments(
        output_dir=tempfile.mkdtemp(prefix="bench-trainer-"),
        per_device_train_batch_size=work.batch,
        max_steps=work.steps,
        learning_rate=1e-5,
        bf16=True,
        optim="adamw_torch_fused",
        train_sampling_strategy="group_by_length" if grouped else "random",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        use_cpu=work.device.type == "cpu",
        seed=0,
    )
    rows = [{"input_ids": example} for example in work.examples]
    trainer = transformers.Trainer(
        model=model,  # type: ignore[arg-type]
        args=arguments,
        train_dataset=rows,  # type: ignore[arg-type]
        data_collator=collate,
        callbacks=[AfterStep()],
    )
    trainer.train()
    return sum(seen[WARM : work.steps]) / (timed.times[-1] - timed.times[WARM - 1])


def measured(work: Work, size: str, mode: str, arm: str) -> dict[str, Any]:
    """Tokens a second and peak GiB of one run of an arm; the reason where it does not fit into memory."""
    gc.collect()
    cuda = work.device.type == "cuda"
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        model = decoder(size, mode, work.device)
        ours = arm.startswith("regraft")
        way: Callable[[], float] = (
            (lambda: by_regraft(work, model, packing=arm == ARMS[1]))
            if ours
            else (lambda: by_trainer(work, model, grouped=arm == ARMS[3]))
        )
        speed = way()
    except torch.cuda.OutOfMemoryError as error:
        return {"failed": " ".join(str(error).split())[:120]}
    return {"tokens_per_s": speed, "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if cuda else None}


def precisions(work: Work, size: str, rounds: int) -> dict[str, Any]:
    """Tokens a second, forward and backward of packed batches, in each precision; precisions take turns."""
    cuda = work.device.type == "cuda"
    types = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16} | ({"tf32": None} if cuda else {})
    model = decoder(size, "full", work.device)
    rates: dict[str, list[float]] = {name: [] for name in types}
    for number in range(rounds + 1):
        for name, dtype in types.items():
            torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
            timed = Timed(work.device)
            for _, batch in zip(range(work.steps), Rows(work, packing=True).batches(model), strict=False):
                model.zero_grad(set_to_none=True)
                with nullcontext() if dtype is None else torch.autocast(work.device.type, dtype):
                    loss = next_token(model, batch).value
                loss.backward()
                timed.note()
            if number:  # the first round warms up
                rates[name].append(rate(work, timed.times))
    torch.set_float32_matmul_precision("highest")
    return {name: summary(values, digits=0) for name, values in rates.items()}


@torch.no_grad()
def loss_difference(work: Work, size: str) -> float:
    """Relative difference of the packed and the padded loss in fp32, the largest of four batches."""
    model = decoder(size, "full", work.device).eval()
    apart = []
    plain, packing = (Rows(work, packing=each).batches(model) for each in (False, True))
    for _ in range(min(4, work.steps)):
        want, got = (float(next_token(model, next(batches)).value) for batches in (plain, packing))
        apart.append(abs(got - want) / want)
    return max(apart)


# ---- the whole


def real_shares(work: Work) -> dict[str, float]:
    """Share of real tokens in padded and in packed batches."""
    shares: dict[str, list[float]] = {"padded": [], "packed": []}
    for at in range(0, len(work.examples), work.batch):
        batch = padded(work.examples[at : at + work.batch])
        tokens = int(batch["attention_mask"].sum())
        shares["padded"].append(tokens / batch["input_ids"].numel())
        shares["packed"].append(tokens / packed(batch)["input_ids"].numel())
    return {name: round(statistics.mean(values), 4) for name, values in shares.items()}


def gathered(work: Work, size: str, rounds: int, arms: Sequence[str]) -> dict[str, Any]:
    """All arms of one size, in alternating rounds."""
    found: dict[str, Any] = {}
    for mode in ("LoRA", "full"):
        runs: dict[str, list[dict[str, Any]]] = {arm: [] for arm in arms}
        for _ in range(rounds):
            for arm in arms:
                if not any("failed" in run for run in runs[arm]):
                    runs[arm].append(measured(work, size, mode, arm))
        found[mode] = {arm: _shown(each) for arm, each in runs.items()}
    return found | {"precision, forward and backward": precisions(work, size, rounds)}


def _shown(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Median rate and largest peak of an arm's runs, or why it failed."""
    failed = next((run["failed"] for run in runs if "failed" in run), None)
    if failed is not None:
        return {"failed": failed}
    peaks = [run["peak_gib"] for run in runs if run["peak_gib"] is not None]
    peak = round(max(peaks), 2) if peaks else None
    return {"tokens_per_s": summary([run["tokens_per_s"] for run in runs], digits=0), "peak_gib": peak}


def main() -> None:
    """Measure and write; without a GPU say so."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sizes", nargs="+", default=["0.5", "2"], choices=[name for name in SIZES if name != "tiny"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a model of 200 thousand parameters, to try the code")
    options = parser.parse_args()
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        print("There is no GPU here, so nothing is measured; try the code with --device cpu --tiny.")
        return
    if options.steps <= WARM:
        parser.error(f"--steps must be more than {WARM}, the steps that are not counted")
    arms = ARMS
    if importlib.util.find_spec("accelerate") is None:
        print("The Trainer needs accelerate, which is not installed: pip install -r benchmarks/requirements.txt")
        arms = ARMS[:2]
    work = made(options)
    sizes = ["tiny"] if options.tiny else options.sizes
    apart = loss_difference(work, sizes[0])
    if apart > 1e-5:
        raise SystemExit(
            f"the packed loss differs by {apart:.1e} of the padded one, more than 1e-5; nothing is measured"
        )
    result: dict[str, Any] = {
        "difference of the packed loss": float(f"{apart:.2e}"),
        "share of real tokens": real_shares(work),
        "billion parameters": {size: gathered(work, size, options.rounds, arms) for size in sizes},
        "settings": {"batch": work.batch, "longest": work.longest, "steps": work.steps, "rounds": options.rounds},
        "gpu": torch.cuda.get_device_name() if work.device.type == "cuda" else None,
        "machine": machine(),
        "commit": commit(),
    }
    print(json.dumps(result, indent=1))
    if work.device.type == "cuda" and not options.tiny:
        RESULTS.mkdir(parents=True, exist_ok=True)
        (RESULTS / "gpu_decoder.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
