"""Few-shot tasks drawn from labelled examples: a batch of tasks as a function of (seed, step)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import count

import numpy as np
import torch
from torch import Tensor, nn

from regraft.core.protocols import Source
from regraft.core.seeding import mix
from regraft.core.values import Batch
from regraft.data.encoded import Encoded
from regraft.errors import ConfigError, DataError


class Episodes(Source):
    """Batches of T tasks, each of `ways` classes renumbered 0 to ways - 1 in random order.

    Keys are `support_` and `query_` before `id`, `y` and each input; shapes are (T, ways * shots, ...) and
    (T, ways * queries, ...), class by class. Ragged inputs are padded to the longest of all examples of the batch.
    Vinyals et al., 2016, arXiv:1606.04080, section 4.1.
    """

    def __init__(
        self,
        encoded: Encoded,
        targets: np.ndarray | Tensor,
        *,
        ways: int,
        shots: int,
        queries: int,
        tasks: int,
        seed: int,
    ) -> None:
        """Tasks from the classes that have at least `shots + queries` examples.

        Args:
            encoded: the N examples.
            targets: (N,) class ids; negative where the label is missing.
            ways: classes per task.
            shots: support examples per class.
            queries: query examples per class.
            tasks: T, tasks per batch.
            seed: of the tasks.

        Raises:
            ConfigError: targets are not class ids, or a count is below 1.
            DataError: fewer classes than `ways` have enough examples.
        """
        labels = np.asarray(targets)
        if labels.shape != (len(encoded),) or labels.dtype.kind not in "iu":
            raise ConfigError(f"tasks need one class id per example, got {labels.dtype} of shape {labels.shape}")
        if min(ways, shots, queries, tasks) < 1:
            raise ConfigError(
                f"ways, shots, queries and tasks must be at least 1, got {ways}, {shots}, {queries}, {tasks}"
            )
        need = shots + queries
        members = (np.flatnonzero(labels == label) for label in np.unique(labels[labels >= 0]))
        self.members = [rows for rows in members if len(rows) >= need]
        if len(self.members) < ways:
            raise DataError(
                f"{ways}-way tasks need {ways} classes with at least {need} examples ({shots} shots + {queries} queries), "
                f"got {len(self.members)}; lower ways, shots or queries"
            )
        self.encoded, self.ways, self.shots, self.queries = encoded, ways, shots, queries
        self.tasks, self.seed = tasks, seed

    @property
    def examples(self) -> Mapping[str, Encoded]:
        """The same for both halves: an example looks the same in every task."""
        return {f"{half}_id": self.encoded for half in ("support", "query")}

    @property
    def inputs(self) -> Mapping[str, str]:
        """Inputs of both halves, identified by `support_id` and `query_id` (T, M)."""
        return {f"{half}_{key}": f"{half}_id" for half in ("support", "query") for key in self.encoded.inputs}

    def rows_at(self, step: int) -> np.ndarray:
        """(T, ways, shots + queries) rows of the tasks of one step, all different within a task."""
        random = np.random.default_rng(mix(self.seed, step))
        need = self.shots + self.queries
        return np.stack(
            [
                np.stack(
                    [
                        random.choice(self.members[label], need, replace=False)
                        for label in random.choice(len(self.members), self.ways, replace=False)
                    ]
                )
                for _ in range(self.tasks)
            ]
        )

    def batch_at(self, step: int) -> Batch:
        """The batch of one step."""
        rows = self.rows_at(step)
        inputs = self.encoded.collate(rows.reshape(-1))
        grid = {key: value.unflatten(0, rows.shape) for key, value in inputs.items()}
        grid["id"] = torch.from_numpy(rows)
        grid["y"] = torch.arange(self.ways)[None, :, None].expand(rows.shape)
        halves = {"support": slice(self.shots), "query": slice(self.shots, None)}
        return {
            f"{half}_{key}": value[:, :, part].flatten(1, 2)
            for half, part in halves.items()
            for key, value in grid.items()
        }

    def batches(self, model: nn.Module, start: int = 0, /) -> Iterator[Batch]:
        """Endless batches of tasks from a step on."""
        return (self.batch_at(step) for step in count(start))
