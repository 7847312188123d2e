"""What the bounded readers of JSON and YAML take: ordinary files whole, and a sentence with the line for the others."""

from __future__ import annotations

import json
import math

import pytest
import yaml

from regraft.config.plain_json import DEEPEST, NotPlain, plain_json
from regraft.config.plain_yaml import NotPlainYaml, plain_yaml


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        0,
        -1.5e-300,
        "",
        'a "quoted" [text] {with} \\ brackets',
        "\u20ac\n",
        [],
        {},
        [[1], {"a": [None]}],
        {"a": 2**70},
    ],
)
def test_json_is_read_as_the_standard_library_reads_it(value):
    text = json.dumps(value)
    assert plain_json(text) == plain_json(text.encode()) == value


def test_brackets_in_strings_are_no_levels_of_json_and_real_ones_are():
    assert plain_json(json.dumps(["[" * 1000, "\\" * 7 + '"' * 9 + "{" * 1000])) is not None
    assert plain_json("[" * DEEPEST + "]" * DEEPEST) is not None
    with pytest.raises(NotPlain, match=f"more than {DEEPEST} levels"):
        plain_json("[" * (DEEPEST + 1) + "]" * (DEEPEST + 1))


@pytest.mark.parametrize("text", ["NaN", "-Infinity", "1e999", '{"a": [NaN]}'])
def test_numbers_that_are_none_are_refused_unless_they_are_asked_for(text):
    with pytest.raises(NotPlain):
        plain_json(text)
    plain_json(text, finite=False)
    assert math.isnan(plain_json("NaN", finite=False))


def test_yaml_is_read_as_the_safe_loader_reads_it():
    text = "a: &x {b: [1, 2.5, null, yes, 'text']}\nc: *x\nd: {<<: *x, e: 0x1F}\nf: 2026-01-31\ng: |\n  two\n  lines\n"
    assert plain_yaml(text) == yaml.safe_load(text)


def test_a_recipe_with_ten_thousand_columns_is_within_the_limits():
    text = "features:\n" + "".join(f"- column_{number:05d}\n" for number in range(10_000))
    assert len(plain_yaml(text)["features"]) == 10_000


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\nb: !!python/name:os.system\n", "line 2: '!!python/name:os.system' is a tag"),
        ("a: 1\nb: 2\na: 3\n", "line 3: the key 'a' occurs twice; keep one of them"),
        ("a: 1\n2: b\n", "line 2: a key must be text, got '2'; put it into quotes"),
        ("a: &x [*x]\n", "line 1: the alias *x stands inside what it stands for"),
        ("a: .inf\n", "line 1: must be a finite number, got '.inf'"),
        ("a: [1\nb: 2\n", "not valid YAML at line"),
    ],
)
def test_yaml_that_is_not_plain_is_refused_with_its_line(text, words):
    with pytest.raises(NotPlainYaml) as caught:
        plain_yaml(text)
    assert words in str(caught.value)
