"""The reference pages of techniques, losses, optimizers, schedules and networks, written from the classes and their docstrings.

python docs/build_reference.py            write the pages
python docs/build_reference.py --check    exit 1 and name the pages that differ from what would be written
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from regraft.cli.chart import curve
from regraft.config.catalogue import CATALOGUE, find
from regraft.config.costs import cost_of, cost_sentence
from regraft.config.spec import Named, Spec
from regraft.core.stage import SLOTS
from regraft.core.technique import Technique
from regraft.core.values import Clock
from regraft.optim.schedules import Schedule

DOCS = Path(__file__).resolve().parent
GENERATED = "<!-- Written by docs/build_reference.py from the docstrings; edit those. -->\n"
FOLDERS = [
    "transfer",
    "peft",
    "augment",
    "regularise",
    "control",
    "distil",
    "domain",
    "meta",
    "continual",
    "generative",
    "alignment",
]
BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
FAMILIES = {
    "optimizer": (
        "Optimizers",
        "How a gradient becomes a change of the weights. A recipe names one under `train:`; weight decay leaves biases and "
        "the gains and shifts of normalisation layers alone.",
        "train: {{optimizer: {{{name}: {{lr: 0.001}}}}}}",
    ),
    "schedule": (
        "Schedules",
        "The factor on the learning rate over a stage. In the `warmup`, a share of the stage or a number of steps, it rises "
        "from 0 in a straight line, or is held at `warmup_factor`; `floor` is the factor at the end. "
        "`regraft schedule NAME`, or `regraft schedule RECIPE`, draws one.",
        "train: {{schedule: {{{name}: {{warmup: 0.1}}}}}}",
    ),
    "loss": (
        "Losses",
        "What outputs and targets are compared by. Without one a recipe is trained with cross-entropy for classes, binary "
        "cross-entropy for labels and squared error for numbers. A loss that says nothing about a task is refused, with the "
        "names of those that do.",
        "train: {{loss: {name}}}",
    ),
    "method": (
        "Methods",
        "How `regraft search` finds the next trial; see [search](commands/search.md). A recipe names one under `search:`.",
        "search: {{method: {name}, space: {{train.optimizer.AdamW.lr: {{log: [0.0001, 0.01]}}}}}}",
    ),
    "network": (
        "Networks",
        "Plain networks that are trained from scratch, for tables and for data that no pretrained model fits. A recipe "
        "names one under `models:`.",
        "models: {{main: {{network: {name}}}}}",
    ),
}

PRETRAINED = """## Pretrained models

A pretrained model is named instead: a hub id, a folder, or `minilm`. Encoders of text and images are read block by block, and
so are decoders of text (Llama, GPT-2, Qwen, ...), without their language-model head: tokens are padded on the right and pooled
by `mean`, `max` or `last`, the last real token, which is the only one that has seen the whole text; an encoder has `first`
instead. Encoder-decoders are refused.

```yaml
models: {main: {name: minilm, depths: [4, 6], pools: [mean, max]}}
```

### Packing

```yaml
models: {main: {name: minilm, packing: true}}
```

With `packing: true` the texts of a batch share rows, so that 96 % of what is computed and more is real tokens however the
lengths are mixed. Positions restart with each text and none sees another: decoders that find texts in a row by their positions
make their own mask, sliding windows included; other models are given a block-diagonal one. Before it is used, packed and
unpacked numbers are compared on texts of several lengths and must agree to 1e-5 of the largest; a model that takes no positions
(RoFormer, Bloom), a mask of its own kind (DeBERTa) or windows beside a given mask (ModernBERT) is refused with the reason. The
length of the rows is what leaves the least padding; a batch in which less than a twentieth would be saved is run as it is, as
batches of like length are. Dropout draws other masks than without packing. A saved model is run unpacked, with the same numbers
to 1e-5.
"""


@dataclass(frozen=True)
class Docstring:
    """The parts of a class's docstring. `fields` holds the text of each attribute, `example` a YAML block or ""."""

    first: str
    body: str
    use: str
    avoid: str
    fields: dict[str, str]
    example: str


