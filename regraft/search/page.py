"""search.html: one self-contained page about a finished search, without scripts and without any request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from regraft.config.secrets import redact
from regraft.core.files import replace_file
from regraft.phases.report.document import environment, style_hash, stylesheet
from regraft.phases.report.figures import Line, line_chart
from regraft.phases.report.words import decimal, percent, scaled, seconds, short, whole
from regraft.search.figures import Axis, against, axis_of, parallel
from regraft.search.results import compared
from regraft.search.space import Choice, Given, Range, Space

TEMPLATE = "search.html"


def write_page(path: Path, result: Mapping[str, Any], space: Space) -> None:
    """Write the page of a result as it stands in search.json; an earlier one is replaced in one step."""
    page = environment().get_template(TEMPLATE)
    content = page.render(v=view(result, space), css=stylesheet(), style_hash=style_hash())
    replace_file(path, redact(content).encode())


def view(result: Mapping[str, Any], space: Space) -> dict[str, Any]:
    """What the template shows."""
    trials, best, cost = result["trials"], result["best"], result["cost"]
    metric = result["metric"]
    whose = "Validation score" if metric == "score" else "Validation loss"
    found = {trial["trial"]: trial[metric] for trial in trials if trial[metric] is not None}
    return {
        "title": f"{result['method']} over {len(result['fields'])} {'field' if len(result['fields']) == 1 else 'fields'}",
        "meta": f"{cost['trials']} trials, {cost['legs']} legs" + ("" if result["over"] else " · not over yet"),
        "tiles": _tiles(result, whose),
        "picked": [(name, shown(value)) for name, value in best["values"].items()],
        "progress": _progress(result["progress"], whose),
        "parallel": parallel(
            trials, _axes(trials, space, result["importance"].get("fields", {})), found, best=best["trial"], name=metric
        ),
        "importance": _importance(result["importance"]),
        "importance_note": _importance_note(result["importance"]),
        "pareto": _pareto(trials, result["pareto"], metric, whose),
        "fidelities": [
            {
                "low": percent(f["low"]),
                "high": percent(f["high"]),
                "trials": f["trials"],
                "spearman": decimal(f["spearman"], 2),
            }
            for f in result["fidelities"]
        ],
        "metric": metric,
        "trials": [_trial(trial, best["trial"], metric) for trial in trials],
    }


def _tiles(result: Mapping[str, Any], whose: str) -> list[dict[str, str]]:
    best, cost = result["best"], result["cost"]
    part = "at full training" if best["share"] == 1 else f"after {percent(best['share'])} of its training"
    lost = f"{cost['workers_lost']} lost workers" if cost["workers_lost"] else "no worker was lost"
    return [
        {"name": whose, "value": decimal(best[result["metric"]], 4), "note": f"trial {best['trial']}, {part}"},
        {"name": "Trials", "value": whole(cost["trials"]), "note": f"{cost['failed']} failed; {lost}"},
        {"name": "Epochs", "value": decimal(cost["epochs"], 1), "note": "passes over the training rows, all trials"},
        {"name": "Time", "value": seconds(cost["seconds"]), "note": "of all trials together"},
    ]


def _progress(by_share: Sequence[Mapping[str, Any]], whose: str) -> Markup:
    """Staircases, one for each fidelity: a result stands until a better one comes."""
    lines: list[Line] = []
    for each in by_share:
        points = each["points"]
        stairs: list[tuple[float, float]] = []
        for x, y in points:
            if stairs:
                stairs.append((x, stairs[-1][1]))
            stairs.append((x, y))
        last = each is by_share[-1]
        name = "all steps" if each["share"] == 1 else f"{percent(each['share'], 0)} of them"
        marks = [(x, y) for x, y in points[:-1]] if last else []
        lines.append(Line(name=name, points=stairs, marks=marks, kind="main" if last else "faint"))
    points = by_share[-1]["points"]
    said = f"{whose} went from {points[0][1]:.4g} to {points[-1][1]:.4g} in {points[-1][0]:.4g} epochs."
    return line_chart(lines, x_label="Epochs of all trials", y_label=whose, described=said)


def _axes(trials: Sequence[Mapping[str, Any]], space: Space, parts: Mapping[str, float]) -> list[Axis]:
    """The axes of all fields that a trial has, those that matter most first."""
    domains: dict[str, Range | Choice] = {}
    for trial in trials:
        domains |= space.recorded(Given(trial["drawn"])).domains
    order = sorted(domains, key=lambda name: -parts.get(name, -1.0))
    return [axis_of(name, domains[name]) for name in order]


def _importance(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    parts = found.get("fields", {})
    return [
        {"name": name, "share": part, "value": percent(part)}
        for name, part in sorted(parts.items(), key=lambda p: -p[1])
    ]


def _importance_note(found: Mapping[str, Any]) -> str:
    if not found:
        return ""
    where = f"{found['trials']} trials at {percent(found['share'])} of their training"
    return f"fANOVA over {where}; fields that only some options have are left out."


def _pareto(trials: Sequence[Mapping[str, Any]], front: Sequence[int], metric: str, whose: str) -> list[Markup]:
    points = compared(trials, metric)
    if not points:
        return []
    size = {number: (trained, value) for number, (value, trained, _) in points.items()}
    time = {number: (latency, value) for number, (value, _, latency) in points.items()}
    return [
        against(size, front, x_label="Trained parameters", y_label=whose),
        against(time, front, x_label="Latency of one prediction, ms", y_label=whose),
    ]


def _trial(trial: Mapping[str, Any], best: int, metric: str) -> dict[str, Any]:
    failed = trial["state"] == "FAIL"
    state = "failed" if failed else "trained" if trial["share"] == 1 else "ended early"
    return {
        "number": trial["trial"],
        "best": trial["trial"] == best,
        "state": "best" if trial["trial"] == best else state,
        "badge": "good" if trial["trial"] == best else "error" if failed else "info",
        "result": decimal(trial[metric], 4),
        "share": percent(trial["share"]),
        "epochs": decimal(trial["epochs"], 1),
        "seconds": seconds(trial["seconds"]),
        "trained": scaled(trial["trained"], ""),
        "latency": "–" if trial["latency_ms"] is None else f"{decimal(trial['latency_ms'], 2)} ms",
        "picked": "; ".join(f"{name.rpartition('.')[2]} {shown(value)}" for name, value in trial["values"].items()),
        "reason": short(trial["reason"], 300),
    }


def shown(value: Any) -> str:
    """A value on one line, numbers with four digits."""

    def rounded(node: Any) -> Any:
        if isinstance(node, float):
            return float(f"{node:.4g}")
        if isinstance(node, dict):
            return {key: rounded(item) for key, item in node.items()}
        return [rounded(item) for item in node] if isinstance(node, list) else node

    dumped = yaml.safe_dump(rounded(value), default_flow_style=True, width=10_000, allow_unicode=True)
    return dumped.removesuffix("\n").removesuffix("...").strip()
