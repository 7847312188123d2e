"""A generative adversarial network: two players with an update each, taking turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, Protocol, cast, runtime_checkable

import torch
from pydantic import Field
from torch import Tensor, nn

from regraft.core import Batch, Clock, Loss, Recipe, Stage, Technique, Update, each_stage, trainable
from regraft.core.values import size
from regraft.errors import ConfigError, Conflict
from regraft.losses.adversarial import (
    critic_generator_loss,
    critic_loss,
    discriminator_loss,
    generator_loss,
    gradient_penalty,
)

NOISE, MIX = "noise", "mix"


@runtime_checkable
class Players(Protocol):
    """What a model needs for GAN: noise (N, latent) -> generator -> examples (N, ...) -> discriminator -> logits (N, 1)."""

    generator: nn.Module
    discriminator: nn.Module
    latent: int


class Adversarial:
    """`rounds` updates of the discriminator, then one of the generator.

    Each update owns its player's parameters and fills no other gradient, so nothing is toggled. Noise is drawn for the whole
    batch before it is cut into slices, so accumulation is exact.
    """

    def __init__(self, stage: Stage[Any], spec: GAN) -> None:
        self.players, self.key, self.spec = cast(Players, stage.model), example_key(stage), spec
        named = {"discriminator": self.players.discriminator, "generator": self.players.generator}
        params = {
            player: {f"model.{player}.{name}": p for name, p in trainable(module).items()}
            for player, module in named.items()
        }
        for player, owned in params.items():
            if not owned:
                raise Conflict(
                    f"GAN: the whole {player} is frozen in stage {stage.name!r}, so only the other player would learn; drop "
                    "the technique that froze it"
                )
        self.updates: dict[str, Update] = {player: stage.update(owned) for player, owned in params.items()}

    def __call__(self, batch: Batch, clock: Clock) -> Loss:
        """The generator's loss; `discriminator` and `generator` in the log are both players' losses in nats."""
        for _ in range(self.spec.rounds):
            judged = self.updates["discriminator"](self.discriminator_loss, self.with_noise(batch), clock)
            if self.spec.clip is not None:
                clip_weights(self.updates["discriminator"].params, self.spec.clip)
        made = self.updates["generator"](self.generator_loss, self.with_noise(batch), clock)
        return Loss(made.value, made.weight, {"discriminator": judged.value, "generator": made.value})

    def with_noise(self, batch: Batch) -> Batch:
        """The real examples under one key, as many rows of standard normal noise, and what a gradient penalty is mixed by."""
        real = batch[self.key]
        drawn = {"real": real, NOISE: torch.randn(len(real), self.players.latent).to(real.device)}
        return drawn | {MIX: torch.rand(len(real)).to(real.device)} if self.spec.penalty else drawn

    def discriminator_loss(self, batch: Batch) -> Loss:
        """How badly the discriminator tells real from generated examples."""
        with torch.no_grad():
            fake = self.players.generator(batch[NOISE])
        real = like_generated(batch["real"], fake)
        judge = self.players.discriminator
        compare = critic_loss if self.spec.loss == "wasserstein" else discriminator_loss
        value = compare(judge(real).float(), judge(fake).float())
        if self.spec.penalty:
            value = value + self.spec.penalty * gradient_penalty(lambda x: judge(x).float(), real, fake, batch[MIX])
        return Loss(value, size(batch))

    def generator_loss(self, batch: Batch) -> Loss:
        """How badly generated examples pass for real ones."""
        fake = self.players.generator(batch[NOISE])
        judged = self.players.discriminator(fake).float()
        loss = critic_generator_loss(judged) if self.spec.loss == "wasserstein" else generator_loss(judged)
        return Loss(loss, size(batch))


@torch.no_grad()
def clip_weights(params: Sequence[Tensor], limit: float) -> None:
    """Put every weight into [-limit, limit]: a critic whose slope is bounded. Arjovsky et al., 2017, algorithm 1, line 7."""
    for parameter in params:
        parameter.clamp_(-limit, limit)


def like_generated(real: Tensor, fake: Tensor) -> Tensor:
    """Real examples in the shape the generator gives, such as images (N, C, H, W) as rows (N, C H W).

    Raises:
        Conflict: they do not have as many values.
    """
    if real[0].numel() != fake[0].numel():
        raise Conflict(
            f"GAN: the generator gives {fake[0].numel():,} values per example, but the data has {real[0].numel():,} "
            f"{tuple(real.shape[1:])}; set the network's output size to that"
        )
    return real.reshape(len(real), *fake.shape[1:]).to(fake.dtype)


def example_key(stage: Stage[Any]) -> str:
    """The batch key that holds the examples: the source's only input, or `x`.

    Raises:
        Conflict: the source yields several inputs, or token ids.
    """
    keys = [key for key in stage.source.inputs if key in ("x", "pixel_values")]
    if len(keys) != 1:
        raise Conflict(
            f"GAN generates images (`pixel_values`) or table rows (`x`), but the source of stage {stage.name!r} yields "
            f"{sorted(stage.source.inputs)}"
        )
    return keys[0]


class TwoPlayers:
    """Builds an `Adversarial` step."""

    def __init__(self, spec: GAN) -> None:
        self.spec = spec

    def __call__(self, stage: Stage[Any]) -> Adversarial:
        """The step of a stage."""
        return Adversarial(stage, self.spec)


class GAN(Technique):
    """Trains a generator to make examples that a discriminator cannot tell from the data, each with an update of its own.

    Goodfellow et al., 2014, arXiv:1406.2661, algorithm 1, with the non-saturating generator loss of section 3. Labels are not
    used. Examples are compared in the units in which the source yields them: images normalised, table columns standardised.
    `loss: wasserstein` trains a critic of the distance between data and generated examples instead, Arjovsky et al., 2017,
    arXiv:1701.07875, whose slope is held by `clip`, or better by `penalty`, Gulrajani et al., 2017, arXiv:1704.00028. Its loss
    says how far training is, which that of a GAN does not.

    Use it when new examples that look like the data are wanted, of small images or tables.
    Not when the likelihood or full coverage of the data matters: a generator may leave out kinds of examples.

    Attributes:
        rounds: updates of the discriminator for each update of the generator; 5 is usual with `wasserstein`.
        loss: "standard", cross-entropy between real and generated; or "wasserstein", which needs `clip` or `penalty`.
        clip: weights of the critic are kept within this of 0, such as 0.01, usually with RMSprop; null leaves them.
        penalty: weight of the penalty that draws the critic's slope towards 1, such as 10, usually with Adam; 0 is none.

    Example:
        ```yaml
        models:
          main: {network: {GenerativePair: {latent: 16}}}
        techniques:
          - GAN: {rounds: 1}
        ```
    """

    rounds: int = Field(default=1, ge=1)
    loss: Literal["standard", "wasserstein"] = Field(default="standard")
    clip: float | None = Field(default=None, gt=0)
    penalty: float = Field(default=0.0, ge=0)

    provides: ClassVar[frozenset[str]] = frozenset({"step"})
    ignores: ClassVar[frozenset[str]] = frozenset({"objective"})
    reads: ClassVar[frozenset[str]] = frozenset({""})

    def apply(self, recipe: Recipe) -> Recipe:
        """Give every stage the two-player step.

        Raises:
            ConfigError: a Wasserstein critic whose slope nothing bounds.
        """
        if self.loss == "wasserstein" and self.clip is None and not self.penalty:
            raise ConfigError(
                "GAN.loss: a Wasserstein critic needs a bound on its slope, else its loss falls for ever; give `clip: 0.01` or "
                "`penalty: 10`"
            )
        return each_stage(recipe, self._played)

    def _played(self, stage: Stage[Any]) -> Stage[Any]:
        if not isinstance(stage.model, Players):
            raise Conflict(
                f"GAN needs a model with `.generator`, `.discriminator` and `.latent`, such as the network GenerativePair, "
                f"but stage {stage.name!r} trains a {type(stage.model).__name__}"
            )
        example_key(stage)
        return replace(stage, step=TwoPlayers(self))
