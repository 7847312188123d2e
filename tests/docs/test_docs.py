"""The documentation does what it says: code runs, recipes parse, commands exist, links lead somewhere.

A block that needs more than seconds stands below the comment `<!-- slow -->`; it is run by `make test-all`.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md"), *ROOT.glob("examples/**/*.md")]
)
SLOW = "<!-- slow -->"
FENCE = re.compile(r"(?P<slow><!-- slow -->\n+)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and the line of the page its text begins at."""

    language: str
    text: str
    line: int
    slow: bool


def blocks(page: Path, *languages: str) -> list[Block]:
    """The fenced blocks of a page in these languages, in order."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(found["language"], found["text"], text[: found.start("text")].count("\n"), bool(found["slow"]))
        for found in FENCE.finditer(text)
        if found["language"] in languages
    ]


def pages_with(*languages: str, slow: bool = False) -> list:
    """Pages that have such a block, as pytest parameters; with `slow`, those with a slow one."""
    chosen = [page for page in PAGES if any(block.slow == slow for block in blocks(page, *languages))]
    return [pytest.param(page, id=str(page.relative_to(ROOT))) for page in chosen]


def run_blocks(page: Path, chosen: list[Block]) -> None:
    """Run Python blocks one after another in one namespace; an error names the page and the line."""
    namespace: dict[str, object] = {"__name__": page.stem}
    for block in chosen:
        padded = "\n" * block.line + block.text  # so that a traceback shows the line of the page
        exec(compile(padded, str(page), "exec"), namespace)


@pytest.mark.parametrize("page", pages_with("python"))
def test_the_python_of_a_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REGRAFT_CACHE", str(tmp_path / "cache"))
    run_blocks(page, [block for block in blocks(page, "python") if not block.slow])


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", pages_with("python", slow=True))
def test_the_slow_python_of_a_page_runs_too(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REGRAFT_CACHE", str(tmp_path / "cache"))
    run_blocks(page, blocks(page, "python"))


@pytest.mark.parametrize("page", pages_with("yaml"))
def test_the_recipes_of_a_page_parse(page):
    from regraft.config.recipe import recipe_from_tree

    least = {"data": {"main": {"path": "wine"}}, "models": {"main": {}}}  # what a fragment leaves out
    for block in blocks(page, "yaml"):
        tree = yaml.safe_load(block.text)
        merged = {key: entry | tree.get(key, {}) for key, entry in least.items()}
        recipe_from_tree(tree | merged, where=f"{page.name}:{block.line}")


def command_lines(page: Path) -> list[tuple[int, list[str]]]:
    """(line of the page, words) of every `regraft ...` command in the page's shell blocks."""
    found = []
    for block in blocks(page, "console", "bash", "sh", "shell"):
        joined = re.sub(r" *\\\n\s*", " ", block.text)
        for line in joined.splitlines():
            for part in re.split(r"\||&&|;|[12]?>", line.removeprefix("$ ")):
                words = shlex.split(part, comments=True)
                if words[:1] == ["regraft"]:
                    found.append((block.line, words))
    return found


def refusal(words: list[str], root) -> str | None:
    """What is wrong with a command line by the command tree, or None. Only names are looked at, no values."""
    command, rest = root, words[1:]
    while getattr(command, "commands", None) and rest and not rest[0].startswith("-"):
        if rest[0] not in command.commands:
            return f"no command is called {rest[0]!r}"
        command, rest = command.commands[rest[0]], rest[1:]
    known = {name for option in command.params for name in (*option.opts, *option.secondary_opts)} | {"--help"}
    for word in rest:
        name = word.partition("=")[0]
        if re.fullmatch(r"--?[a-zA-Z][\w-]*", name) and name not in known:
            return f"{' '.join(words[:2])} has no option {name}"
    return None


@pytest.fixture(scope="module")
def command_tree():
    """The command line of regraft as click objects."""
    if importlib.util.find_spec("regraft.cli.app") is None:
        pytest.skip("the command line is not there yet")
    from typer.main import get_command

    from regraft.cli.app import app

    return get_command(app)


@pytest.mark.parametrize(
    "page", [page for page in PAGES if command_lines(page)], ids=lambda page: str(page.relative_to(ROOT))
)
def test_the_commands_of_a_page_and_their_options_exist(page, command_tree):
    for line, words in command_lines(page):
        assert refusal(words, command_tree) is None, f"{page.name}:{line}: {shlex.join(words)}"


def test_a_command_or_option_that_does_not_exist_is_noticed(command_tree):
    assert "adpat" in (refusal(["regraft", "adpat", "data.csv"], command_tree) or "")
    assert "--modle" in (refusal(["regraft", "adapt", "data.csv", "--modle", "x"], command_tree) or "")


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as Markdown renderers make them."""
    prose = FENCE.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ +(.*)$", prose, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page):
    for target in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue  # an address elsewhere
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f"{page.name} links to {target}"
        assert linked.is_relative_to(ROOT), f"{page.name} links out of the repository: {target}"
        if anchor and linked.suffix == ".md":
            assert anchor in anchors(linked), f"{page.name} links to {target}"


def test_every_page_can_be_reached_from_the_index():
    index = ROOT / "docs" / "index.md"
    reached, waiting = {index}, [index]
    while waiting:
        page = waiting.pop()
        for target in LINK.findall(page.read_text(encoding="utf-8")):
            linked = (page.parent / target.partition("#")[0]).resolve()
            if linked.suffix == ".md" and linked.exists() and linked not in reached:
                reached.add(linked)
                waiting.append(linked)
    missed = set(ROOT.glob("docs/**/*.md")) - reached
    assert not missed, f"docs/index.md does not lead to {sorted(page.name for page in missed)}"


def test_the_reference_pages_say_what_the_docstrings_say():
    from docs.build_reference import stale

    assert stale() == [], "run: make docs"


def test_a_changed_reference_page_is_noticed(tmp_path):
    from docs.build_reference import pages, stale

    for path, text in pages().items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text, encoding="utf-8")
    assert stale(tmp_path) == []
    (tmp_path / "techniques" / "LoRA.md").write_text("# LoRA\n", encoding="utf-8")
    (tmp_path / "techniques" / "Gone.md").write_text("# Gone\n", encoding="utf-8")
    assert stale(tmp_path) == ["techniques/Gone.md", "techniques/LoRA.md"]


@pytest.mark.parametrize("family", ["technique", "optimizer", "schedule", "network", "method"])
def test_every_name_of_the_catalogue_has_its_page_or_section(family):
    from docs.build_reference import pages
    from regraft.config.catalogue import CATALOGUE

    written = pages()
    for name in CATALOGUE[family]:
        page = written[f"techniques/{name}.md"] if family == "technique" else written[f"{family}s.md"]
        assert re.search(rf"^##? {name}$", page, flags=re.MULTILINE)
        if family == "technique":
            assert "**Use it when**" in page, f"{name}: the docstring does not say when to use it"
            assert "**Not**" in page, f"{name}: the docstring does not say when not to use it"


def test_the_measured_tables_are_those_of_the_results(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from readme_tables import PAGES, rendered

    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert rendered(text) == text, f"{page.name}: run `make docs`"
