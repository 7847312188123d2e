"""How much of a batch is real tokens, what that is worth in tokens a second, and whether packed numbers stay the same.

    python benchmarks/padding.py [--rounds 5] [--quick]

Shares: four data sets, MiniLM's tokenizer, texts cut at 512 tokens, batches of 32, three epochs. Speed: MiniLM forward and
backward on sst2 in fp32, batches in turn (A, B, C, D, A, ...), real tokens a second. Numbers: logits of a packed batch against
the same batch unpacked, in fp32. The result is benchmarks/results/padding.json.
"""

from __future__ import annotations

import argparse
import copy
import csv
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import DATA, RESULTS, THREADS, commit, machine, ratio, summary

from regraft.data.loading import Plan, bucketed_batches, epoch_order, plain_batches, token_share
from regraft.data.samples import minilm_folder
from regraft.data.text import EncodedText, load_tokenizer
from regraft.layers.packing import fullest_rows, plan_rows
from regraft.models.backbone import Backbone
from regraft.models.graft import Graft
from regraft.models.load import example_inputs, load_backbone

BATCH, LONGEST, EPOCHS = 32, 512, 3
BATCHES = 12  # of a way and round, in the measurement of speed
TARGETS = {"share": 0.95, "difference": 1e-5, "speed over padding to the longest of the data": 2.0}


# ---- data


