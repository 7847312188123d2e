"""TextEdit and SynonymReplacement: words and sentences of training texts changed at random, before they are tokenised."""

from __future__ import annotations

from functools import cached_property
from random import Random
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from regraft.config.spec import Spec
from regraft.core import Recipe, Stage, Technique
from regraft.data.retold import Encode, Retellable, read_lists, retold
from regraft.data.text import TextColumns
from regraft.data.words import FUNCTION_WORDS, edited, flat, sentences, with_synonyms
from regraft.errors import Conflict


class Rates(Spec):
    """How much of a text is edited, as shares of its words or sentences."""

    insert: float = Field(default=0.0, ge=0, le=1)
    delete: float = Field(default=0.0, ge=0, lt=1)
    swap: float = Field(default=0.0, ge=0, le=1)
    replace: float = Field(default=0.0, ge=0, le=1)

    def shares(self) -> dict[str, float]:
        """The four rates by name."""
        return {"insert": self.insert, "delete": self.delete, "swap": self.swap, "replace": self.replace}


class TextEdit(Technique):
    """Inserts, deletes, swaps and replaces words of training texts at random, and sentences too; labels stay.

    Easy data augmentation, Wei and Zou, 2019, arXiv:1901.11196, section 2, whose rate for all operations is 0.05 to 0.1. Words
    that come in are drawn from the other texts of the batch (the paper inserts synonyms; `SynonymReplacement` does that). An
    edit is a function of (seed, step, example), texts are tokenised as they are drawn, and at least one word stays.

    Use it when there are a few hundred short texts and the label is in the words more than in their order.
    Not when one word decides (a dropped "not"), when order does, or with thousands of texts, on which it gains nothing.
    What is edited looks new each time, so `CachePrefix` is refused beside it.

    Attributes:
        insert: words that come in, as a share of those that are there.
        delete: probability of each word to go.
        swap: pairs of words that change places, as a share of the words.
        replace: share of the words that another takes the place of.
        sentences: the same four rates for sentences, which are edited first.
        seed: decides the draws, with step and example.

    Example:
        ```yaml
        techniques:
          - TextEdit: {delete: 0.1, swap: 0.1, sentences: {swap: 0.1}}
        ```
    """

    insert: float = Field(default=0.0, ge=0, le=1)
    delete: float = Field(default=0.1, ge=0, lt=1)
    swap: float = Field(default=0.1, ge=0, le=1)
    replace: float = Field(default=0.0, ge=0, le=1)
    sentences: Rates = Field(default_factory=Rates)
    seed: int = 0

    wraps: ClassVar[frozenset[str]] = frozenset({"source"})
    reads: ClassVar[frozenset[str]] = frozenset({""})
    place: ClassVar[Literal["inner", "middle", "outer"]] = "inner"  # a teacher reads what it gives

    @property
    def words(self) -> Rates:
        """The rates for words."""
        return Rates(insert=self.insert, delete=self.delete, swap=self.swap, replace=self.replace)

    def apply(self, recipe: Recipe) -> Recipe:
        """Edit the texts of every stage."""
        if not any([*self.words.shares().values(), *self.sentences.shares().values()]):
            return recipe
        return retold(recipe, lambda stage, texts: self, name="TextEdit")

    def retell(self, columns: TextColumns, seeds: list[int], encode: Encode) -> TextColumns:
        """The texts edited."""
        texts = flat(columns)
        pool = [word for text in texts for word in text.split()]
        whole = [sentence for text in texts for sentence in sentences(text)]
        return {
            name: [
                self._edited(text, pool, whole, Random(f"{seed} {name}"))
                for text, seed in zip(column, seeds, strict=True)
            ]
            for name, column in columns.items()
        }

    def _edited(self, text: str, words: list[str], whole: list[str], random: Random) -> str:
        if any(self.sentences.shares().values()):
            text = " ".join(edited(sentences(text), whole, random, **self.sentences.shares()))
        if any(self.words.shares().values()):
            text = " ".join(edited(text.split(), words, random, **self.words.shares()))
        return text


# ---- synonyms


