"""One epoch of full fine-tuning of MiniLM on rows of banking77, timed after a few steps: by hand, regraft, HF Trainer, Lightning.

python benchmarks/arms/epoch.py hand|regraft|hf_default|hf_tuned|lightning [--rows 2500] [--seed 0]
"""

from __future__ import annotations

import argparse
import logging
import time
import warnings
from itertools import count, islice
from typing import Any

from common import minilm, report

WARM = 5  # steps before the clock starts
RATE = 2e-4


class Clock:
    """Starts at the end of step `WARM`, stops at the end of the last one."""

    def __init__(self, steps: int) -> None:
        self.last, self.done = WARM + steps, 0
        self.began = self.seconds = 0.0

    def step(self) -> None:
        """A step has ended."""
        self.done += 1
        if self.done == WARM:
            self.began = time.perf_counter()
        elif self.done == self.last:
            self.seconds = time.perf_counter() - self.began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("--rows", type=int, default=2500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=32)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    import numpy as np
    import torch
    from tasks import Texts, task

    whole = task("banking77")
    rows = np.random.default_rng(0).permutation(len(whole.labels["train"]))[: options.rows]
    held = np.random.default_rng(1).permutation(len(whole.labels["test"]))[: min(1000, options.rows)]
    data = Texts(
        {split: [whole.ids[split][row] for row in part] for split, part in (("train", rows), ("test", held))},
        {split: whole.labels[split][torch.from_numpy(part)] for split, part in (("train", rows), ("test", held))},
        classes=whole.num_classes,
    )
    clock = Clock(-(-len(rows) // options.batch))
    torch.manual_seed(options.seed)
    logits = WAYS[options.way](data, clock, options)
    precision = "fp32" if options.way == "hf_default" else "bf16"
    report(seconds=round(clock.seconds, 3), steps=clock.last - WARM, **judged(data, logits, precision))


def judged(data: Any, logits: Any, precision: str) -> dict[str, float]:
    """Loss and accuracy on the held-out rows."""
    import torch
    from tasks import autocast

    loss, right, total = 0.0, 0, len(data.labels["test"])
    with torch.inference_mode():
        for rows in data.in_order("test"):
            with autocast(precision):
                found = logits(data.inputs("test", rows)).float()
            y = data.labels["test"][torch.from_numpy(rows)]
            loss += float(torch.nn.functional.cross_entropy(found, y, reduction="sum"))
            right += int((found.argmax(1) == y).sum())
    return {"loss": round(loss / total, 4), "accuracy": round(right / total, 4)}


def hand(data: Any, clock: Clock, options: argparse.Namespace) -> Any:
    """A plain loop with regraft's settings: eval mode, bf16 autocast, eager attention, clipped gradients, fused AdamW."""
    import torch
    from tasks import MeanPooled, autocast

    model = empty(MeanPooled(data.num_classes, attention="eager").eval())
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01, fused=True)
    for rows in batches(data, options, clock.last):
        optimizer.zero_grad(set_to_none=True)
        with autocast("bf16"):
            logits = model(**data.inputs("train", rows))
        torch.nn.functional.cross_entropy(logits.float(), data.labels["train"][torch.from_numpy(rows)]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        clock.step()
    return lambda inputs: model(**inputs)


def empty(model: Any) -> Any:
    """The model with a head of zeros, so that two implementations start from the same function."""
    for parameter in model.head.parameters():
        parameter.data.zero_()
    return model


def batches(data: Any, options: argparse.Namespace, steps: int) -> Any:
    """As many batches as there are steps, epoch after epoch."""
    endless = (rows for epoch in count(1000 * options.seed) for rows in data.epoch(options.batch, epoch))
    return islice(endless, steps)


def regraft(data: Any, clock: Clock, options: argparse.Namespace) -> Any:
    """The core loop of regraft, as a candidate of the race is trained: one stage, no technique."""
    import numpy as np

    from regraft.config.recipe import CandidateSpec, TrainSpec
    from regraft.data.text import EncodedText
    from regraft.models.attention import use_plain_attention
    from regraft.models.graft import Graft
    from regraft.models.load import load_backbone
    from regraft.optim.optimizers import AdamW
    from regraft.phases.training import StepCounter, Trainer, supervised_recipe

    ids, lengths = data.ids["train"], data.lengths("train")
    flat = np.concatenate([np.array(each, dtype=np.int32) for each in ids])
    encoded = EncodedText(ids=flat, lengths=lengths, cut=np.zeros(len(ids), dtype=bool), pad_id=0)
    backbone = load_backbone(str(minilm()), modality="text")
    use_plain_attention(backbone.module, backbone.example)  # as `regraft adapt` does
    depth = backbone.boundaries()[-1].depth
    model = empty(Graft(backbone, depths=(depth,), pools=("mean",), num_outputs=data.num_classes, seed=0))
    options_ = TrainSpec(
        batch_size=options.batch, optimizer=AdamW(lr=RATE, weight_decay=0.01), precision="bf16", steady=True
    )
    candidate = CandidateSpec(name="full", steps=clock.last, train=options_)
    recipe = supervised_recipe(
        model, encoded, data.labels["train"], task="multiclass", candidate=candidate, seed=options.seed
    )
    trainer = Trainer(recipe, seed=options.seed, hooks=(StepCounter(lambda steps, note: clock.step(), every=1),))
    trainer.until(clock.last)
    return lambda inputs: model(**inputs)


def hugging_face(data: Any, clock: Clock, options: argparse.Namespace, *, default: bool) -> Any:
    """The Trainer of transformers, as it comes or tuned."""
    from hf_trainer import make_trainer
    from transformers import TrainerCallback

    class AtStepEnd(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            clock.step()

    asked = argparse.Namespace(
        set="banking77", default=default, epochs=2, batch=options.batch, rate=RATE, precision="bf16"
    )
    trainer = make_trainer(data, asked, max_steps=clock.last, seed=options.seed)
    trainer.add_callback(AtStepEnd())
    trainer.train()
    trainer.model.eval()
    return lambda inputs: trainer.model(**inputs).logits


def lightning(data: Any, clock: Clock, options: argparse.Namespace) -> Any:
    """Lightning with the settings of the loop by hand, but for clipping, which it refuses for fused optimizers."""
    import lightning.pytorch as pl
    from lightning_loop import Batches, make_module, make_trainer
    from tasks import MeanPooled

    asked = argparse.Namespace(epochs=2, batch=options.batch, rate=RATE, precision="bf16")
    module = make_module(data, asked, MeanPooled(data.num_classes, attention="eager"))

    class AtStepEnd(pl.Callback):
        def on_train_batch_end(self, *given: Any, **named: Any) -> None:
            clock.step()

    trainer = make_trainer(asked, [AtStepEnd()], max_steps=clock.last)
    trainer.fit(module, Batches(data, options.batch))
    return lambda inputs: module.network.eval()(**inputs)


WAYS = {
    "hand": hand,
    "regraft": regraft,
    "hf_default": lambda data, clock, options: hugging_face(data, clock, options, default=True),
    "hf_tuned": lambda data, clock, options: hugging_face(data, clock, options, default=False),
    "lightning": lightning,
}

if __name__ == "__main__":
    main()
