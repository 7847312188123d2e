"""A demonstration as Markdown with pictures beside it, and as one HTML page."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup, escape

from regraft.phases.lab.parts import Chart, Demonstration, Surface, Table
from regraft.phases.report.contours import contour_chart, legend, legend_height
from regraft.phases.report.document import stylesheet
from regraft.phases.report.figures import HEIGHT, Frame, Line, dot, figure, padded

COLOURS = ("#2862a8", "#c8701f", "#1f7a4d", "#8a4fa3", "#b3372f", "#5a6775")
STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#5a6775}.grid{stroke:#dde2e8}.axis{stroke:#9aa8b8}"
    ".line{fill:none;stroke-width:2;stroke-linejoin:round}.contour{stroke:#c3ccd6;stroke-width:1}"
    + "".join(
        f".figure .line.c{k}{{stroke:{c}}}.figure .dot.c{k},.figure .label.c{k}{{fill:{c}}}"
        for k, c in enumerate(COLOURS)
    )
)


def picture(part: Chart | Surface) -> Markup:
    """The SVG element of a chart, with its own styles, so that it can stand alone."""
    drawn = _surface(part) if isinstance(part, Surface) else _lines(part)
    head, _, rest = drawn.partition(">")
    styled = Markup('{} xmlns="http://www.w3.org/2000/svg"><style>{}</style>').format(Markup(head), Markup(STYLE))
    return styled + Markup('<rect width="100%" height="100%" fill="#fff"/>') + Markup(rest)


def _surface(part: Surface) -> Markup:
    described = f"{part.title}: lines of equal height, and the paths of {_listed(part.paths)}"
    return contour_chart(
        part.grid, x=part.x, y=part.y, x_label="x", y_label="y", described=described, paths=part.paths, mark=part.lowest
    )


def _lines(part: Chart) -> Markup:
    """As the report's line chart, with a legend of any length below it."""
    xs = [x for line in part.lines for x, _ in line.points]
    ys = [y for line in part.lines for _, y in line.points]
    frame = Frame((min(xs), max(xs)), padded(min(ys), max(ys)))
    parts = frame.axes(part.x_label, part.y_label)
    for line in part.lines:
        points = " ".join("{:.0f},{:.0f}".format(*frame.at(*point)) for point in line.points)
        parts.append(Markup('<polyline points="{}" class="line {}"/>').format(points, line.kind))
        parts += [dot(*frame.at(*mark), line.kind) for mark in line.marks]
    shown = part.lines if len(part.lines) > 1 else ()
    described = f"{part.title}: {part.y_label} over {part.x_label} of {_listed(part.lines)}"
    return figure([*parts, *legend(shown)], described=described, height=HEIGHT + legend_height(shown))


def _listed(lines: Sequence[Line]) -> str:
    return ", ".join(line.name for line in lines)


def pictures(name: str, made: Demonstration) -> dict[str, str]:
    """File name -> SVG of every picture that is the same in each run."""
    kept = [part for part in made.charts if isinstance(part, Surface) or not part.measured]
    return {f"{name}-{number}.svg": f"{picture(part)}\n" for number, part in enumerate(kept, 1)}


def markdown(name: str, made: Demonstration) -> str:
    """The page of a demonstration, without what differs from run to run."""
    lines = [f"# {made.title}", "", made.about, "", "```console", f"$ regraft lab {name}", "```", ""]
    lines += [f"- {finding}" for finding in made.findings]
    lines += ["- What was measured on your machine is in the output of the command."] if made.measured else []
    for table in made.tables:
        lines += ["", *_markdown_table(table)] if not table.measured else []
    kept = [part for part in made.charts if isinstance(part, Surface) or not part.measured]
    for number, part in enumerate(kept, 1):
        lines += ["", f"![{part.title}](images/{name}-{number}.svg)"]
    lines += ["", "In a recipe:", "", "```yaml", made.recipe, "```"] if made.recipe else []
    return "\n".join([*lines, ""])


def _markdown_table(table: Table) -> list[str]:
    head = f"| {' | '.join(table.columns)} |"
    return [head, "|" + "---|" * len(table.columns), *(f"| {' | '.join(row)} |" for row in table.rows)]


def html(made: Demonstration) -> str:
    """One self-contained page with everything, also what was measured; no scripts, nothing loaded."""
    parts = [Markup("<h1>{}</h1><p>{}</p><ul>").format(made.title, made.about)]
    parts += [Markup("<li>{}</li>").format(each) for each in (*made.findings, *made.measured)]
    parts.append(Markup("</ul>"))
    for table in made.tables:
        head = Markup("").join(Markup("<th>{}</th>").format(each) for each in table.columns)
        rows = [Markup("").join(Markup("<td>{}</td>").format(cell) for cell in row) for row in table.rows]
        body = Markup("").join(Markup("<tr>{}</tr>").format(row) for row in rows)
        parts.append(Markup("<table><thead><tr>{}</tr></thead><tbody>{}</tbody></table>").format(head, body))
    parts += [Markup("<h3>{}</h3><figure>{}</figure>").format(part.title, picture(part)) for part in made.charts]
    parts += [Markup("<p>In a recipe:</p><pre>{}</pre>").format(made.recipe)] if made.recipe else []
    head = f'<meta charset="utf-8"><title>{escape(made.title)}</title><style>{stylesheet()}</style>'
    body = Markup('<body class="regraft page">{}</body>').format(Markup("").join(parts))
    return f'<!doctype html><html lang="en"><head>{head}</head>{body}</html>\n'
