"""The schema of a table from its columns: modality, inputs, label and task, each with the sentence that says why.

What the user gave is taken as it is, and refused in one sentence where the data contradicts it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import pyarrow as pa

from regraft.config.data import DataSpec
from regraft.data.dataset import LANGUAGE, Modality, Schema
from regraft.data.profile import Profile
from regraft.data.task import detect_task
from regraft.errors import DataError, suggest

LABEL_NAMES = (
    "label", "labels", "target", "targets", "class", "category", "classes", "categories", "y", "intent", "sentiment", "income",
    "quality", "species", "outcome", "emotion", "tag", "tags", "topic", "rating", "stars", "score", "is_duplicate", "gold_label",
)  # fmt: skip
TEXT_NAMES = (
    "text", "sentence", "content", "review", "body", "comment", "message", "utterance", "question", "query", "document",
    "description", "tweet", "title", "dialogue", "article", "prompt", "input",
)  # fmt: skip
PAIRS = (
    ("premise", "hypothesis"), ("title", "description"), ("title", "body"), ("title", "text"), ("title", "content"),
    ("title", "abstract"), ("subject", "body"), ("question", "sentence"), ("question", "passage"), ("question", "context"),
    ("question", "answer"), ("query", "passage"), ("query", "document"), ("headline", "body"), ("summary", "description"),
)  # fmt: skip
IMAGE_NAMES = ("image", "img", "file", "file_name", "filename", "path")
GROUP_NAMES = r"(^|_)(user|patient|subject|speaker|session|group|customer|author|household|site)(_?id)?$"
TIME_NAMES = r"^(date|time|datetime|timestamp|created(_at)?|year|month)$"


@dataclass(kw_only=True)
class _Notes:
    """What detection says while it decides."""

    reasons: list[str] = field(default_factory=list)
    ignored: dict[str, str] = field(default_factory=dict)


def detect(
    table: pa.Table, profiles: Mapping[str, Profile], spec: DataSpec, *, rows: int, names: Mapping[str, list[str]]
) -> Schema:
    """The schema without its classes, which are read from the training rows afterwards.

    `profiles` describe all columns of the training `table` of `rows` rows; `names` are names of integer labels by column.
    """
    notes = _Notes()
    _check_names(spec, profiles)
    given_label = _label_given(spec, profiles)
    modality = _modality(spec, profiles, given_label, notes)
    image = _image_column(spec, profiles, notes) if modality == "image" else spec.audio
    reserved = {name for name in (image, spec.group, spec.time, *spec.features) if name}
    texts = _text_columns(spec, profiles, reserved | set(given_label), notes) if modality == "text" else ()
    language = spec.task == LANGUAGE
    if language:
        _check_language(given_label, modality, texts)
    label = () if language else given_label or _find_label(profiles, reserved | set(texts), modality, notes)
    task = detect_task(
        table, profiles, label, spec, rows=rows, named=set(names), modality=modality, reasons=notes.reasons
    )
    numeric: tuple[str, ...] = ()
    if modality == "table":
        inputs = _features(spec, profiles, (reserved | set(label)) - set(spec.features), notes)
        numeric = tuple(name for name in inputs if profiles[name].kind in ("int", "float", "bool"))
    else:
        inputs = texts if modality == "text" else (image or "",)
        why = f"not {'text' if modality == 'text' else f'the {modality}'}; used only by the audit"
        others = [name for name in profiles if name not in {*inputs, *label, spec.group, spec.time}]
        notes.ignored.update({name: notes.ignored.get(name, why) for name in others})
    return Schema(
        modality=modality,
        inputs=inputs,
        label=label,
        task=task,
        group=spec.group,
        time=spec.time,
        numeric=numeric,
        ignored=notes.ignored,
        reasons=tuple(notes.reasons),
    )


def _check_language(label: tuple[str, ...], modality: Modality, texts: tuple[str, ...]) -> None:
    """Refuse what a language model has no use for."""
    if label:
        raise DataError(f"--task {LANGUAGE}: a text is its own target, so leave the label {label[0]!r} out")
    if modality != "text":
        raise DataError(f"--task {LANGUAGE} learns from text, but the data is of modality {modality}; give --text")
    if len(texts) > 1:
        raise DataError(f"--task {LANGUAGE} reads one text column, got {' and '.join(texts)}; give one with --text")


def check_column(name: str, columns: Mapping[str, Profile], option: str) -> None:
    """DataError with the nearest name where the data has no such column."""
    if name not in columns:
        raise DataError(f"--{option}: the data has no column called {name!r}{suggest(name, columns)}")


def _check_names(spec: DataSpec, profiles: Mapping[str, Profile]) -> None:
    """Refuse names of columns that are not there, and one column for two things."""
    uses: dict[str, str] = {}
    options = {"text": spec.text, "label": spec.label, "features": spec.features}
    options |= {"image": (spec.image,) if spec.image else (), "audio": (spec.audio,) if spec.audio else ()}
    options |= {"group": (spec.group,) if spec.group else ()}
    options |= {"time": (spec.time,) if spec.time else ()}
    for option, names in options.items():
        for name in names:
            check_column(name, profiles, option)
            if uses.get(name, option) != option and {uses[name], option} != {"group", "time"}:
                raise DataError(
                    f"the column {name!r} is given both as --{uses[name]} and as --{option}; it can be only one of them"
                )
            uses[name] = option
    if len(spec.text) > 2:
        raise DataError(f"--text: one column, or two for pairs, got {len(spec.text)}; leave out {spec.text[2]!r}")
    inputs = (("text", spec.text), ("image", spec.image), ("audio", spec.audio), ("features", spec.features))
    kinds = [kind for kind, names in inputs if names]
    if len(kinds) > 1:
        raise DataError(
            f"--{kinds[0]} and --{kinds[1]} are both given; a data set is text, images, sounds or a table, so give one of them"
        )


def _label_given(spec: DataSpec, profiles: Mapping[str, Profile]) -> tuple[str, ...]:
    for name in spec.label:
        if profiles[name].kind == "empty":
            raise DataError(f"--label: the column {name!r} holds no value in the training rows; give another one")
        if profiles[name].kind in ("image", "other"):
            raise DataError(
                f"--label: the column {name!r} holds no labels but {profiles[name].kind} values; give another one"
            )
    return spec.label


def _is_text(one: Profile) -> bool:
    """Free text: mostly distinct values of several words, or of some length under a name that says text."""
    named = one.name.casefold() in TEXT_NAMES or any(
        one.name.casefold().startswith(f"{name}_") for name in TEXT_NAMES[:4]
    )
    if one.kind != "text" or one.dated or one.image_path or one.distinct < 2:
        return False
    if named and (one.mean_words >= 2 or one.mean_chars >= 8) and one.distinct_share > 0.3:
        return True
    return one.distinct_share > 0.5 and (one.mean_words >= 5 or (one.mean_chars >= 40 and one.mean_words >= 2))


def _modality(spec: DataSpec, profiles: Mapping[str, Profile], label: tuple[str, ...], notes: _Notes) -> Modality:
    given: tuple[tuple[Modality, object], ...] = (
        ("text", spec.text), ("image", spec.image), ("audio", spec.audio), ("table", spec.features),
    )  # fmt: skip
    implied: Modality | None = next((modality for modality, names in given if names), None)
    if spec.modality != "auto":
        if implied and implied != spec.modality:
            option = "features" if implied == "table" else implied
            raise DataError(
                f"--modality {spec.modality} contradicts --{option}, which makes it {implied}; leave out one of them"
            )
        if spec.modality == "audio" and implied is None:
            raise DataError("modality audio: name the column that holds the paths of WAV files, such as `audio: file`")
        return spec.modality
    if implied:
        return implied
    images = [one.name for one in profiles.values() if one.kind == "image" or one.image_path]
    if images:
        notes.reasons.append(
            f"the modality is image, because the column {images[0]!r} holds images; override with --modality"
        )
        return "image"
    texts = [one for one in profiles.values() if _is_text(one) and one.name not in label]
    if texts:
        one = texts[0]
        notes.reasons.append(
            f"the modality is text, because the column {one.name!r} holds free text ({one.mean_words:.0f} words on average, "
            f"{one.distinct_share:.0%} distinct); override with --modality"
        )
        return "text"
    notes.reasons.append("the modality is table, because no column holds images or free text; override with --modality")
    return "table"


def _image_column(spec: DataSpec, profiles: Mapping[str, Profile], notes: _Notes) -> str:
    if spec.image:
        one = profiles[spec.image]
        if one.kind != "image" and not one.image_path:
            raise DataError(
                f"--image: the column {one.name!r} holds neither images nor paths of images; give another one"
            )
        return spec.image
    found = [one.name for one in profiles.values() if one.kind == "image" or one.image_path]
    if not found:
        raise DataError("--modality image: no column holds images or paths of images; give it with --image")
    found.sort(key=lambda name: IMAGE_NAMES.index(name) if name in IMAGE_NAMES else len(IMAGE_NAMES))
    notes.reasons.append(f"the images are in the column {found[0]!r}; override with --image")
    return found[0]


def _text_columns(spec: DataSpec, profiles: Mapping[str, Profile], taken: set[str], notes: _Notes) -> tuple[str, ...]:
    """The one text column, or the two of a pair."""
    if spec.text:
        for name in spec.text:
            if profiles[name].kind != "text":
                raise DataError(
                    f"--text: the column {name!r} holds {_said(profiles[name])}, not text; give another one"
                )
        return spec.text
    texts = [one for one in profiles.values() if _is_text(one) and one.name not in taken]
    if not texts:
        raise DataError("--modality text: no column holds free text; give it with --text")
    chosen = _choose_texts(texts)
    quoted = " and ".join(repr(name) for name in chosen)
    notes.reasons.append(f"the text is in {quoted}; override with --text")
    left = [one.name for one in texts if one.name not in chosen]
    notes.ignored.update(dict.fromkeys(left, "free text, but not the column that was chosen; give --text to use it"))
    return chosen


def _choose_texts(texts: list[Profile]) -> tuple[str, ...]:
    """A known pair, else two names that differ in an ending such as `_a` and `_b`, else a usual name, else the longest."""
    by_name = {one.name.casefold(): one.name for one in texts}
    for first, second in PAIRS:
        if first in by_name and second in by_name:
            return (by_name[first], by_name[second])
    stems: dict[str, list[str]] = {}
    for one in texts:
        match = re.fullmatch(r"(.*?)[ _]?(a|b|1|2)", one.name.casefold())
        if match:
            stems.setdefault(match[1], []).append(one.name)
    pair = next((names for names in stems.values() if len(names) == 2), None)
    if pair:
        return (pair[0], pair[1])
    usual = [by_name[name] for name in TEXT_NAMES if name in by_name]
    return (usual[0] if usual else max(texts, key=lambda one: one.mean_chars).name,)


def _find_label(profiles: Mapping[str, Profile], taken: set[str], modality: Modality, notes: _Notes) -> tuple[str, ...]:
    """The label column by its name, else the last one with few distinct values; () where there is none."""
    free = {name.casefold(): one for name, one in profiles.items() if name not in taken and not _is_text(one)}
    for name in LABEL_NAMES:
        if name in free and _can_be_label(free[name], named=True):
            notes.reasons.append(f"the label is {free[name].name!r}, by its name; override with --label")
            return (free[name].name,)
    few = [one for one in free.values() if _can_be_label(one, named=False)]
    if few:
        said = f"it is the last column with few distinct values ({few[-1].distinct})"
        notes.reasons.append(f"the label is {few[-1].name!r}, because {said}; override with --label")
        return (few[-1].name,)
    last = list(free.values())[-1] if free else None
    if modality == "table" and last and last.kind == "float":
        notes.reasons.append(
            f"the label is {last.name!r}, because it is the last column and a number; override with --label"
        )
        return (last.name,)
    single = [free[name].name for name in LABEL_NAMES if name in free and free[name].distinct == 1]
    return (single[0],) if single else ()  # refused later, with the one class it has


def _can_be_label(one: Profile, *, named: bool) -> bool:
    """Whether a column could hold labels: at least two values, and not one of its own for nearly every row."""
    if one.kind == "list":
        return named
    if one.kind not in ("int", "float", "bool", "text") or one.distinct < 2 or one.dated or one.image_path:
        return False
    if one.kind == "text":
        limit = 0.5 if named else 0.2
        return one.separated or one.distinct_share <= limit or (one.count <= 40 and one.distinct < one.count)
    if named:
        return not one.consecutive or one.distinct < one.count
    return one.whole and one.distinct <= 50 and one.distinct_share <= 0.2 if one.kind != "bool" else True


def _features(spec: DataSpec, profiles: Mapping[str, Profile], taken: set[str], notes: _Notes) -> tuple[str, ...]:
    """The input columns of a table; the others go to `notes.ignored` with the reason."""
    if spec.features:
        unfit = next(
            (name for name in spec.features if profiles[name].kind not in ("int", "float", "bool", "text", "empty")),
            None,
        )
        if unfit:
            raise DataError(
                f"--features: the column {unfit!r} holds {_said(profiles[unfit])}, which a table model cannot use; leave it out"
            )
        left = [name for name in profiles if name not in {*spec.features, *taken}]
        notes.ignored.update(dict.fromkeys(left, "not among --features"))
        return spec.features
    inputs = []
    for name, one in profiles.items():
        if name in taken:
            continue
        why = _why_not(one)
        if why:
            notes.ignored[name] = f"{why}; give --features to use it"
        else:
            inputs.append(name)
    if not inputs:
        raise DataError("no column is left as an input of the table; give some with --features")
    return tuple(inputs)


def _why_not(one: Profile) -> str:
    """Why a column is no input of a table, or ""."""
    name = one.name.casefold()
    if one.kind == "empty":
        return "no values"
    if one.distinct == 1:
        return "the same value everywhere"
    if one.kind in ("image", "list", "other"):
        return f"{_said(one)}, not a number or a category"
    if one.kind == "time" or one.dated or (re.match(TIME_NAMES, name) and one.kind == "text"):
        return "looks like a time (give --time to split by it)"
    if re.search(GROUP_NAMES, name) and 1 < one.distinct < one.count:
        return "looks like a group (give --group to keep its rows together)"
    identifier = re.search(r"(^|_)(id|uuid|guid|index|key)$", name) or name.startswith("unnamed")
    if one.consecutive or (identifier and one.distinct_share > 0.5):
        return "a row number or identifier"
    if one.kind == "text" and one.distinct_share > 0.9 and one.count > 50:
        return "a value of its own in nearly every row"
    return ""


def _said(one: Profile) -> str:
    return {
        "int": "numbers",
        "float": "numbers",
        "bool": "true and false",
        "list": "lists",
        "empty": "no values",
        "time": "times",
    }.get(one.kind, "images" if one.kind == "image" else "values of another type")
