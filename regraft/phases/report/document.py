"""`report.html`: the sections of a run as one self-contained page, without scripts and without any request.

Each section is a function of the run's files in `story`, `quality` or `upkeep` and a macro of the same name in
`sections.html`. One that has nothing to show becomes a line at the end that says why.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, UndefinedError
from markupsafe import Markup, escape

from regraft.config.secrets import redact
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
    "reliability": ("Reliability", "Can the stated certainty be believed?", quality.reliability),
    "forgetting": ("Forgetting", "What was forgotten", quality.forgetting),
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
    page = redact(report_html(read_run(run)))
    draft = run / ".report.html.part"
    draft.write_text(page, encoding="utf-8")
    os.replace(draft, target)
    return target


def report_html(run: RunFiles) -> str:
    """The whole page: the sections that have something to show, then the others with the reason why they have not."""
    shown, left_out = [], []
    for name, (link, heading, _) in SECTIONS.items():
        body, reason = section(run, name)
        if body is None:
            left_out.append((name, heading, reason))
        else:
            shown.append((name, link, heading, body))
    page = environment().get_template("report.html")
    return page.render(
        title=story.title(run),
        css=stylesheet(),
        style_hash=style_hash(),
        sections=shown,
        left_out=left_out,
        run=run.path.resolve().name,
        created=run.manifest.get("created"),
        version=run.manifest.get("regraft"),
    )


def section_html(run: Path, name: str) -> str:
    """One section as a piece of HTML with its own styles, for a notebook; `name` is a key of `SECTIONS`."""
    if name not in SECTIONS:
        raise RunError(f"report: no section is called {name!r}{suggest(name, SECTIONS)}")
    body, reason = section(read_run(run), name)
    if body is None:
        body = Markup('<p class="absent">Left out: {}</p>').format(clean(reason))
    return Markup('<style>{}</style><div class="regraft"><section><h2>{}</h2>{}</section></div>').format(
        stylesheet(), SECTIONS[name][1], body
    )


def section(run: RunFiles, name: str) -> tuple[Markup | None, str]:
    """The content of one section and an empty reason, or None and the sentence that says why it is left out."""
    try:
        view = SECTIONS[name][2](run)
        return Markup(getattr(environment().get_template("sections.html").module, name)(view)), ""
    except Absent as reason:
        return None, str(reason)
    except (*UNEXPECTED_FORM, UndefinedError) as error:
        return None, f"A file of the run has not the expected form ({type(error).__name__}: {error})."


def stylesheet() -> Markup:
    """The style sheet; it is part of the package, so it is trusted."""
    return Markup((HERE / "report.css").read_text(encoding="utf-8"))


def style_hash() -> Markup:
    """The sha256 of the style sheet in base 64: the page's content policy lets a browser use this one and no other."""
    digest = hashlib.sha256(str(stylesheet()).encode()).digest()
    return Markup(base64.b64encode(digest).decode())


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
