"""BackTranslation: training texts said in other words by translation there and back, where a judge sees the same label."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random
from typing import Any, ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from regraft.config.spec import shown
from regraft.core import Hook, Recipe, Run, Stage, Technique, each_stage, forward
from regraft.core.modes import eval_mode
from regraft.data.retold import Encode, Retellable, read_lists, retold
from regraft.data.text import TextColumns
from regraft.errors import ConfigError, Conflict, suggest

Translate = Callable[[list[str]], Sequence[str]]  # M texts -> M texts, each a function of its text alone
MOST_TOKENS = 256  # of a translation


class BackTranslation(Technique):
    """Replaces training texts, each with probability `share` at each draw, by what comes back from a translation and its return.

    Sennrich et al., 2016, arXiv:1511.06709; Xie et al., 2020, arXiv:1904.12848, section 2.2. Paraphrases come from one of three:
    a file that you made offline; two local Hugging Face folders of sequence-to-sequence models, which translate `there` and
    `back`, greedily and each text by itself; in Python, any function from texts to texts. Each text is translated once in a
    run. With a `judge` a paraphrase is used only where that model gives it the label that it gives the text, and the log says
    how often it did. Draws are a function of (seed, step, example).

    Use it when texts are few and long enough to be said differently, and a translator runs offline.
    Not when names, codes or single words carry the label: translators lose them. Without a judge nobody looks.
    What is changed looks new each time, so `CachePrefix` is refused beside it.

    Attributes:
        share: probability that a text is replaced when it is drawn.
        paraphrases: a JSON file, or written out: text -> one or several others; a text that is not in it stays.
        there: folder of the model that translates into the other language.
        back: folder of the model that translates back.
        translate: in Python only: a function from a list of texts to a list of paraphrases, each of its text alone.
        judge: name of a model under `models:`; default none.
        seed: decides the draws, with step and example.

    Example:
        ```yaml
        models:
          judge: {name: runs/first}
        techniques:
          - BackTranslation: {share: 0.5, paraphrases: paraphrases.json, judge: judge}
        ```
    """

    share: float = Field(default=0.5, ge=0, le=1)
    paraphrases: str | dict[str, str | tuple[str, ...]] | None = None
    there: str | None = None
    back: str | None = None
    translate: Any = None
    judge: str | None = None
    seed: int = 0

    wraps: ClassVar[frozenset[str]] = frozenset({"source", "hooks"})
    reads: ClassVar[frozenset[str]] = frozenset({""})
    place: ClassVar[Literal["inner", "middle", "outer"]] = "inner"  # a teacher reads what it gives

    def apply(self, recipe: Recipe) -> Recipe:
        """Paraphrase the texts of every stage."""
        if self.share == 0:
            return recipe
        paraphrase, judge = self._paraphrase(), self._judge(recipe)
        changes: list[Paraphrased] = []

        def change(stage: Stage[Any], texts: Retellable) -> Paraphrased:
            changes.append(Paraphrased(self, paraphrase, judge))
            return changes[-1]

        out = retold(recipe, change, name="BackTranslation")
        told = dict(zip([stage.name for stage in out.stages], changes, strict=True))
        return each_stage(out, lambda stage: replace(stage, hooks=(*stage.hooks, TellParaphrased(told[stage.name]))))

    def _paraphrase(self) -> Paraphrase:
        given = [name for name in ("paraphrases", "there", "translate") if getattr(self, name) is not None]
        if len(given) != 1 or (self.there is None) != (self.back is None):
            raise ConfigError(
                "BackTranslation: needs one of `paraphrases` (a JSON file), `there` and `back` (two folders) or, in Python, "
                f"`translate`, got {' and '.join(given) or 'none of them'}"
            )
        if self.paraphrases is not None:
            if isinstance(self.paraphrases, str):
                return FromTable(read_lists(self.paraphrases, name="BackTranslation.paraphrases"))
            return FromTable({k: (v,) if isinstance(v, str) else v for k, v in self.paraphrases.items()})
        if self.there is not None and self.back is not None:
            return Kept(Translator(self.there, self.back))
        if not callable(self.translate):
            raise ConfigError(
                f"BackTranslation.translate: must be a function from texts to texts, got {shown(self.translate)}"
            )
        return Kept(cast(Translate, self.translate))

    def _judge(self, recipe: Recipe) -> nn.Module | None:
        if self.judge is None:
            return None
        if self.judge not in recipe.models:
            raise Conflict(
                f"BackTranslation: no model is called {self.judge!r}{suggest(self.judge, recipe.models)}; name the judge under "
                "`models:`"
            )
        return recipe.models[self.judge]


# ---- where paraphrases come from


class FromTable:
    """Paraphrases that somebody made before."""

    def __init__(self, table: dict[str, tuple[str, ...]]) -> None:
        self.table = table

    def __call__(self, texts: list[str]) -> list[tuple[str, ...]]:
        """Those of each text; none where it is not in the table."""
        return [self.table.get(text, ()) for text in texts]


class Kept:
    """Paraphrases by a function, each text once."""

    def __init__(self, translate: Translate) -> None:
        self.translate, self.known = translate, dict[str, str]()

    def __call__(self, texts: list[str]) -> list[tuple[str, ...]]:
        """The one of each text.

        Raises:
            ConfigError: the function gives back other than a text for each text.
        """
        new = [text for text in dict.fromkeys(texts) if text not in self.known]
        made = list(self.translate(new)) if new else []
        if len(made) != len(new) or not all(isinstance(one, str) for one in made):
            raise ConfigError(
                f"BackTranslation.translate: must give a text for each of {len(new)} texts, got {shown(made, 80)}"
            )
        self.known.update(zip(new, made, strict=True))
        return [(self.known[text],) for text in texts]


Paraphrase = Callable[[list[str]], list[tuple[str, ...]]]


class Translator:
    """A translation there and back by two local sequence-to-sequence models, greedily; loaded at first use."""

    def __init__(self, there: str, back: str, *, most_tokens: int = MOST_TOKENS) -> None:
        self.folders, self.most_tokens = (there, back), most_tokens
        self.models: list[tuple[Any, Any]] = []

    def __call__(self, texts: list[str]) -> list[str]:
        """Each text translated and back, by itself: what comes out does not depend on the texts beside it."""
        if not self.models:
            self.models = [loaded(folder) for folder in self.folders]
        return [self._back(text) for text in texts]

    def _back(self, text: str) -> str:
        for tokenizer, model in self.models:
            inputs = tokenizer(text, return_tensors="pt", truncation=True, max_length=self.most_tokens)
            inputs.pop("token_type_ids", None)
            if inputs["input_ids"].shape[1] == 0:  # an empty text, from a tokenizer that adds nothing to it
                return ""
            with torch.no_grad():
                out = model.generate(**inputs, do_sample=False, num_beams=1, max_new_tokens=self.most_tokens)
            text = tokenizer.decode(out[0], skip_special_tokens=True)
        return text


def loaded(folder: str) -> tuple[Any, Any]:
    """Tokenizer and model of a local folder, without code from it.

    Raises:
        ConfigError: there is no such model.
    """
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model = AutoModelForSeq2SeqLM.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, use_safetensors=True
        )
    except (OSError, ValueError, KeyError) as error:
        said = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"BackTranslation: {folder} must be a local folder of a sequence-to-sequence model ({said})"
        ) from None
    return tokenizer, model.eval()


# ---- use


class Paraphrased:
    """What BackTranslation does to the texts of a batch."""

    name = "BackTranslation"

    def __init__(self, spec: BackTranslation, paraphrase: Paraphrase, judge: nn.Module | None) -> None:
        self.share, self.seed = spec.share, spec.seed
        self.paraphrase, self.judge = paraphrase, judge
        self.offered = self.used = 0

    def retell(self, columns: TextColumns, seeds: list[int], encode: Encode) -> TextColumns:
        """The texts, with paraphrases in place of some."""
        draws = [Random(seed) for seed in seeds]
        chosen = [random.random() < self.share for random in draws]
        others = {name: self._drawn(texts, chosen, draws) for name, texts in columns.items()}
        changed = [any(others[name][i] != columns[name][i] for name in columns) for i in range(len(seeds))]
        agreed = changed
        if self.judge is not None and any(changed):
            same = self._labels(self.judge, encode(columns)) == self._labels(self.judge, encode(others))
            agreed = [new and bool(one) for new, one in zip(changed, same.tolist(), strict=True)]
        self.offered, self.used = self.offered + sum(changed), self.used + sum(agreed)
        return {
            name: [other if use else text for text, other, use in zip(texts, others[name], agreed, strict=True)]
            for name, texts in columns.items()
        }

    def _drawn(self, texts: list[str], chosen: list[bool], draws: list[Random]) -> list[str]:
        places = [i for i, wanted in enumerate(chosen) if wanted]
        out = list(texts)
        for place, found in zip(places, self.paraphrase([texts[i] for i in places]), strict=True):
            said = [one for one in found if one.strip()]
            if said:
                out[place] = draws[place].choice(said)
        return out

    def _labels(self, judge: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """The class (N,) that the judge gives each text.

        Raises:
            Conflict: it gives no classes.
        """
        with eval_mode(judge), torch.no_grad():
            logits = forward(judge, batch)
        if logits.ndim != 2 or logits.shape[1] < 2:
            raise Conflict(
                f"BackTranslation.judge: must tell classes apart, and gives {tuple(logits.shape)} for {len(logits)} texts; leave "
                "it out"
            )
        return logits.argmax(1)


class TellParaphrased(Hook):
    """Says once a stage is over how many paraphrases were drawn, and how many the judge let through."""

    def __init__(self, made: Paraphrased) -> None:
        self.made = made

    def on_end(self, run: Run) -> None:
        """One sentence; of a resumed run, about the steps since."""
        made = self.made
        said = f"BackTranslation: {made.offered:,} texts were drawn in other words"
        if made.judge is not None:
            said += f", and the judge gave {made.used:,} of them the label of the original; the others were left as they are"
        run.note(said)