def parse_docstring(text: str) -> Docstring:
    """A Google-style docstring in parts; "Use it when ..." and "Not ..." are told apart."""
    prose, *sections = re.split(r"^(Attributes|Example):\n", text, flags=re.MULTILINE)
    found = dict(zip(sections[::2], sections[1::2], strict=True))
    first, _, rest = prose.strip().partition("\n\n")
    body, _, advice = rest.partition("Use it when")
    use, avoid = [*re.split(r"\sNot\s", advice, maxsplit=1), ""][:2]
    example = re.search(r"```yaml\n(.*?)\n *```", found.get("Example", ""), re.DOTALL)
    return Docstring(
        first=" ".join(first.split()),
        body=body.strip(),
        use=" ".join(use.split()),
        avoid=" ".join(avoid.split()),
        fields=parse_fields(textwrap.dedent(found.get("Attributes", ""))),
        example=textwrap.dedent(example[1]) if example else "",
    )


def parse_fields(text: str) -> dict[str, str]:
    """`name: what it is`, with continuation lines indented, as a dict."""
    entries = re.findall(r"^(\w+): (.*(?:\n +.*)*)", text, flags=re.MULTILINE)
    return {name: " ".join(words.split()) for name, words in entries}


def type_words(annotation: Any) -> str:
    """A type as a user of a recipe file reads it: `whole number`, `a` or `b`, `list of numbers`."""
    simple = {int: "whole number", float: "number", bool: "true or false", str: "text", NoneType: "nothing"}
    if annotation in simple:
        return simple[annotation]
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(f"`{part}`" for part in parts)
    if origin in (Union, UnionType):
        return " or ".join(type_words(part) for part in parts)
    if origin is tuple:
        members = "texts" if parts[0] is str else f"{type_words(parts[0]).removesuffix('s')}s"
        if inspect.isclass(parts[0]) and issubclass(parts[0], Spec):
            members = f"`{{{', '.join(parts[0].model_fields)}}}`"
        return f"list of {members}" if Ellipsis in parts else f"{len(parts)} {members}"
    return "an object (in Python)"  # a module, a source or a function


def bound_words(field: FieldInfo) -> str:
    """`≥ 1, < 2`: the bounds of a field, or ""."""
    found = [
        f"{sign} {getattr(rule, name):g}"
        for rule in field.metadata
        for name, sign in BOUNDS.items()
        if hasattr(rule, name)
    ]
    return ", ".join(found)


