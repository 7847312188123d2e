"""What the loop costs: microseconds a step over a hand-written loop, on a network small enough for it to show.

    .venv-bench/bin/python benchmarks/step_overhead.py [--rounds 15] [--steps 600] [--quick]

Every loop makes the same updates of the same network on the same batches with fused AdamW, in one thread; that they end with
the same weights is checked first. They take turns, so that a busy machine slows all of them. The figure is the median over
rounds of the difference to the hand-written loop in the same round, with quartiles. regraft's time is that of a whole call of
`fit`, its start included; the peers' clocks start after 50 steps, and they are fed with ready batches, so that only their
loops count. A peer that is not installed is left out, and said so. Result: benchmarks/results/step_overhead.json.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from harness import RESULTS, machine, say
from torch import Tensor, nn

from regraft.core import Loss, Recipe, Stage, compile, fit
from regraft.core.checkpoint import Checkpointer
from regraft.data.sources import Tensors
from regraft.losses.supervised import cross_entropy
from regraft.optim.build import DescentBuilder
from regraft.optim.optimizers import AdamW
from regraft.phases.rundir import EventLog
from regraft.phases.training import StepCounter

WIDTH, BATCH, ROWS, RATE = 64, 32, 4096, 1e-3
SKIPPED = 50  # steps of the peers before their clocks start
CHECKPOINT_EVERY = 200  # the default of a recipe
Timed = tuple[float, nn.Module]  # microseconds a step, and the trained network
HAND = "hand-written loop"


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 4))


def source() -> Tensors:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, 16, generator=generator)
    return Tensors({"x": x, "y": torch.randint(4, (ROWS,), generator=generator)}, BATCH)


def loss_of(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch["x"]), batch["y"])


def bare(model: nn.Module, batch: dict[str, Tensor], clock: Any) -> Loss:
    """The loss of the hand-written loop: no accuracy, no missing labels."""
    return Loss(loss_of(model, batch), float(BATCH))


# ---- the loops


def by_hand(steps: int) -> Timed:
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0, fused=True)
    begin = time.perf_counter()
    for _, batch in zip(range(steps), source().batches(model), strict=False):
        optimizer.zero_grad(set_to_none=True)
        loss_of(model, batch).backward()
        optimizer.step()
    return 1e6 * (time.perf_counter() - begin) / steps, model


def by_regraft(steps: int, objective: Callable[..., Loss]) -> Timed:
    """`fit`, with the given objective."""
    model = network()
    recipe = _recipe(model, steps, objective)
    begin = time.perf_counter()
    fit(recipe)
    return 1e6 * (time.perf_counter() - begin) / steps, model


def with_hooks(steps: int) -> Timed:
    """`fit` with accuracy, a log file, progress and checkpoints of the whole state, as a recipe runs it."""
    model = network()
    recipe = _recipe(model, steps, cross_entropy)
    with tempfile.TemporaryDirectory() as folder:
        log = EventLog(Path(folder) / "events.jsonl", candidate="full")
        counter = StepCounter(lambda count, note: None)
        hooks = [counter, Checkpointer(Path(folder) / "checkpoints", every=CHECKPOINT_EVERY)]
        begin = time.perf_counter()
        fit(recipe, hooks=hooks, log=log)
        return 1e6 * (time.perf_counter() - begin) / steps, model


def _recipe(model: nn.Module, steps: int, objective: Callable[..., Loss]) -> Recipe:
    update = DescentBuilder(optimizer=AdamW(lr=RATE, weight_decay=0.0))
    stage = Stage(name="bench", model=model, source=source(), objective=objective, update=update, steps=steps)
    return compile(Recipe(model=model, stages=(stage,)), [])


class Ready(torch.utils.data.Dataset[dict[str, Tensor]]):
    """The batches of the other loops, each as one item."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.order = source().order
        self.columns = source().columns

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        ids = torch.from_numpy(self.order.batch_at(step))
        return {name: column[ids] for name, column in self.columns.items()}


class Clocked:
    """Seconds from the end of step `SKIPPED` to now."""

    def __init__(self) -> None:
        self.count, self.begin = 0, 0.0

    def step(self) -> None:
        """Count a step."""
        self.count += 1
        if self.count == SKIPPED:
            self.begin = time.perf_counter()

    def micro(self, steps: int) -> float:
        """Microseconds a step since then."""
        return 1e6 * (time.perf_counter() - self.begin) / (steps - SKIPPED)


