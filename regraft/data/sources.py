"""Sources of batches over encoded examples: every batch is a function of (seed, step), so resuming needs no state."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn

from regraft.core.protocols import Source, State
from regraft.core.values import Batch, size
from regraft.data.augment import Augment, uniforms
from regraft.data.encoded import Encoded
from regraft.data.episodes import Episodes as Episodes
from regraft.data.loading import BatchOrder
from regraft.errors import ConfigError


class Changeable(Encoded, Protocol):
    """Encoded images, which can be augmented before they are normalised."""

    def collate_changed(self, rows: np.ndarray, change: Callable[[Tensor], Tensor], /) -> dict[str, Tensor]:
        """As `collate`, with `change` applied to the raw pixels."""
        ...


@dataclass(frozen=True)
class Views:
    """How examples are augmented.

    With `fixed` = k an example has k looks, drawn in turn from epoch to epoch, of which the first is the example as it is: it
    can be precomputed. Without, it looks new in every epoch.
    """

    augment: Augment
    fixed: int | None = None


def prefixed(role: str, key: str) -> str:
    """The key of a role: `target` and `x` -> `target_x`; the empty role changes nothing."""
    return f"{role.removesuffix('_')}_{key}" if role else key


def look(encoded: Changeable, rows: np.ndarray, augment: Augment, *, seed: int, view: int) -> dict[str, Tensor]:
    """The images `rows` (M,) as they look in one augmented view: a function of (seed, view, image)."""
    draws = uniforms(seed, rows + view * len(encoded))
    return encoded.collate_changed(rows, lambda pixels: augment.apply(pixels, draws))


@dataclass(frozen=True)
class Viewed:
    """N images in k fixed views as N * k examples: view v of image i is example `i * k + v`; view 0 is the image itself."""

    base: Changeable
    views: Views
    seed: int

    @property
    def inputs(self) -> tuple[str, ...]:
        """Those of the images."""
        return self.base.inputs

    @property
    def lengths(self) -> np.ndarray:
        """Those of the images."""
        return np.repeat(self.base.lengths, self.views.fixed or 1)

    def __len__(self) -> int:
        return len(self.base) * (self.views.fixed or 1)

    def collate(self, rows: np.ndarray, /) -> dict[str, Tensor]:
        """The examples `rows` (M,)."""
        images, views = np.divmod(rows, self.views.fixed or 1)
        out: dict[str, Tensor] = {}
        for view in np.unique(views).tolist():
            at = np.flatnonzero(views == view)
            part = images[at]
            one = (
                look(self.base, part, self.views.augment, seed=self.seed, view=view)
                if view
                else self.base.collate(part)
            )
            for key, value in one.items():
                out.setdefault(key, value.new_empty((len(rows), *value.shape[1:])))[torch.from_numpy(at)] = value
        return out


def _looks(encoded: Encoded, views: Views | None, seed: int) -> Encoded | None:
    """All examples as they can look; None where each of them looks new each time."""
    if views is None:
        return encoded
    return None if views.fixed is None else Viewed(cast(Changeable, encoded), views, seed)


class Examples(Source):
    """Epochs over encoded examples: {"id", "y", **inputs}. `id` is the row in the encoded split (times views, plus view)."""

    def __init__(
        self,
        encoded: Encoded,
        targets: np.ndarray | Tensor | None,
        *,
        batch_size: int,
        seed: int,
        shuffle: bool = True,
        bucket: bool = True,
        longest_first: bool = False,
        augment: Augment | Views | None = None,
        prefix: str = "",
        rows: np.ndarray | None = None,
    ) -> None:
        """Examples of one split.

        Args:
            encoded: the N examples.
            targets: (N,) or (N, C); None yields no `y`.
            batch_size: examples per batch; the last of an epoch may be short.
            seed: of order and augmentation.
            shuffle: draw in random order, each example once per epoch.
            bucket: batch examples of like length together; needs `shuffle`, and changes nothing where all have one length.
            longest_first: the largest batch of the first epoch is its first, see `loading.bucketed_batches`.
            augment: of images, before they are normalised.
            prefix: role put before every key, such as `target` for `target_x`.
            rows: (M,) the rows to draw from; default all.

        Raises:
            ConfigError: no examples, as many targets as examples not given, or augmentation of what is no image.
        """
        if targets is not None and len(targets) != len(encoded):
            raise ConfigError(f"every example needs a target: got {len(encoded)} examples and {len(targets)} targets")
        if augment is not None and not hasattr(encoded, "collate_changed"):
            raise ConfigError(f"only images can be augmented, got {type(encoded).__name__}")
        self.encoded, self.seed, self.prefix = encoded, seed, prefix
        self.targets = torch.from_numpy(targets.copy()) if isinstance(targets, np.ndarray) else targets
        self.views = Views(augment) if isinstance(augment, Augment) else augment
        self.rows = np.arange(len(encoded), dtype=np.int64) if rows is None else np.asarray(rows, dtype=np.int64)
        self.looks = _looks(encoded, self.views, seed)
        if len(self.rows) == 0:
            raise ConfigError("a source needs at least one example, got none")
        lengths = encoded.lengths[self.rows] if shuffle and bucket else None
        ragged = lengths is not None and len(lengths) > 0 and bool((lengths != lengths[0]).any())
        self.order = BatchOrder(
            len(self.rows),
            batch_size,
            seed,
            shuffle=shuffle,
            lengths=lengths if ragged else None,
            longest_first=longest_first,
        )

    @property
    def examples(self) -> Mapping[str, Encoded]:
        """The encoded examples, each of them in all its fixed views; none where augmentation makes them look new each time."""
        return {} if self.looks is None else {prefixed(self.prefix, "id"): self.looks}

    @property
    def inputs(self) -> Mapping[str, str]:
        """Keys of the encoded examples, each identified by `id`."""
        return {prefixed(self.prefix, key): prefixed(self.prefix, "id") for key in self.encoded.inputs}

    @property
    def batches_per_epoch(self) -> int:
        """Steps until every example was drawn once."""
        return len(self.order)

    def batch_at(self, step: int) -> Batch:
        """The batch of one step."""
        rows = self.rows[self.order.batch_at(step)]
        batch = {"id": torch.from_numpy(rows)}
        if self.targets is not None:
            batch["y"] = self.targets[batch["id"]]
        if self.views is None:
            batch |= self.encoded.collate(rows)
        else:
            batch |= self._augmented(rows, self.order.epoch(step), self.views)
        return {prefixed(self.prefix, key): value for key, value in batch.items()}

    def _augmented(self, rows: np.ndarray, epoch: int, views: Views) -> Batch:
        """Ids and inputs of the look that an epoch shows."""
        encoded = cast(Changeable, self.encoded)
        if views.fixed is None:
            return look(encoded, rows, views.augment, seed=self.seed, view=epoch)
        view = epoch % views.fixed
        ids = {"id": torch.from_numpy(rows * views.fixed + view)}
        return ids | (look(encoded, rows, views.augment, seed=self.seed, view=view) if view else encoded.collate(rows))

    def batches(self, model: nn.Module, start: int = 0, /) -> Iterator[Batch]:
        """Endless batches from a step on."""
        return (self.batch_at(step) for step in count(start))


@dataclass(frozen=True)
class Columns:
    """N rows of tensors in memory as encoded examples."""

    columns: Mapping[str, Tensor]  # (N, ...) each

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of the columns."""
        return tuple(self.columns)

    @property
    def lengths(self) -> np.ndarray:
        """(N,) ones: all rows have one shape."""
        return np.ones(len(self), dtype=np.int64)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def arrays(self) -> dict[str, np.ndarray]:
        """What the rows are made of."""
        return {name: column.numpy() for name, column in self.columns.items()}

    def collate(self, rows: np.ndarray, /) -> dict[str, Tensor]:
        """The rows `rows` (M,)."""
        index = torch.from_numpy(rows)
        return {name: column[index] for name, column in self.columns.items()}