def lines(file: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def texts() -> dict[str, list[str]]:
    """The texts of each data set; prompts with their answers."""
    sst2 = (DATA / "sst2" / "train.tsv").read_text(encoding="utf-8").splitlines()[1:]
    with open(DATA / "banking77" / "train.csv", encoding="utf-8", newline="") as file:
        banking = [row[0] for row in list(csv.reader(file))[1:]]
    alpaca = lines(DATA / "alpaca_en_800" / "train.jsonl")
    dialogues = lines(DATA / "dialogsum_dev" / "data.jsonl")
    return {
        "banking77": banking,
        "sst2": [line.split("\t")[0] for line in sst2],
        "alpaca_en_800": ["\n".join((row["instruction"], row["input"], row["output"])) for row in alpaca],
        "dialogsum_dev": ["\n".join((row["dialogue"], row["summary"])) for row in dialogues],
    }


def encoded(values: list[str]) -> EncodedText:
    """Token ids, cut at 512."""
    tokenizer = load_tokenizer(minilm_folder()).backend_tokenizer
    tokenizer.no_padding()
    tokenizer.enable_truncation(LONGEST)
    rows = [row.ids for row in tokenizer.encode_batch_fast(values)]
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    return EncodedText(np.concatenate([np.array(row, np.int32) for row in rows]), lengths, lengths >= LONGEST, 0)


# ---- shares


def grouped_by_length(lengths: np.ndarray, epoch: int) -> Plan:
    """The batches of transformers' Trainer with `group_by_length`."""
    from transformers.trainer_pt_utils import get_length_grouped_indices

    generator = torch.Generator().manual_seed(epoch)
    return plain_batches(np.array(get_length_grouped_indices(lengths.tolist(), BATCH, generator=generator)), BATCH)


def packed_places(lengths: np.ndarray, plan: Plan, rows_of: Callable[[list[int]], list[list[int]]]) -> int:
    """Places of all batches of a plan when the examples of each share rows."""
    places = 0
    for batch in range(len(plan)):
        part = lengths[plan.batch(batch)].tolist()
        rows = rows_of(part)
        places += len(rows) * max(sum(part[example] for example in row) for row in rows)
    return places


def shares(lengths: np.ndarray) -> dict[str, float]:
    """Share of real tokens under each way to make batches, the mean of three epochs."""
    found: dict[str, list[float]] = {}
    for epoch in range(EPOCHS):
        random = plain_batches(epoch_order(len(lengths), 0, epoch), BATCH)
        total = int(lengths.sum())
        each = {
            "padded to the longest of the data": total / (len(lengths) * int(lengths.max())),
            "random batches, padded to their longest": token_share(lengths, random),
            "Trainer's group_by_length": token_share(lengths, grouped_by_length(lengths, epoch)),
            "regraft's length buckets": token_share(lengths, bucketed_batches(lengths, BATCH, 0, epoch)),
            "regraft's packing of random batches": total / packed_places(lengths, random, fullest_rows),
            "all examples packed in rows of 512": total / (LONGEST * len(plan_rows(lengths.tolist(), LONGEST))),
        }
        for way, share in each.items():
            found.setdefault(way, []).append(share)
    return {way: round(float(np.mean(values)), 4) for way, values in found.items()}


# ---- speed


def minilm() -> Graft:
    """A graft on MiniLM's last layer with all weights trained, as a run on a processor makes it."""
    backbone = load_backbone("minilm", modality="text")
    backbone.module.set_attn_implementation("eager")  # type: ignore[operator]
    depth = backbone.boundaries()[-1].depth
    return Graft(backbone, depths=[depth], pools=["mean"], num_outputs=2, seed=0).train()


def padded(batch: dict[str, torch.Tensor], length: int, pad_id: int) -> dict[str, torch.Tensor]:
    """The batch padded to a length."""
    more = length - batch["input_ids"].shape[1]
    fills = {"input_ids": pad_id, "attention_mask": 0}
    return {key: torch.nn.functional.pad(batch[key], (0, more), value=fill) for key, fill in fills.items()}


def speed(data: EncodedText, *, rounds: int, batches: int) -> dict[str, Any]:
    """Real tokens a second, forward and backward, of each way; ways take turns."""
    plain, packing = minilm(), minilm()
    packing.pack()
    longest = int(data.lengths.max())
    random = plain_batches(epoch_order(len(data), 0, 0), BATCH)
    buckets = bucketed_batches(data.lengths, BATCH, 0, 0)

    def drawn(plan: Plan, at: int) -> dict[str, torch.Tensor]:
        return data.collate(plan.batch(at))

    ways: dict[str, tuple[Graft, Callable[[int], dict[str, torch.Tensor]]]] = {
        "padded to the longest of the data": (plain, lambda at: padded(drawn(random, at), longest, data.pad_id)),
        "random batches, padded to their longest": (plain, lambda at: drawn(random, at)),
        "regraft's length buckets": (plain, lambda at: drawn(buckets, at)),
        "regraft's packing of random batches": (packing, lambda at: drawn(random, at)),
    }
    rates: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(rounds + 1):
        for way, (model, draw) in ways.items():
            first = (number * batches) % (len(random) - batches - 1)
            made = [draw(at) for at in range(first, first + batches)]
            began = time.perf_counter()
            for batch in made:
                model.zero_grad(set_to_none=True)
                model(**batch).square().mean().backward()
            seconds = time.perf_counter() - began
            if number:  # the first round warms up
                rates[way].append(sum(int(batch["attention_mask"].sum()) for batch in made) / seconds)
    base = rates["padded to the longest of the data"]
    return {
        "tokens a second": {way: summary(values, digits=0) for way, values in rates.items()},
        "over padding to the longest of the data": {way: ratio(values, base) for way, values in rates.items()},
    }


# ---- numbers


def tiny(name: str) -> Graft:
    """A graft on all depths of a small random decoder."""
    import transformers

    common = {"vocab_size": 512, "bos_token_id": 1, "eos_token_id": 2, "use_cache": False}
    configs = {
        "Llama": lambda: transformers.LlamaConfig(
            hidden_size=64,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=128,
            **common,
        ),
        "GPT2": lambda: transformers.GPT2Config(n_embd=64, n_layer=4, n_head=4, n_positions=512, **common),
    }
    torch.manual_seed(0)
    module = transformers.AutoModel.from_config(configs[name]()).eval()
    example = example_inputs(module.config, "text")
    backbone = Backbone(module=module, name=name, modality="text", inputs=tuple(example), example=example)
    return Graft(backbone, depths=range(5), pools=["mean", "last"], num_outputs=8).eval()


@torch.no_grad()
def differences(data: EncodedText) -> dict[str, float]:
    """Largest difference of packed and unpacked logits over the largest logit, in fp32, over eight batches."""
    models = {"Llama, random": tiny("Llama"), "GPT-2, random": tiny("GPT2"), "MiniLM": minilm().eval()}
    random = plain_batches(epoch_order(len(data), 1, 0), BATCH)
    found = {}
    for name, graft in models.items():
        packed = copy.deepcopy(graft)
        packed.pack()
        apart = []
        for at in range(8):
            batch = data.collate(random.batch(at))
            if name != "MiniLM":
                batch["input_ids"] = batch["input_ids"] % 500 + 3
            want = graft(**batch)
            apart.append(float((packed(**batch) - want).abs().max() / want.abs().max()))
        found[name] = max(apart)
    return found


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="two rounds of four batches, and no result is written")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    rounds, batches = (2, 4) if options.quick else (options.rounds, BATCHES)
    data = {name: encoded(values) for name, values in texts().items()}
    apart = differences(data["sst2"])
    result = {
        "share of real tokens": {name: shares(each.lengths) for name, each in data.items()},
        "tokens an example": {
            name: {"mean": round(float(each.lengths.mean()), 1), "longest": int(each.lengths.max())}
            for name, each in data.items()
        },
        "difference of packed logits": {name: float(f"{value:.2e}") for name, value in apart.items()},
        "speed on sst2": speed(data["sst2"], rounds=rounds, batches=batches),
        "targets": TARGETS,
        "settings": {"batch": BATCH, "longest": LONGEST, "epochs": EPOCHS, "rounds": rounds, "batches": batches},
        "machine": machine(),
        "commit": commit(),
    }
    print(json.dumps(result, indent=1))
    worst = max(apart.values())
    if worst > TARGETS["difference"]:
        raise SystemExit(f"packed logits differ by {worst:.1e} of the largest, more than 1e-5; nothing is written")
    if not options.quick:
        RESULTS.mkdir(parents=True, exist_ok=True)
        (RESULTS / "padding.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
