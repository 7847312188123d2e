"""`report.html`: the sections of a run as one self-contained page, without scripts and without any request.

Each section is a function of the run's files in `story`, `quality` or `upkeep` and a macro of the same name in
`sections.html`. A section that has nothing to show is one line that says why.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, UndefinedError
from markupsafe import Markup, escape

from regraft.errors import RunError, suggest
from regraft.phases.report import quality, story, upkeep
from regraft.phases.report.read import UNEXPECTED_FORM, Absent, RunFiles, read_run
from regraft.phases.report.words import clean

HERE = Path(__file__).parent
SECTIONS: Mapping[str, tuple[str, str, Callable[[RunFiles], dict[str, Any]]]] = {  # link, heading, view
    "summary": ("Summary", "Summary", story.summary),
    "audit": ("Data", "What the audit found", story.audit),
    "tried": ("Candidates", "What was tried, and why this won", story.tried),
    "height": ("Height", "Grafting height", story.height),
    "curves": ("Curves", "Learning curves", story.curves),
    "confusion": ("Confusion", "What is taken for what", quality.confusion),
    "classes": ("Classes", "Class by class", quality.classes),
    "reliability": ("Reliability", "Can the probabilities be believed?", quality.reliability),
    "examples": ("Examples", "Hardest and slowest examples", quality.examples),
    "ledger": ("Cost", "What it cost", upkeep.ledger),
    "notes": ("Warnings", "Fallbacks and warnings", upkeep.notes),
    "use": ("Use", "Load and use the model", upkeep.use),
    "reproduce": ("Repeat", "Do it again", upkeep.reproduce),
    "limits": ("Limits", "Limits", upkeep.limits),
}


def write_report(run: Path) -> Path:
    """Path of `report.html`, written from the JSON files of a run directory; an earlier one is replaced in one step."""
    target = run / "report.html"
    page = report_html(read_run(run))
    draft = run / ".report.html.part"
    draft.write_text(page, encoding="utf-8")
    os.replace(draft, target)
    return target


def report_html(run: RunFiles) -> str:
    """The whole page."""
    sections = [(name, link, heading, section(run, name)) for name, (link, heading, _) in SECTIONS.items()]
    return (
        environment()
        .get_template("report.html")
        .render(
            title=story.title(run),
            css=stylesheet(),
            sections=sections,
            run=run.path.resolve().name,
            created=run.manifest.get("created"),
            version=run.manifest.get("regraft"),
        )
    )


def section_html(run: Path, name: str) -> str:
    """One section as a piece of HTML with its own styles, for a notebook; `name` is a key of `SECTIONS`."""
    if name not in SECTIONS:
        raise RunError(f"report: no section is called {name!r}{suggest(name, SECTIONS)}")
    body = section(read_run(run), name)
    return Markup('<style>{}</style><div class="regraft"><section><h2>{}</h2>{}</section></div>').format(
        stylesheet(), SECTIONS[name][1], body
    )


def section(run: RunFiles, name: str) -> Markup:
    """The content of one section, or the line that says why it is left out."""
    try:
        view = SECTIONS[name][2](run)
        return Markup(getattr(environment().get_template("sections.html").module, name)(view))
    except Absent as reason:
        return _left_out(str(reason))
    except (*UNEXPECTED_FORM, UndefinedError) as error:
        return _left_out(f"a file of the run has not the expected form ({type(error).__name__}: {error}).")


def _left_out(reason: str) -> Markup:
    """The line in place of a section."""
    return Markup('<p class="absent">Left out: {}</p>').format(clean(reason))


def stylesheet() -> Markup:
    """The style sheet; it is part of the package, so it is trusted."""
    return Markup((HERE / "report.css").read_text(encoding="utf-8"))


@cache
def environment() -> Environment:
    """Jinja with every value escaped and cleaned, and a misspelt name an error; made once, so templates compile once."""
    made = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) else clean(value),
    )
    made.filters["soft"] = lambda value: escape(clean(value)).replace("_", Markup("_<wbr>"))
    return made
