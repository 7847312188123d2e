"""Toy stages for the core's tests: blobs, a small network, and helpers to compare weights bit for bit."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from regraft.core import Batch, Recipe, Source, Stage
from regraft.core.seeding import generator
from regraft.data.sources import Columns
from regraft.losses.supervised import cross_entropy
from regraft.optim.build import DescentBuilder
from regraft.optim.optimizers import SGD, Adam, Optimizer


class Tensors(Source):
    """Shuffled epochs over in-memory tensors; every batch carries the example `id`s (N,)."""

    def __init__(self, columns: dict[str, Tensor], batch_size: int = 32, seed: int = 0) -> None:
        self.columns, self.batch_size, self.seed = columns, batch_size, seed
        self.n = len(next(iter(columns.values())))
        self.inputs = {name: "id" for name in columns if name.endswith("x")}
        self.kept = {"id": Columns({name: columns[name] for name in self.inputs})}

    @property
    def examples(self):
        return self.kept

    def batches(self, model: nn.Module, start: int = 0) -> Iterator[Batch]:
        step, per_epoch = start, self.n // self.batch_size
        while True:
            epoch, k = divmod(step, per_epoch)
            order = torch.randperm(self.n, generator=generator(self.seed, epoch))
            ids = order[k * self.batch_size : (k + 1) * self.batch_size]
            yield {"id": ids} | {name: column[ids] for name, column in self.columns.items()}
            step += 1


def blobs(n: int = 256, classes: int = 4, dim: int = 8, shift: float = 0.0, seed: int = 0) -> dict[str, Tensor]:
    """Gaussian blobs around the same centres for every seed: x (n, dim), y (n,)."""
    centres = 1.5 * torch.randn(classes, dim, generator=generator(7))
    g = generator(seed, 1)
    y = torch.randint(classes, (n,), generator=g)
    return {"x": centres[y] + torch.randn(n, dim, generator=g) + shift, "y": y}


def mlp(dim: int = 8, width: int = 32, classes: int = 4, seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(dim, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, classes)
        )


def bert_graft(*, blocks: int, depths: tuple[int, ...]) -> nn.Module:
    """A graft on a tiny BERT with random weights, the same for the same number of blocks."""
    from transformers import BertConfig, BertModel

    from regraft.models.backbone import Backbone
    from regraft.models.graft import Graft

    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=blocks, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = BertModel(config, add_pooling_layer=False).eval()
    keys = ("input_ids", "attention_mask")
    example = {key: torch.ones(2, 5, dtype=torch.long) for key in keys}
    backbone = Backbone(module=module, name="tiny", modality="text", inputs=keys, example=example)
    return Graft(backbone, depths=depths, pools=("mean",), num_outputs=4)


def adam(lr: float = 1e-2, **options) -> DescentBuilder:
    return DescentBuilder(optimizer=Adam(lr=lr), **options)


def sgd(lr: float = 0.1, **options) -> DescentBuilder:
    return DescentBuilder(optimizer=SGD(lr=lr), **options)


def descent(optimizer: Optimizer, **options) -> DescentBuilder:
    return DescentBuilder(optimizer=optimizer, **options)


def stage(model: nn.Module | None = None, steps: int = 60, data: dict[str, Tensor] | None = None, **changes) -> Stage:
    defaults = {
        "name": "toy",
        "source": Tensors(data or blobs()),
        "objective": cross_entropy,
        "update": adam(),
    }
    return Stage(**defaults | {"model": model or mlp(), "steps": steps} | changes)


def recipe(*stages: Stage, **parts) -> Recipe:
    return Recipe(model=stages[0].model, stages=stages, **parts)


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])