def by_trainer(steps: int) -> Timed:
    """The Trainer of transformers."""
    from transformers import Trainer, TrainerCallback, TrainingArguments
    from transformers.utils import logging as its_logging

    its_logging.set_verbosity_error()
    clock = Clocked()

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network()

        def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
            return {"loss": loss_of(self.network, {"x": x, "y": y})}

    class Watch(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            clock.step()

    with tempfile.TemporaryDirectory() as folder:
        options = TrainingArguments(
            output_dir=folder, max_steps=steps, per_device_train_batch_size=1, learning_rate=RATE, weight_decay=0.0,
            lr_scheduler_type="constant", max_grad_norm=0.0, optim="adamw_torch_fused", logging_steps=20,
            save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=True, remove_unused_columns=False,
            train_sampling_strategy="sequential", dataloader_pin_memory=False,
        )  # fmt: skip
        model = Wrapped()
        trainer = Trainer(
            model=model, args=options, train_dataset=Ready(steps), data_collator=first, callbacks=[Watch()]
        )
        trainer.log = lambda *args, **kwargs: None  # type: ignore[method-assign]  # it prints
        trainer.train()
        return clock.micro(steps), model.network


def first(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The one batch of a list of one."""
    return rows[0]


def by_lightning(steps: int) -> Timed:
    """The Trainer of Lightning."""
    import lightning.pytorch as pl

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    clock = Clocked()

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = network()

        def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
            return loss_of(self.network, batch)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=RATE, weight_decay=0.0, fused=True)

        def on_train_batch_end(self, *args: Any) -> None:
            clock.step()

    module = Module()
    trainer = pl.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader(Ready(steps), batch_size=None))
    return clock.micro(steps), module.network


LOOPS: dict[str, Callable[[int], Timed]] = {
    HAND: by_hand,
    "regraft": partial(by_regraft, objective=bare),
    "regraft, accuracy": partial(by_regraft, objective=cross_entropy),
    "regraft, accuracy, log, progress and checkpoints": with_hooks,
    "transformers Trainer": by_trainer,
    "Lightning Trainer": by_lightning,
}
TARGETS = {"regraft, accuracy": 100, "regraft, accuracy, log, progress and checkpoints": 150}


# ---- measuring


def installed(steps: int) -> tuple[dict[str, Callable[[int], Timed]], dict[str, str]]:
    """The loops that run here and end with the weights of the hand-written one; the others with the reason."""
    _, expected = by_hand(steps)
    usable: dict[str, Callable[[int], Timed]] = {}
    absent: dict[str, str] = {}
    for name, loop in LOOPS.items():
        try:
            _, model = loop(steps)
        except ImportError as error:
            absent[name] = f"left out: {error}; `make bench-env` installs it"
            say(f"{name}: {absent[name]}")
            continue
        for one, two in zip(expected.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")
        usable[name] = loop
    return usable, absent


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--quick", action="store_true", help="three rounds of 300 steps, and no result file")
    options = parser.parse_args()
    rounds, steps = (3, 300) if options.quick else (options.rounds, options.steps)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    loops, absent = installed(2 * SKIPPED)
    micro: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(rounds):
        for name, loop in loops.items():
            micro[name].append(loop(steps)[0])
    found = {name: described(values, micro[HAND], TARGETS.get(name)) for name, values in micro.items()}
    for name, one in found.items():
        say(f"{name}: {one['us_per_step']} us a step, {one['over_hand']['median']} over the hand-written loop")
    result = {"machine": machine() | {"threads": 1}, "rounds": rounds, "steps": steps, "loops": found, "absent": absent}
    if not options.quick:
        (RESULTS / "step_overhead.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def described(values: list[float], hand: list[float], target: int | None) -> dict[str, Any]:
    """Median microseconds a step, the median and quartiles of what they are over the hand-written loop, and the target."""
    low, middle, high = statistics.quantiles([a - b for a, b in zip(values, hand, strict=True)], n=4)
    over = {"median": round(middle, 1), "quartiles": [round(low, 1), round(high, 1)], "target": target}
    return {"us_per_step": round(statistics.median(values), 1), "over_hand": over}


if __name__ == "__main__":
    main()
