"""The two kinds of task that the peers train on, text and images: examples, a network with a head, accuracy on the test rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from common import IMAGE_SETS, MOBILENET, length_buckets, minilm, padded, read_images, read_texts
from torch import Tensor, nn

EVALUATED = 128  # examples of an evaluation batch


def autocast(precision: str) -> AbstractContextManager[Any]:
    """bf16 autocast on the processor, or nothing for fp32."""
    return torch.autocast("cpu", dtype=torch.bfloat16) if precision == "bf16" else nullcontext()


class MeanPooled(nn.Module):
    """MiniLM, its last hidden states averaged over the real tokens, and a linear head: logits (B, C)."""

    def __init__(self, num_classes: int, *, attention: str = "sdpa") -> None:
        super().__init__()
        from transformers import AutoModel

        self.body = AutoModel.from_pretrained(minilm(), attn_implementation=attention, add_pooling_layer=False)
        torch.manual_seed(0)
        self.head = nn.Linear(self.body.config.hidden_size, num_classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits (B, C) of token ids (B, L)."""
        states = self.body(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask[..., None].to(states.dtype)
        return self.head((states * mask).sum(1) / mask.sum(1))


class Convolutional(nn.Module):
    """The MobileNetV1-0.25 of the data folder with a new classifier: logits (B, C)."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.body = mobilenet(num_classes)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Logits (B, C) of pixels (B, 3, H, W)."""
        return self.body(pixel_values=pixel_values).logits


def mobilenet(num_classes: int) -> nn.Module:
    """As transformers loads it for `num_classes`."""
    from transformers import AutoModelForImageClassification

    torch.manual_seed(0)
    return AutoModelForImageClassification.from_pretrained(
        MOBILENET, num_labels=num_classes, ignore_mismatched_sizes=True
    )


@dataclass
class Texts:
    """Token ids of train and test, and how batches are made of them."""

    ids: dict[str, list[list[int]]]
    labels: dict[str, Tensor]
    classes: int | None = None  # default: those of the training rows

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.classes if self.classes is not None else int(self.labels["train"].max()) + 1

    def lengths(self, split: str) -> np.ndarray:
        """Tokens of each text, (N,)."""
        return np.array([len(each) for each in self.ids[split]])

    def network(self) -> nn.Module:
        """A fresh network for these classes."""
        return MeanPooled(self.num_classes)

    def inputs(self, split: str, rows: np.ndarray, *, train: bool = False) -> dict[str, Tensor]:
        """What the network is given for some rows; images are shifted where they train."""
        return padded(self.ids[split], rows)

    def epoch(self, batch: int, seed: int) -> Iterator[np.ndarray]:
        """The rows of each training batch of an epoch."""
        return length_buckets(self.lengths("train"), batch, seed=seed)

    def in_order(self, split: str) -> Iterator[np.ndarray]:
        """Batches of all rows, the longest first."""
        order = np.argsort(-self.lengths(split), kind="stable")
        return (order[at : at + EVALUATED] for at in range(0, len(order), EVALUATED))


@dataclass
class Images:
    """Pixels (N, 3, 96, 96) of train and test, prepared once."""

    pixels: dict[str, Tensor]
    labels: dict[str, Tensor]

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return int(self.labels["train"].max()) + 1

    def network(self) -> nn.Module:
        """A fresh network for these classes."""
        return Convolutional(self.num_classes)

    def inputs(self, split: str, rows: np.ndarray, *, train: bool = False) -> dict[str, Tensor]:
        """What the network is given for some rows; images are shifted where they train."""
        pixels = self.pixels[split][torch.from_numpy(rows)]
        return {"pixel_values": shifted(pixels) if train else pixels}

    def epoch(self, batch: int, seed: int) -> Iterator[np.ndarray]:
        """The rows of each training batch of an epoch."""
        order = np.random.default_rng(seed).permutation(len(self.labels["train"]))
        whole = max(batch, len(order) // batch * batch)  # a batch of few images would disturb the batch statistics
        return (order[at : at + batch] for at in range(0, min(whole, len(order)), batch))

    def in_order(self, split: str) -> Iterator[np.ndarray]:
        """Batches of all rows."""
        rows = np.arange(len(self.labels[split]))
        return (rows[at : at + EVALUATED] for at in range(0, len(rows), EVALUATED))


def shifted(pixels: Tensor, most: int = 8) -> Tensor:
    """Each batch moved by up to `most` pixels in both directions, the border repeated: the usual light augmentation."""
    down, right = torch.randint(0, 2 * most + 1, (2,)).tolist()
    wide = nn.functional.pad(pixels, (most, most, most, most), mode="replicate")
    return wide[..., down : down + pixels.shape[-2], right : right + pixels.shape[-1]]


def task(name: str, rows: int | None = None) -> Texts | Images:
    """The examples of a set, at most `rows` of train."""
    if name in IMAGE_SETS:
        return _images(name, rows)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(minilm())
    read = {"train": read_texts(name, "train", rows), "test": read_texts(name, "test", rows)}
    ids = {split: tokenizer(texts, truncation=True, max_length=256)["input_ids"] for split, (texts, _) in read.items()}
    return Texts(ids, {split: torch.from_numpy(labels) for split, (_, labels) in read.items()})


def _images(name: str, rows: int | None) -> Images:
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(MOBILENET, backend="pil")
    pixels, labels = {}, {}
    for split in ("train", "test"):
        pictures, numbers = read_images(name, split, rows)
        pixels[split] = processor(pictures, return_tensors="pt")["pixel_values"]
        labels[split] = torch.from_numpy(numbers)
    return Images(pixels, labels)


@torch.inference_mode()
def accuracy(data: Texts | Images, forward: Callable[[dict[str, Tensor]], Tensor], *, precision: str) -> float:
    """Share of test rows that `forward`, from inputs to logits (B, C), gets right."""
    right = 0
    for rows in data.in_order("test"):
        with autocast(precision):
            logits = forward(data.inputs("test", rows))
        right += int((logits.argmax(1) == data.labels["test"][torch.from_numpy(rows)]).sum())
    return right / len(data.labels["test"])
