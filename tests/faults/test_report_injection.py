"""Nothing that data, labels, file names, metrics or a recipe hold becomes markup of the report: 100 payloads, none unescaped.

The page with a payload in every text of a run has the same elements and attributes as the page with a harmless word there.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from regraft.phases.report.document import SECTIONS, report_html, section_html, write_report
from regraft.phases.report.read import read_run

HARMLESS = "Word"
SAMPLE = 9  # every ninth: each shape of code, and shapes spread out
CODE = ("alert(1)", "fetch('//evil.example')", "eval(name)", "document.cookie")
SHAPES = (
    "<script>{}</script>", "</script><script>{}</script>", "<img src=x onerror={}>", "<svg onload={}>", "<svg/onload={}//",
    '"><script>{}</script>', "'><img src=x onerror={}>", '" onmouseover="{}', "' onfocus='{}' autofocus='",
    "</style><script>{}</script>",
    "</title><script>{}</script>", "</pre></code><iframe srcdoc='<script>{}</script>'>", "<a href='javascript:{}'>x</a>",
    "<!--<img src='--><img src=x onerror={}//'>", "]]><script>{}</script>", "<math><mtext><script>{}</script>",
    "<details open ontoggle={}>",
    "{{{{ {} }}}}", "{{% raw %}}{}{{% endraw %}}", "&lt;script&gt;{}&lt;/script&gt;", "\u003cscript\u003e{}\u003c/script\u003e",
    "<\x00script>{}</script>", "\u202e<script>{}</script>", "<meta http-equiv=refresh content='0;url=javascript:{}'>",
    "</svg></figure><object data='javascript:{}'>",
)  # fmt: skip
PAYLOADS = [shape.format(code) for shape in SHAPES for code in CODE]


class Elements(HTMLParser):
    """(tag, attribute names) of a page in order, the attributes' values and the text."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, ...]] = []
        self.values: list[tuple[str, str]] = []
        self.text: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "wbr":  # stands after each underscore of a label
            self.found.append((tag, *sorted(name for name, _ in attrs)))
            self.values += [(name, value or "") for name, value in attrs]

    def handle_comment(self, data: str) -> None:
        self.found.append(("comment", data))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def poisoned(value: Any, put: str) -> Any:
    """The JSON value with `put` behind every text in it, but for dates, formats and the names of metrics."""
    if isinstance(value, str):
        return (
            value
            if re.match(r"regraft\.|\d{4}-|accuracy$|multiclass$|text$|temperature$|test$|valid$", value)
            else value + put
        )
    if isinstance(value, list):
        return [poisoned(item, put) for item in value]
    if isinstance(value, dict):
        return {key: poisoned(item, put) for key, item in value.items()}
    return value


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    file = Path(__file__).parents[1] / "phases" / "report" / "example_run.py"
    spec = importlib.util.spec_from_file_location("example_run_of_injection", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    module.HOSTILE = ("plain a", "plain b", "plain c", "plain d", "plain e", "plain f")
    return module.make_run(tmp_path_factory.mktemp("run"), classes=6, rows=60)


def poisoned_run(original: Path, folder: Path, put: str) -> Path:
    """A copy of the run with `put` in all its texts."""
    shutil.copytree(original, folder)
    for file in folder.glob("*.json"):
        file.write_text(json.dumps(poisoned(json.loads(file.read_text()), put)))
    lines = (folder / "events.jsonl").read_text().splitlines()[:-1]
    events = [poisoned(json.loads(line), put) for line in lines]
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    (folder / "recipe.yaml").write_text(f"data: {{main: {{path: {json.dumps(put)}}}}}\n# {put}\n", errors="replace")
    (folder / "model" / "README.md").write_text(f"# {put}\n\n```python\n{put}\n```\n", errors="replace")
    return folder


def check(original: Path, folder: Path, payload: str, harmless: Elements) -> None:
    run = poisoned_run(original, folder, payload)
    page = write_report(run).read_text(encoding="utf-8")
    got = Elements(page)
    assert got.found == harmless.found, f"{payload!r} changed the elements of the page"
    hidden = [value for name, value in got.values if name not in ("aria-label", "content") and "alert" in value]
    assert hidden == []
    assert not re.search(r"(?i)<script|<iframe|<object|<img", page)
    visible = "".join(got.text)
    assert re.sub("[\x00\u202e]", "\ufffd", payload).strip() in visible.replace("\n", " ") or payload in visible


def harmless_page(original: Path, tmp_path: Path) -> Elements:
    return Elements(report_html(read_run(poisoned_run(original, tmp_path / "harmless", HARMLESS))))


def test_payloads_are_shown_as_text_and_change_no_element(original, tmp_path):
    harmless = harmless_page(original, tmp_path)
    assert len(harmless.found) > 300  # all the sections are there
    for number, payload in enumerate(PAYLOADS[::SAMPLE]):
        check(original, tmp_path / str(number), payload, harmless)


@pytest.mark.slow
def test_each_of_the_hundred_payloads_is_shown_as_text_and_changes_no_element(original, tmp_path):
    assert len(PAYLOADS) >= 100
    harmless = harmless_page(original, tmp_path)
    for number, payload in enumerate(PAYLOADS):
        check(original, tmp_path / str(number), payload, harmless)


def test_the_sections_of_a_notebook_are_escaped_as_well(original, tmp_path):
    harmless = poisoned_run(original, tmp_path / "harmless", HARMLESS)
    hostile = poisoned_run(original, tmp_path / "hostile", PAYLOADS[0])
    for name in SECTIONS:
        assert Elements(section_html(hostile, name)).found == Elements(section_html(harmless, name)).found


def test_the_content_policy_allows_the_style_sheet_of_the_page_and_nothing_else(original, tmp_path):
    page = report_html(read_run(original))
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', page)
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)
    assert policy
    assert style
    assert policy.start() < style.start()
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    rules = dict(rule.strip().split(" ", 1) for rule in policy[1].replace("&#39;", "'").split(";"))
    assert rules == {
        "default-src": "'none'",
        "style-src": f"'sha256-{digest}'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    assert " style=" not in page


def test_the_comparison_notices_an_element_that_gets_through(original, tmp_path):
    harmless = harmless_page(original, tmp_path)
    page = report_html(read_run(original)).replace("<footer>", "<footer><script>alert(1)</script>")
    assert Elements(page).found != harmless.found
