"""The measured tables of README.md, written between their markers from benchmarks/results/*.json and the catalogue.

python benchmarks/readme_tables.py            rewrite README.md

A table stands between `<!-- table: NAME -->` and `<!-- end of table -->`. Figures are never typed by hand.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
README = ROOT / "README.md"
MARKED = re.compile(r"(<!-- table: (?P<name>\w+) -->\n).*?(<!-- end of table -->)", re.DOTALL)
UNMEASURED = "Not measured yet; `make bench` does it.\n"


def results(name: str) -> Any:
    """What a benchmark wrote, or None before it was run."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def table(header: list[str], rows: list[list[str]], *, numbers_from: int) -> str:
    """A Markdown table; the columns from `numbers_from` on are aligned to the right."""
    rule = ["---" if column < numbers_from else "---:" for column in range(len(header))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [header, rule, *rows]) + "\n"


def number(value: float | None, digits: int = 3) -> str:
    """A value with fixed digits, or a dash where there is none."""
    return "–" if value is None else f"{value:,.{digits}f}"


def main_job() -> str:
    """The main job on each data set: both probes, the winner, its calibration error and what it cost."""
    found = results("main_job")
    if found is None:
        return UNMEASURED
    rows = []
    for run in found["runs"] if isinstance(found, dict) else found:
        scores = [number(run.get(key)) for key in ("last_layer_probe", "probe", "final", "ece")]
        seconds = [number(run.get(key), 0) for key in ("probe_seconds", "seconds")]
        rows.append([run["data"], run.get("model") or "–", run["metric"], run["winner"], *scores, *seconds])
    header = [
        "data",
        "model",
        "metric",
        "winner",
        "last-layer probe",
        "probe of all depths",
        "final",
        "ECE",
        "s to probe",
        "s in all",
    ]
    return table(header, rows, numbers_from=4)


def audit_recall() -> str:
    """Recall of planted defects and precision of everything reported, for each set."""
    found = results("audit_recall")
    if found is None:
        return UNMEASURED
    rows = []
    for name, result in found["sets"].items():
        kinds = result["recall"]
        whole = [kind for kind, count in kinds.items() if count["found"] == count["planted"]]
        missed = [f"{kind} {count['found']}/{count['planted']}" for kind, count in kinds.items() if kind not in whole]
        planted, hit = (sum(count[key] for count in kinds.values()) for key in ("planted", "found"))
        incomplete = ", ".join(missed).replace("_", " ") or "none"
        rows.append(
            [name, incomplete, f"{hit} of {planted}", number(result["precision"], 2), number(result["seconds"], 1)]
        )
    return table(["data", "kinds not found in full", "defects found", "precision", "seconds"], rows, numbers_from=2)


def techniques() -> str:
    """Every technique of the catalogue with the first sentence of its docstring."""
    from regraft.config.catalogue import CATALOGUE, find

    rows = []
    for name in sorted(CATALOGUE["technique"]):
        first = (inspect.getdoc(find("technique", name)) or "").partition("\n\n")[0]
        rows.append([f"[{name}](docs/techniques/{name}.md)", " ".join(first.split())])
    return table(["name", "what it does"], rows, numbers_from=2)


TABLES: dict[str, Callable[[], str]] = {"main_job": main_job, "audit_recall": audit_recall, "techniques": techniques}


def rendered(readme: str) -> str:
    """A README with every marked table as the results and the catalogue have it now."""
    return MARKED.sub(lambda found: f"{found[1]}\n{TABLES[found['name']]()}\n{found[3]}", readme)


if __name__ == "__main__":
    README.write_text(rendered(README.read_text(encoding="utf-8")), encoding="utf-8")
