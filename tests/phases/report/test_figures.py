"""Figures and words: marks where the numbers say, text that is escaped, and units a reader can take at their word."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regraft.phases.report.figures import Line, Range, heat_map, interval_chart, line_chart, reliability_chart, ticks
from regraft.phases.report.read import thinned
from regraft.phases.report.words import clean, decimal, flops, listed, scaled, seconds, short, signed, size_of

HOSTILE = '<script>"&\u202e\x00'


def marks(svg, tag):
    return [element.attrib for element in ET.fromstring(svg).iter(tag)]


def test_every_figure_is_well_formed_xml_with_a_text_alternative_even_with_hostile_names():
    figures = [
        line_chart([Line(name=HOSTILE, points=[(0, 1.0), (9, 2.0)])], x_label=HOSTILE, y_label="y", described=HOSTILE),
        interval_chart([Range(name=HOSTILE, value=0.5, low=0.4, high=0.6)], x_label=HOSTILE, described=HOSTILE),
        heat_map([[1, 2], [0, 3]], [HOSTILE, "b"], described=HOSTILE),
        reliability_chart(
            [{"low": 0, "high": 1, "count": 3, "confidence": 0.4, "accuracy": 0.9}], title=HOSTILE, described=HOSTILE
        ),
    ]
    for figure in figures:
        root = ET.fromstring(figure)
        assert root.attrib["role"] == "img"
        assert root.attrib["aria-label"] == clean(HOSTILE)
        assert "script" not in {element.tag for element in root.iter()}


def test_a_line_goes_through_its_points_in_proportion():
    svg = line_chart([Line(name="a", points=[(0, 0.0), (5, 1.0), (10, 0.0)])], x_label="x", y_label="y", described="d")
    (left, low), (middle, high), (right, again) = [
        tuple(map(float, p.split(","))) for p in marks(svg, "polyline")[0]["points"].split()
    ]
    assert middle - left == pytest.approx(right - middle, abs=0.2)
    assert low == again
    assert high < low  # up is less in a picture


def test_a_constant_line_or_a_single_point_is_drawn():
    assert "polyline" in line_chart([Line(name="a", points=[(3, 0.5)])], x_label="x", y_label="y", described="d")


def test_the_shade_of_a_cell_grows_with_its_share_of_the_row():
    cells = marks(heat_map([[8, 2, 0], [0, 10, 0], [1, 0, 9]], ["a", "b", "c"], described="d"), "rect")
    shade = [float(cell["opacity"]) for cell in cells]
    assert shade[1] < shade[0] < shade[4]
    assert "second" in cells[1]["class"]
    assert "main" in cells[0]["class"]
    assert "empty" in cells[2]["class"]


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_lie_within_the_range_at_even_distances_and_are_few(low, width):
    found = ticks(low, low + width)
    assert all(low - 1e-6 * width - 1e-9 <= t <= low + width * (1 + 1e-6) + 1e-9 for t in found)
    assert len(found) <= 7
    if len(found) > 2 and width > 1e-3:
        assert np.diff(found) == pytest.approx(np.full(len(found) - 1, found[1] - found[0]), rel=1e-3)


def test_numbers_read_as_written():
    assert [decimal(x) for x in (0.9414, 12.345, 1234.5, 0.00001, 0, None, float("nan"), True)] == [
        "0.941", "12.3", "1,234", "1.0e−05", "0.000", "–", "–", "–",
    ]  # fmt: skip
    assert [signed(x) for x in (0.0041, -0.0041, -0.0001)] == ["+0.004", "−0.004", "0.000"]
    assert [seconds(x) for x in (0.423, 7.94, 34.4, 59.6, 172, 3840)] == [
        "0.42 s",
        "7.9 s",
        "34 s",
        "1 min 00 s",
        "2 min 52 s",
        "1 h 04 min",
    ]
    assert [size_of(90_982_144), size_of(512), flops(3.1e15), scaled(22_742_861, "")] == [
        "86.8 MiB",
        "512 B",
        "3.1 PFLOP",
        "22.7 M",
    ]


def test_long_texts_keep_both_ends_and_never_exceed_the_limit():
    assert short("card_not_recognised_by_the_bank", 16) == "card_not_r…_bank"
    assert all(len(short("x" * 50, limit)) <= limit for limit in range(1, 50))
    assert listed(list(range(9)), 3) == "0, 1, 2, … (9 in all)"


@given(st.text())
def test_cleaned_text_can_always_be_written_as_utf_8(text):
    clean(text).encode("utf-8")
    assert not re.search("[\x00\u202e]", clean(text))


def test_lone_surrogates_become_a_replacement_mark():
    assert clean("a\ud800b") == "a\ufffdb"


def test_a_curve_is_thinned_evenly_with_both_ends_kept():
    points = [(float(i), 0.0) for i in range(10_001)]
    kept = thinned(points)
    assert len(kept) == 400
    assert (kept[0], kept[-1]) == (points[0], points[-1])