class SynonymReplacement(Technique):
    """Replaces a share of the words of training texts by synonyms; labels stay.

    Synonyms come from a table of yours, or are the nearest words in the model's own token embedding before it trains (words of
    one token each; nearest by cosine, and alike in a way that antonyms may be, too). Words of `protect`, numbers, and English
    words that carry the grammar or a negation stay. Draws are a function of (seed, step, example). Wei and Zou, 2019,
    arXiv:1901.11196, section 2, with synonyms of WordNet.

    Use it when texts are few and say the same thing in other words at test time.
    Not when one word is the label, as with names of products, unless it is among `protect`.
    What is changed looks new each time, so `CachePrefix` is refused beside it.

    Attributes:
        share: of a text's words, as far as they have synonyms.
        table: word -> synonyms, as a JSON file or written out; default the model's own neighbours.
        protect: words that are never replaced.
        neighbours: how many of the nearest words may stand in, where there is no table.
        similarity: least cosine of a neighbour.
        seed: decides the draws, with step and example.

    Example:
        ```yaml
        techniques:
          - SynonymReplacement: {share: 0.15, protect: [refund, card]}
        ```
    """

    share: float = Field(default=0.1, ge=0, le=1)
    table: str | dict[str, tuple[str, ...]] | None = None
    protect: tuple[str, ...] = ()
    neighbours: int = Field(default=5, ge=1)
    similarity: float = Field(default=0.5, ge=0, le=1)
    seed: int = 0

    wraps: ClassVar[frozenset[str]] = frozenset({"source"})
    reads: ClassVar[frozenset[str]] = frozenset({""})
    place: ClassVar[Literal["inner", "middle", "outer"]] = "inner"  # a teacher reads what it gives

    def apply(self, recipe: Recipe) -> Recipe:
        """Replace words in the texts of every stage."""
        return retold(recipe, self._replacing, name="SynonymReplacement") if self.share else recipe

    def _replacing(self, stage: Stage[Any], texts: Retellable) -> Synonyms:
        if self.table is None:
            return Synonyms(self, neighbours_of(stage.model, texts, most=self.neighbours, least=self.similarity))
        table = self.table
        if isinstance(table, str):
            table = read_lists(table, name="SynonymReplacement.table")
        return Synonyms(self, Table(table))


class Synonyms:
    """What SynonymReplacement does to the texts of a batch."""

    name = "SynonymReplacement"

    def __init__(self, spec: SynonymReplacement, known: Table | Neighbours) -> None:
        self.known, self.share, self.seed = known, spec.share, spec.seed
        self.kept = FUNCTION_WORDS | {word.lower() for word in spec.protect}

    def retell(self, columns: TextColumns, seeds: list[int], encode: Encode) -> TextColumns:
        """The texts with synonyms."""
        return {
            name: [
                with_synonyms(
                    text, Random(f"{seed} {name}"), share=self.share, synonyms=self.known.synonyms, kept=self.kept
                )
                for text, seed in zip(column, seeds, strict=True)
            ]
            for name, column in columns.items()
        }


class Table:
    """Synonyms that somebody wrote down."""

    def __init__(self, table: dict[str, tuple[str, ...]]) -> None:
        self.table = {word.lower(): tuple(others) for word, others in table.items()}

    def synonyms(self, word: str) -> tuple[str, ...]:
        """Those of a word in lower case."""
        return self.table.get(word, ())


class Neighbours:
    """The nearest words of an embedding, each a token of its own."""

    def __init__(self, weight: Tensor, tokenizer: Any, *, most: int, least: float) -> None:
        self.weight, self.tokenizer, self.most, self.least = weight, tokenizer, most, least
        self.found: dict[str, tuple[str, ...]] = {}

    @cached_property
    def words(self) -> dict[str, int]:
        """Words of letters that are one token -> the token; where one is spelt in several ways, the first token."""
        found: dict[str, int] = {}
        special = {token for token, _ in _special(self.tokenizer)}
        for token, index in sorted(self.tokenizer.get_vocab().items(), key=lambda item: item[1]):
            word = self.tokenizer.decode([index]).strip()
            if index >= len(self.weight) or token in special or not word.isalpha() or len(word) < 2:
                continue
            if self.tokenizer.encode(word, add_special_tokens=False).ids == [index]:
                found.setdefault(word.lower(), index)
        return found

    @cached_property
    def directions(self) -> tuple[list[str], Tensor]:
        """The words, and their embeddings (W, D) of length one."""
        names = list(self.words)
        return names, F.normalize(self.weight[torch.tensor([self.words[name] for name in names])].float(), dim=1)

    def synonyms(self, word: str) -> tuple[str, ...]:
        """The nearest words to one in lower case, nearest first; none where it is not one token."""
        if word not in self.found:
            self.found[word] = self._nearest(word) if word in self.words else ()
        return self.found[word]

    def _nearest(self, word: str) -> tuple[str, ...]:
        names, directions = self.directions
        likeness = directions @ F.normalize(self.weight[self.words[word]].float(), dim=0)
        values, order = likeness.topk(min(len(names), self.most + 1))
        near = [names[i] for i, value in zip(order.tolist(), values.tolist(), strict=True) if value >= self.least]
        return tuple(name for name in near if name != word)[: self.most]


def _special(tokenizer: Any) -> list[tuple[str, int]]:
    return [(token.content, index) for index, token in tokenizer.get_added_tokens_decoder().items()]


def neighbours_of(model: nn.Module, texts: Retellable, *, most: int, least: float) -> Neighbours:
    """Neighbours in a model's token embedding, as it is now: a copy, so that training does not move the synonyms.

    Raises:
        Conflict: the model has no embedding of the tokenizer's vocabulary.
    """
    tokenizer = getattr(getattr(texts, "origin", None), "tokenizer", None)
    size = 0 if tokenizer is None else tokenizer.get_vocab_size()
    for module in model.modules():
        if isinstance(module, nn.Embedding) and module.num_embeddings >= size > 0:
            return Neighbours(module.weight.detach().cpu().clone(), tokenizer, most=most, least=least)
    raise Conflict(
        f"SynonymReplacement: the {type(model).__name__} has no embedding of words to take neighbours from; give a table of "
        "synonyms, such as `table: synonyms.json`"
    )