class Tensors(Source):
    """Shuffled epochs over tensors in memory; the keys that end in `x` are the inputs, `id` (N,) numbers the examples."""

    def __init__(self, columns: Mapping[str, Tensor], batch_size: int, seed: int = 0) -> None:
        """Columns that share their first dimension."""
        self.columns = dict(columns)
        sizes = {len(column) for column in self.columns.values()}
        if len(sizes) != 1:
            raise ConfigError(f"columns must share their first dimension, got {sorted(sizes)}")
        self.order = BatchOrder(sizes.pop(), batch_size, seed)
        self.rows = Columns({name: self.columns[name] for name in self.inputs})

    @property
    def examples(self) -> Mapping[str, Encoded]:
        """The rows of the inputs."""
        return {"id": self.rows}

    @property
    def inputs(self) -> Mapping[str, str]:
        """The keys that end in `x`."""
        return {name: "id" for name in self.columns if name.endswith("x")}

    def batches(self, model: nn.Module, start: int = 0, /) -> Iterator[Batch]:
        """Endless batches from a step on."""
        for step in count(start):
            ids = torch.from_numpy(self.order.batch_at(step))
            yield {"id": ids} | {name: column[ids] for name, column in self.columns.items()}


class Paired(Source):
    """Two sources side by side, the second one's keys under a role: `target` makes `x` into `target_x`.

    The first decides how many examples a batch has; a longer second batch is cut, a shorter one starts again at its top.
    """

    def __init__(self, first: Source, second: Source, prefix: str) -> None:
        """`second` must yield keys without a prefix of its own."""
        self.first, self.second, self.prefix = first, second, prefix

    @property
    def examples(self) -> Mapping[str, Encoded]:
        """Those of both, the second one's under the role."""
        second = {prefixed(self.prefix, key): value for key, value in self.second.examples.items()}
        return {**self.first.examples, **second}

    @property
    def inputs(self) -> Mapping[str, str]:
        """The inputs of both, the second one's under the role."""
        second = {prefixed(self.prefix, k): prefixed(self.prefix, i) for k, i in self.second.inputs.items()}
        return {**self.first.inputs, **second}

    def batches(self, model: nn.Module, start: int = 0, /) -> Iterator[Batch]:
        """Endless pairs of batches from a step on."""
        for one, two in zip(self.first.batches(model, start), self.second.batches(model, start), strict=False):
            index = torch.arange(size(one)) % size(two)
            same = size(one) == size(two)
            yield one | {prefixed(self.prefix, k): v if same else v[index.to(v.device)] for k, v in two.items()}

    def state_dict(self) -> State:
        """The state of those sources that have one."""
        states = {"first": self.first.state_dict(), "second": self.second.state_dict()}
        return {name: state for name, state in states.items() if state}

    def load_state_dict(self, state: State, /) -> None:
        """Give each source its own back."""
        for name, source in (("first", self.first), ("second", self.second)):
            if name in state:
                source.load_state_dict(state[name])
