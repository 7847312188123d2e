"""The report page: one safe file, whole whatever is missing, and true to the numbers it was written from."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from regraft.errors import RunError
from regraft.phases.report.document import SECTIONS, section_html, write_report
from regraft.phases.report.summary import text_summary


def _example():
    spec = importlib.util.spec_from_file_location("example_run", Path(__file__).with_name("example_run.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules["example_run"] = module
    spec.loader.exec_module(module)
    return module


example_run = _example()


class Page(HTMLParser):
    """Tags with their attributes, and the text outside of style."""

    VOID = ("meta", "br", "link", "img", "hr", "wbr")

    def __init__(self, page):
        super().__init__()
        self.tags, self.text, self.open = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        if "style" not in self.open:
            self.text.append(data)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return example_run.make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def _small(tmp_path_factory):
    return example_run.make_run(tmp_path_factory.mktemp("small"), classes=4, rows=100)


@pytest.fixture
def small(_small, tmp_path):
    return Path(shutil.copytree(_small, tmp_path / "run"))


@pytest.fixture(scope="module")
def page(run):
    return write_report(run).read_text(encoding="utf-8")


def test_every_section_of_a_full_run_is_there_in_order(page):
    found = [attrs["id"] for tag, attrs in Page(page).tags if tag == "section"]
    assert found == list(SECTIONS)
    assert "Left out" not in page


def test_elements_are_closed_in_order_whatever_the_labels_are(page):
    assert Page(page).open == []


def test_there_is_no_script_no_handler_no_link_out_and_nothing_is_loaded(page):
    allowed = {
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "header",
        "nav",
        "main",
        "section",
        "footer",
        "figure",
        "figcaption",
    }
    allowed |= {
        "h1",
        "h2",
        "h3",
        "p",
        "a",
        "b",
        "i",
        "br",
        "wbr",
        "span",
        "small",
        "div",
        "dl",
        "dt",
        "dd",
        "ul",
        "li",
        "pre",
        "code",
    }
    allowed |= {"table", "thead", "tbody", "tr", "th", "td", "details", "summary"}
    allowed |= {"svg", "line", "polyline", "rect", "circle", "text"}
    for tag, attrs in Page(page).tags:
        assert tag in allowed
        assert not [
            name
            for name in attrs
            if name.startswith("on") or name in ("src", "srcset", "action", "formaction", "xlink:href")
        ]
        assert attrs.get("href", "#").startswith("#")
    assert "url(" not in page
    assert "@import" not in page
    assert "default-src 'none'; style-src 'sha256-" in page


def test_hostile_strings_are_shown_as_text(page):
    text = "".join(Page(page).text)
    for hostile in (
        "<img src=x onerror=alert(1)>",
        "</style></svg><script>alert(2)</script>",
        '"><a href="javascript:alert(3)">',
    ):
        assert hostile in text
    assert "{{ 7 * 7 }}{% raw %}" in text
    assert "&lt;already &amp; escaped" in text
    assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", page)


def test_the_page_states_the_numbers_of_the_metrics_file(run, page):
    test = json.loads((run / "metrics.json").read_text())["final"]["test"]
    text = "".join(Page(page).text)
    for name in ("accuracy", "macro_f1", "nll", "auroc"):
        value, low, high = (f"{test[name][key]:.3f}" for key in ("value", "low", "high"))
        assert f"{value} ({low} to {high})" in text
    assert "3,080 test rows, used once" in text
    assert "81 texts occur twice" in text
    assert "audit.csv" in text


def test_the_page_is_small_enough_to_mail(page):
    assert len(page.encode()) < 300_000


def test_writing_again_gives_the_same_bytes_and_leaves_no_draft(run, page):
    assert write_report(run).read_text(encoding="utf-8") == page
    assert not list(run.glob("*.part"))


@pytest.mark.parametrize(
    "gone", ["audit.json", "metrics.json", "ledger.json", "events.jsonl", "manifest.json", "recipe.yaml"]
)
def test_a_missing_file_costs_its_sections_only_and_the_page_says_why(small, gone):
    (small / gone).unlink()
    page = write_report(small).read_text(encoding="utf-8")
    assert {attrs["id"] for _, attrs in Page(page).tags if "id" in attrs} - {"left-out"} == set(SECTIONS)
    assert (f"{gone} is not in the run directory" in page) == (gone != "recipe.yaml")
    assert ("Left out" in page) == (gone != "recipe.yaml")
    assert len(text_summary(small)) == 5


@pytest.mark.parametrize(
    "key",
    ["candidates", "depth_curve", "confusion", "per_class", "reliability", "hard_examples", "calibration", "final"],
)
def test_a_missing_part_of_the_metrics_is_never_an_exception(small, key):
    metrics = json.loads((small / "metrics.json").read_text())
    for value in (None, [], {}, "nonsense", 7, [None], [7], {"test": 3}):
        (small / "metrics.json").write_text(json.dumps(metrics | {key: value}))
        page = write_report(small).read_text(encoding="utf-8")
        assert Page(page).open == []
        assert len(text_summary(small)) == 5
    del metrics[key]
    (small / "metrics.json").write_text(json.dumps(metrics))
    page = write_report(small).read_text(encoding="utf-8")
    if key in ("candidates", "depth_curve", "confusion", "per_class"):
        assert f"<dd>metrics.json holds no {key}.</dd>" in page


@pytest.mark.parametrize("content", ["", "{", "[]", "3", '{"format": 1}', "\x00\x01"])
def test_damaged_files_are_named(small, content):
    for name in ("audit.json", "metrics.json", "ledger.json", "manifest.json", "events.jsonl"):
        (small / name).write_text(content)
    assert "Left out" in write_report(small).read_text(encoding="utf-8")
    assert len(text_summary(small)) == 5


def leaves(value, path=()):
    """Every path into nested JSON."""
    yield path
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inside:
        yield from leaves(each, (*path, key))


def changed(value, path, new):
    if not path:
        return new
    out = value.copy()
    out[path[0]] = changed(value[path[0]], path[1:], new)
    return out


@pytest.mark.parametrize("name", ["audit.json", "metrics.json", "ledger.json", "manifest.json"])
def test_any_one_value_may_be_of_any_type_and_the_page_is_still_written_whole(small, name):
    content = json.loads((small / name).read_text())
    paths = sorted({path for path in leaves(content) if path}, key=str)
    rng = np.random.default_rng(0)
    for path in [paths[i] for i in rng.choice(len(paths), size=min(40, len(paths)), replace=False)]:
        new = [None, "<b>", [], {}, -1e308, [[]], {"value": "x"}, True][rng.integers(8)]
        (small / name).write_text(json.dumps(changed(content, path, new)))
        page = write_report(small).read_text(encoding="utf-8")
        assert Page(page).open == [], path
        assert "<b><" not in page
        assert len(text_summary(small)) == 5


def test_a_regression_run_has_its_own_numbers_and_no_confusion(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    scores = {
        "r2": {"value": 0.41, "low": 0.3, "high": 0.5},
        "mae": {"value": 0.44, "low": 0.4, "high": 0.5},
        "n": {"value": 320},
    }
    calibration = {
        "kind": "residual",
        "parameters": {"half_width": 1.04},
        "cross_fitted_coverage": 0.9,
        "sentences": ["A width."],
    }
    metrics = {
        "format": "regraft.metrics/1",
        "task": "regression",
        "primary": "r2",
        "final": {"test": scores},
        "calibration": calibration,
    }
    (run / "metrics.json").write_text(json.dumps(metrics))
    page = write_report(run).read_text(encoding="utf-8")
    assert "0.410 (0.300 to 0.500)" in page
    assert "± 1.040 around each prediction" in page
    assert "Not for this task: a number has no classes." in page


def test_one_section_can_be_shown_alone_and_a_misspelt_one_is_suggested(run):
    shown = section_html(run, "confusion")
    assert Page(shown).open == []
    assert "What is taken for what" in shown
    with pytest.raises(RunError, match="no section is called 'confusoin'; did you mean 'confusion'"):
        section_html(run, "confusoin")


def test_styles_of_a_section_touch_nothing_outside_it(run):
    css = re.search(r"<style>(.*?)</style>", section_html(run, "summary"), re.DOTALL).group(1)
    selectors = re.findall(r"([^{}]+)\{", re.sub(r"@media[^{]*\{", "", css))
    assert [
        s for s in selectors if s.strip() and not all(part.strip().startswith(".regraft") for part in s.split(","))
    ] == []


def test_the_five_lines_are_asked_won_gained_calibrated_cost(run):
    lines = text_summary(run)
    assert [line.partition(":")[0] for line in lines] == ["Asked", "Won", "Gained", "Calibrated", "Cost"]
    assert "one of 77 classes for banking77" in lines[0]
    assert "over the probe on all depths" in lines[2]
    assert "2 min 52 s" in lines[4]


def test_a_folder_without_a_run_is_refused_in_one_sentence(tmp_path):
    with pytest.raises(
        RunError, match=r"must be a run directory, but there is no such directory; `regraft adapt DATA --out"
    ):
        write_report(tmp_path / "nothing")
    with pytest.raises(RunError, match=r"holds none of audit\.json, metrics\.json and recipe\.yaml"):
        write_report(tmp_path)


@pytest.mark.parametrize(
    ("primary", "scores", "shares"),
    [
        ("accuracy", (0.5, 0.9, 0.7), (1.0, 0.575, 0.15)),
        ("mae", (0.5, 0.9, 0.7), (1.0, 0.575, 0.15)),
        ("accuracy", (1.0, 1.0), (1.0, 1.0)),
        ("accuracy", (0.8, None), (1.0, 0.0)),
    ],
)
def test_the_best_candidate_has_the_longest_bar(primary, scores, shares):
    from types import SimpleNamespace

    from regraft.phases.report.story import tried

    candidates = [{"name": str(n), "valid": {} if s is None else {primary: s}} for n, s in enumerate(scores)]
    metrics = {"primary": primary, "candidates": candidates}
    run = SimpleNamespace(metrics=metrics, need=lambda name, key: metrics[key], events=[], read=lambda name: None)
    assert [row["share"] for row in tried(run)["rows"]] == pytest.approx(shares)