def default_words(field: FieldInfo) -> str:
    """The default as YAML spells it, or "required"."""
    value = field.default
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{list(value) if isinstance(value, tuple) else value}`"


def field_table(cls: type[Named], words: dict[str, str]) -> str:
    """The options of a class as a Markdown table; "" where it has none."""
    rows = ["| option | type | default | what it is |", "|---|---|---|---|"]
    for name, field in cls.model_fields.items():
        kind = ", ".join(filter(None, (type_words(field.annotation), bound_words(field))))
        rows.append(f"| `{name}` | {kind} | {default_words(field)} | {words.get(name, '')} |")
    return "\n".join(rows) + "\n" if len(rows) > 2 else ""


def undocumented(cls: type[Named], words: dict[str, str]) -> str:
    """As `field_table`, without the last column where no option has a text."""
    table = field_table(cls, words)
    if any(name in words for name in cls.model_fields):
        return table
    return table.replace(" what it is |", "").replace("|---|---|---|---|", "|---|---|---|").replace("|  |\n", "|\n")


def composition(cls: type[Technique]) -> str:
    """What a technique provides, wraps, ignores and reads, as sentences."""
    listed = [
        (verb, ", ".join(f"`{slot}`" for slot in SLOTS if slot in getattr(cls, verb)))
        for verb in ("provides", "wraps", "ignores")
    ]
    lines = [f"- {verb}: {slots}" for verb, slots in listed if slots]
    if cls.reads:
        roles = sorted(f"`{role}_*`" if role else "the examples" for role in cls.reads)
        lines.append(f"- reads: {', '.join(roles)}")
    if cls.place != "middle":
        meaning = {"inner": "it changes what a batch is", "outer": "it overwrites the model's inputs"}[cls.place]
        lines.append(f"- place: {cls.place} ({meaning})")
    if cls.splits:
        lines.append("- turns one stage into several")
    return "\n".join(lines)


def technique_page(name: str) -> str:
    """The page of one technique."""
    cls = find("technique", name)
    assert issubclass(cls, Technique)
    doc = parse_docstring(inspect.getdoc(cls) or "")
    path = cls.__module__.replace(".", "/") + ".py"
    parts = [GENERATED, f"# {name}\n", f"{doc.first}\n", f"{doc.body}\n" if doc.body else ""]
    parts.append(f"**Use it when** {doc.use}\n" if doc.use else "")
    parts.append(f"**Not** {doc.avoid}\n" if doc.avoid else "")
    cost = cost_of(name)
    parts.append(f"{cost_sentence(cost)}\n" if cost is not None else "")
    table = field_table(cls, doc.fields)
    parts.append(f"## Options\n\n{table}" if table else "It has no options.\n")
    parts.append(f"## In a recipe\n\n```yaml\n{doc.example}\n```\n")
    parts.append(f"## How it composes\n\n{composition(cls)}\n")
    parts.append("[Slots and places](../architecture.md#techniques) are explained in the architecture.\n")
    parts.append(f"Source: [`{path}`](../../{path}) · all techniques: [index](index.md)\n")
    return "\n".join(part for part in parts if part)


def technique_index(names: list[str]) -> str:
    """The list of all techniques, by folder."""
    parts = [
        GENERATED,
        "# Techniques\n",
        "A technique is named in a recipe by its class name, and its options are its fields: `- LoRA: {rank: 16}`, or "
        "`- SAM` for the defaults. Techniques are listed together and composed; a combination in which one would have no "
        "effect is refused in one sentence.\n",
    ]
    folders = {name: CATALOGUE["technique"][name].split(".")[2] for name in names}
    for folder in dict.fromkeys([*FOLDERS, *folders.values()]):
        title, _, words = (importlib.import_module(f"regraft.techniques.{folder}").__doc__ or "").partition(": ")
        members = [name for name in names if folders[name] == folder]
        rows = [f"| [{name}]({name}.md) | {first_line(name)} |" for name in members]
        parts.append(f"## {title}\n\n{words[:1].upper()}{words[1:]}\n\n| name | what it does |\n|---|---|")
        parts[-1] += "\n" + "\n".join(rows) + "\n"
    parts.append(
        "Beside them: [losses](../losses.md), [optimizers](../optimizers.md), [schedules](../schedules.md), "
        "[networks](../networks.md).\n"
    )
    return "\n".join(parts)


def first_line(name: str) -> str:
    """The first sentence of a technique's docstring."""
    return parse_docstring(inspect.getdoc(find("technique", name)) or "").first


def family_page(family: str) -> str:
    """The page of all members of a family."""
    title, words, example = FAMILIES[family]
    parts = [GENERATED, f"# {title}\n", f"{words}\n"]
    for name in sorted(CATALOGUE[family]):
        cls = find(family, name)
        doc = parse_docstring(inspect.getdoc(cls) or "")
        body = f"{doc.first}\n\n{doc.body}".strip()
        parts.append(f"## {name}\n\n{body}\n")
        parts.append(undocumented(cls, doc.fields))
        parts.append(f"```yaml\n{doc.example or example.format(name=name)}\n```\n")
        parts.append(drawn(name) if family == "schedule" and name != "Sequence" else "")
    parts += [PRETRAINED] if family == "network" else []
    return "\n".join(part for part in parts if part)


def drawn(name: str) -> str:
    """The curve of a schedule with its default options."""
    schedule = find("schedule", name)()
    assert isinstance(schedule, Schedule)
    lines = curve([schedule(Clock(step, 1000)) for step in range(1000)], width=48, height=5, unit="steps")
    return "\n".join(["```text", *lines, "```\n"])


def pages() -> dict[str, str]:
    """Every generated page: path below docs/ -> text."""
    names = sorted(CATALOGUE["technique"])
    written = {f"techniques/{name}.md": technique_page(name) for name in names}
    written["techniques/index.md"] = technique_index(names)
    return written | {f"{FAMILIES[family][0].lower()}.md": family_page(family) for family in FAMILIES}


def stale(docs: Path = DOCS) -> list[str]:
    """Pages that differ from what would be written, and pages of techniques that no longer exist."""
    expected = pages()
    differing = [
        path for path, text in expected.items() if not (docs / path).exists() or (docs / path).read_text() != text
    ]
    there = {f"techniques/{path.name}" for path in (docs / "techniques").glob("*.md")}
    return sorted({*differing, *(there - expected.keys())})


def main() -> int:
    """Write the pages, or compare them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    if parser.parse_args().check:
        for path in stale():
            print(f"docs/{path} differs from the docstrings; run: python docs/build_reference.py")
        return 1 if stale() else 0
    for path in stale():
        (DOCS / path).unlink(missing_ok=True)
    for path, text in pages().items():
        (DOCS / path).write_text(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
