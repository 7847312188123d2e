"""A generative adversarial network: two players with an update each, taking turns."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Protocol, cast, runtime_checkable

import torch
from pydantic import Field
from torch import Tensor, nn

from regraft.core import Batch, Clock, Loss, Recipe, Stage, Technique, Update, each_stage, trainable
from regraft.core.values import size
from regraft.errors import Conflict
from regraft.losses.adversarial import discriminator_loss, generator_loss

NOISE = "noise"


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

    def __init__(self, stage: Stage[Any], rounds: int) -> None:
        self.players, self.key, self.rounds = cast(Players, stage.model), example_key(stage), rounds
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
        for _ in range(self.rounds):
            judged = self.updates["discriminator"](self.discriminator_loss, self.with_noise(batch), clock)
        made = self.updates["generator"](self.generator_loss, self.with_noise(batch), clock)
        return Loss(made.value, made.weight, {"discriminator": judged.value, "generator": made.value})

    def with_noise(self, batch: Batch) -> Batch:
        """The real examples under one key, and as many rows of standard normal noise."""
        real = batch[self.key]
        return {"real": real, NOISE: torch.randn(len(real), self.players.latent).to(real.device)}

    def discriminator_loss(self, batch: Batch) -> Loss:
        """How badly the discriminator tells real from generated examples."""
        with torch.no_grad():
            fake = self.players.generator(batch[NOISE])
        real = like_generated(batch["real"], fake)
        judge = self.players.discriminator
        return Loss(discriminator_loss(judge(real).float(), judge(fake).float()), size(batch))

    def generator_loss(self, batch: Batch) -> Loss:
        """How badly generated examples pass for real ones."""
        fake = self.players.generator(batch[NOISE])
        return Loss(generator_loss(self.players.discriminator(fake).float()), size(batch))


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

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds

    def __call__(self, stage: Stage[Any]) -> Adversarial:
        """The step of a stage."""
        return Adversarial(stage, self.rounds)


class GAN(Technique):
    """Trains a generator to make examples that a discriminator cannot tell from the data, each with an update of its own.

    Goodfellow et al., 2014, arXiv:1406.2661, algorithm 1, with the non-saturating generator loss of section 3. Labels are not
    used. Examples are compared in the units in which the source yields them: images normalised, table columns standardised.

    Use it when new examples that look like the data are wanted, of small images or tables.
    Not when the likelihood or full coverage of the data matters: a generator may leave out kinds of examples.

    Attributes:
        rounds: updates of the discriminator for each update of the generator.

    Example:
        ```yaml
        models:
          main: {network: {GenerativePair: {latent: 16}}}
        techniques:
          - GAN: {rounds: 1}
        ```
    """

    rounds: int = Field(default=1, ge=1)

    provides: ClassVar[frozenset[str]] = frozenset({"step"})
    ignores: ClassVar[frozenset[str]] = frozenset({"objective"})
    reads: ClassVar[frozenset[str]] = frozenset({""})

    def apply(self, recipe: Recipe) -> Recipe:
        """Give every stage the two-player step."""
        return each_stage(recipe, self._played)

    def _played(self, stage: Stage[Any]) -> Stage[Any]:
        if not isinstance(stage.model, Players):
            raise Conflict(
                f"GAN needs a model with `.generator`, `.discriminator` and `.latent`, such as the network GenerativePair, "
                f"but stage {stage.name!r} trains a {type(stage.model).__name__}"
            )
        example_key(stage)
        return replace(stage, step=TwoPlayers(self.rounds))
