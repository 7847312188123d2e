"""Who measures a model during `regraft train`, and when: on labelled rows, on few-shot tasks, or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regraft.config.recipe import ValidateSpec
from regraft.config.spec import Named
from regraft.core import Hook, Loss, Run, Technique, forward
from regraft.core.modes import eval_mode
from regraft.core.precision import Precision
from regraft.core.protocols import State
from regraft.data.dataset import LANGUAGE
from regraft.data.episodes import Episodes
from regraft.phases.entries import Entry
from regraft.phases.evaluate.likelihood import Likelihood
from regraft.phases.training import Valid, better, evenly, refuse_test, steps_done
from regraft.techniques.meta.maml import MAML, tasks

TASKS = 32  # few-shot tasks that a judgement is the mean of


class Judge(Protocol):
    """Measures a model on a split."""

    @property
    def split(self) -> str:
        """Where the examples are from: what is chosen by a judge may not be of the test split."""
        ...

    def measure(self, model: nn.Module) -> dict[str, float]:
        """`score` (higher is better) and `loss`."""
        ...


@dataclass(frozen=True, kw_only=True)
class FewShot:
    """Mean accuracy and loss on the query examples of tasks, each after adapting a copy to its support examples."""

    technique: MAML
    episodes: Episodes
    batches: int
    split: str = "valid"

    def measure(self, model: nn.Module) -> dict[str, float]:
        """`score`: share of query examples that are right, mean over tasks; `loss` in nats."""
        right: list[Tensor] = []
        lost: list[Tensor] = []
        with eval_mode(model):
            for step in range(self.batches):
                batch = self.episodes.batch_at(step)
                for support, query in zip(tasks(batch, "support"), tasks(batch, "query"), strict=True):
                    adapted = self.technique.adapt(model, support)
                    with torch.no_grad():
                        logits = forward(adapted, query)
                    right.append((logits.argmax(1) == query["y"]).float().mean())
                    lost.append(F.cross_entropy(logits, query["y"]))
        return {"score": float(torch.stack(right).mean()), "loss": float(torch.stack(lost).mean())}


def judge_for(techniques: Sequence[Named], entry: Entry, split: str, *, precision: Precision = "fp32") -> Judge | None:
    """Who measures a model trained with these techniques on a split; None where labels cannot say how good it is.

    Techniques that ignore the objective (GAN) are not judged by labels; a model trained for few-shot tasks (MAML) is judged
    on tasks, whose classes may be any. `precision` is that of the forward passes of a judge on labels.
    """
    if any("objective" in cast(Technique, technique).ignores for technique in techniques):
        return None
    meta = next((technique for technique in techniques if isinstance(technique, MAML)), None)
    if meta is not None:
        return _few_shot(meta, entry, split)
    if not entry.has(split):
        return None
    if entry.task == LANGUAGE:
        return Likelihood(encoded=entry.encoded(split), split=split)
    return Valid(
        encoded=entry.encoded(split), targets=entry.targets(split), task=entry.task, precision=precision, split=split
    )


def _few_shot(meta: MAML, entry: Entry, split: str) -> FewShot | None:
    """Tasks over all classes of a split that have enough examples; None if they are fewer than a task has."""
    if split not in entry.materials.dataset.splits or entry.task not in ("binary", "multiclass"):
        return None
    encoded, targets = entry.encoded(split), entry.targets(split)
    enough = torch.bincount(targets[targets >= 0]) >= meta.shots + meta.queries
    if int(enough.sum()) < meta.ways:
        return None
    episodes = Episodes(
        encoded,
        targets,
        ways=meta.ways,
        shots=meta.shots,
        queries=meta.queries,
        tasks=meta.tasks,
        seed=meta.seed + 1,
    )
    return FewShot(technique=meta, episodes=episodes, batches=max(1, TASKS // meta.tasks), split=split)


class Watch(Hook):
    """Validates a stage at even distances and at its end, and stops it where nothing improves.

    With `patience` the stage ends with its best weights, not its last. A stage that a technique has split is watched as one.
    """

    def __init__(self, judge: Judge, options: ValidateSpec) -> None:
        refuse_test(judge.split)
        self.judge, self.options = judge, options
        self.results: list[dict[str, float]] = []
        self.best: dict[str, Tensor] = {}
        self.best_at = -1

    def on_step(self, run: Run, loss: Loss) -> None:
        """Validate at the steps between start and end; the end is left to `on_end`, after weights were averaged."""
        clock = run.clock
        if clock.step >= clock.total or clock.step not in evenly(clock.total, self.options.times):
            return
        self._validate(run)
        patience = self.options.patience
        if patience is not None and len(self.results) - 1 - self.best_at >= patience:
            run.stop(f"no better validation result in {patience} evaluations")

    def on_end(self, run: Run) -> None:
        """Validate what the stage ended with; go back to the best weights where patience was asked for."""
        self._validate(run)
        if self.options.patience is not None and self.best_at != len(self.results) - 1:
            run.recipe.model.load_state_dict(self.best)

    def _validate(self, run: Run) -> None:
        result = {"step": float(steps_done(run)), **self.judge.measure(run.recipe.model)}
        self.results.append(result)
        run.judged(result)
        if run.log is not None:
            run.flush()
            seen = {f"valid/{name}": result[name] for name in ("score", "loss")}
            run.log.write([{"stage": run.stage.name, "step": run.clock.step, **seen}])
        if self.best_at < 0 or better(result, self.results[self.best_at]):
            self.best_at = len(self.results) - 1
            if self.options.patience is not None:
                self.best = {name: t.detach().clone() for name, t in run.recipe.model.state_dict().items()}

    def state_dict(self) -> State:
        """Results so far and, with patience, the best weights."""
        return {"results": self.results, "best_at": self.best_at, "best": self.best}

    def load_state_dict(self, state: State) -> None:
        """Take back what `state_dict` gave."""
        self.results, self.best_at, self.best = list(state["results"]), state["best_at"], dict(state["best"])


class Results(Hook):
    """Keeps the validation results of all stages in every checkpoint: a stage's own hooks are saved only while it runs."""

    def __init__(self, watches: Mapping[str, Watch]) -> None:
        self.watches = watches

    def state_dict(self) -> State:
        """The results of each stage so far."""
        return {"results": {name: watch.results for name, watch in self.watches.items()}}

    def load_state_dict(self, state: State) -> None:
        """Take back what `state_dict` gave."""
        for name, results in state["results"].items():
            self.watches[name].results = list(results)


def measured(judges: Mapping[str, Judge], model: nn.Module) -> tuple[dict[str, dict[str, float]], dict[str, Tensor]]:
    """What each judge says of a model, by the judge's name; and the outputs (N, C) on the rows of those who judge outputs."""
    found: dict[str, dict[str, float]] = {}
    outputs: dict[str, Tensor] = {}
    for name, judge in judges.items():
        if isinstance(judge, Valid):
            outputs[name] = judge.outputs(model)
            found[name] = judge.judge(outputs[name])
        else:
            found[name] = judge.measure(model)
    return found, outputs
