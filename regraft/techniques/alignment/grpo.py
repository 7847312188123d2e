"""GRPO: sample a group of actions for each prompt, and make those more likely that earned more than the group's mean."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import count
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from regraft.core import Batch, Clock, Loss, Recipe, Source, Stage, Technique, each_stage, forward
from regraft.core.modes import eval_mode
from regraft.core.protocols import State
from regraft.core.seeding import generator
from regraft.core.values import size
from regraft.errors import ConfigError
from regraft.losses.policy import clipped_surrogate, group_advantages, policy_divergence

Reward = Callable[[Batch, Tensor], Tensor]  # a batch of N prompts, actions (N, G) -> rewards (N, G)


def label_reward(batch: Batch, action: Tensor) -> Tensor:
    """1 where an action (N, G) is the label `y` (N,), else 0, as (N, G) float.

    Raises:
        ConfigError: the batch has no class ids.
    """
    y = batch.get("y")
    if y is None or y.ndim != 1 or y.is_floating_point():
        got = "none" if y is None else f"{y.dtype} of shape {tuple(y.shape)}"
        raise ConfigError(
            f"GRPO.reward: 'label' needs one class id per example as `y`, got {got}; pass a function in Python"
        )
    return (action == y[:, None]).float()


class Rollouts(Source):
    """Batches of prompts with actions (N, G) drawn from the policy as it is when the rollout begins.

    Rollout r is used for steps r epochs to (r + 1) epochs - 1. It depends on an earlier policy, so the live one is the
    source's state: a run resumed in the middle of a rollout goes on with it. It offers no `examples`: the policy is called on
    these very inputs, so nothing may be put in their place.
    """

    def __init__(self, base: Source, spec: GRPO) -> None:
        self.base, self.spec = base, spec
        self.reward: Reward = label_reward if isinstance(spec.reward, str) else spec.reward
        self.index, self.live = -1, Batch()
        self.reference: nn.Module | None = None
        self.saved: State = {}  # a reference that was loaded before the model was known

    @property
    def inputs(self) -> Mapping[str, str]:
        """As the prompts'."""
        return self.base.inputs

    def batches(self, model: nn.Module, start: int = 0, /) -> Iterator[Batch]:
        """The live rollout, again and again, and a fresh one every `epochs` steps."""
        epochs = self.spec.epochs
        self._set_reference(model, start)
        prompts = self.base.batches(model, start // epochs)
        for step in count(start):
            index, used = divmod(step, epochs)
            if step == start or used == 0:
                batch = next(prompts)
                if used == 0 or index != self.index:
                    self.index, self.live = index, self.sample(model, batch, index)
            yield self.live

    @torch.no_grad()
    def sample(self, model: nn.Module, prompts: Batch, index: int) -> Batch:
        """The prompts (N) with `action`, `old_log_p`, `reward` and `advantage`, each (N, G): a function of (seed, index)."""
        with eval_mode(model):
            log_p = forward(model, prompts).float().log_softmax(-1)
        chances = log_p.exp().cpu()  # drawn on the CPU, so that every device draws the same
        action = torch.multinomial(
            chances, self.spec.group_size, replacement=True, generator=generator(self.spec.seed, index)
        ).to(log_p.device)
        reward = self.reward(prompts, action)
        drawn = {
            "action": action,
            "old_log_p": log_p.gather(-1, action),
            "reward": reward,
            "advantage": group_advantages(reward),
        }
        if self.reference is not None:
            drawn["reference_logits"] = forward(self.reference, prompts)
        return prompts | drawn

    def _set_reference(self, model: nn.Module, start: int) -> None:
        """Keep a frozen copy of the policy the stage starts from, or the one a checkpoint held."""
        if self.spec.kl_weight == 0 or (start > 0 and self.reference is not None and not self.saved):
            return
        self.reference = copy.deepcopy(model).eval().requires_grad_(False)
        if self.saved:
            self.reference.load_state_dict(self.saved)
            self.saved = {}

    def state_dict(self) -> State:
        """The live rollout, the reference policy, and the prompts' own state."""
        reference = {} if self.reference is None else self.reference.state_dict()
        return {"index": self.index, "live": self.live, "reference": reference, "prompts": self.base.state_dict()}

    def load_state_dict(self, state: State, /) -> None:
        """Take back what `state_dict` gave."""
        self.index, self.live, self.saved = state["index"], state["live"], state["reference"]
        self.base.load_state_dict(state["prompts"])


class GroupRelative:
    """The clipped surrogate over all actions of the batch, and the divergence from the reference policy."""

    def __init__(self, spec: GRPO) -> None:
        self.spec = spec

    def __call__(self, model: nn.Module, batch: Batch, clock: Clock) -> Loss:
        """Mean over prompts and actions; `reward` in the log is the mean reward of the rollout."""
        logits = forward(model, batch).float()
        log_p = logits.log_softmax(-1).gather(-1, batch["action"])
        value = clipped_surrogate(log_p, batch["old_log_p"], batch["advantage"], self.spec.clip).mean()
        terms = {"reward": batch["reward"].mean()}
        if "reference_logits" in batch:
            divergence = policy_divergence(logits, batch["reference_logits"].float()).mean()
            value = value + self.spec.kl_weight * divergence
            terms["divergence"] = divergence.detach()
        return Loss(value, size(batch), terms)


class GRPO(Technique):
    """Trains a classifier by reward alone: classes are actions drawn from it, better ones than the group's mean gain weight.

    Shao et al., 2024, arXiv:2402.03300, section 4.1 (group-normalised advantages), with the clipped surrogate of Schulman et
    al., 2017, arXiv:1707.06347, eq. 7. Differs in the divergence, which is exact over the classes instead of estimated from
    the drawn ones; the reference is the model as the stage starts. The policy is in eval mode while it is sampled.

    Use it when right and wrong can be checked but not differentiated: a verifier, a cost, a human's verdict.
    Not when the labels themselves are there: cross-entropy learns the same in far fewer steps.

    Attributes:
        group_size: actions drawn for each prompt.
        epochs: steps made on each rollout before the next is drawn.
        clip: how far the ratio of new to old probability is followed away from 1.
        kl_weight: weight of the divergence from the model the stage starts from, in nats.
        reward: "label" gives 1 for the class in `y`; in Python any function of (batch of N, actions (N, G)) that gives (N, G).
        seed: decides the actions, with the rollout's number.

    Example:
        ```yaml
        techniques:
          - GRPO: {group_size: 8, epochs: 2, kl_weight: 0.01}
        ```
    """

    provides: ClassVar[frozenset[str]] = frozenset({"source", "objective"})
    reads: ClassVar[frozenset[str]] = frozenset({""})

    group_size: int = Field(default=8, ge=2)
    epochs: int = Field(default=2, ge=1)
    clip: float = Field(default=0.2, gt=0)
    kl_weight: float = Field(default=0.0, ge=0)
    reward: Literal["label"] | Reward = "label"
    seed: int = 0

    def apply(self, recipe: Recipe) -> Recipe:
        """Every stage draws rollouts over its own examples."""
        return each_stage(recipe, self._rewarded)

    def _rewarded(self, stage: Stage[Any]) -> Stage[Any]:
        return replace(stage, source=Rollouts(stage.source, self), objective=GroupRelative(self))
