"""What the audit says: findings that name their rows, and the report that holds them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Severity = Literal["error", "warning", "info"]
AUDIT_FORMAT = "regraft.audit/1"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong or odd with the data, and every row it concerns.

    `rows` are 0-based data rows in file order (`file` says which file), or file names relative to the data set for images.
    `related` stands beside `rows`, entry for entry, where a row points to another one (the original of a duplicate).
    """

    kind: str
    severity: Severity
    message: str  # one sentence with the numbers, ending in what to do
    split: str | None = None
    file: str | None = None
    column: str | None = None
    rows: tuple[int | str, ...] = ()
    related: tuple[dict[str, Any], ...] = ()  # {"split", "row"} of the row each entry of `rows` points to
    suggested: tuple[str, ...] = ()  # beside `rows`: the suggested label, for label errors

    def to_json(self) -> dict[str, Any]:
        """Plain JSON without the empty fields, except `rows` which is always there."""
        out: dict[str, Any] = {
            "kind": self.kind,
            "severity": self.severity,
            "split": self.split,
            "rows": list(self.rows),
            "message": self.message,
        }
        optional = {
            "file": self.file,
            "column": self.column,
            "related": list(self.related),
            "suggested": list(self.suggested),
        }
        return out | {key: value for key, value in optional.items() if value}


@dataclass(frozen=True, kw_only=True)
class AuditReport:
    """All findings, and the facts about the data that later phases and the report use."""

    findings: tuple[Finding, ...]
    facts: Mapping[str, Any] = field(
        default_factory=dict
    )  # rows and classes per split, lengths, detection sentences, samples stated

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that stop the path unless told otherwise."""
        return tuple(f for f in self.findings if f.severity == "error")

    def to_json(self) -> dict[str, Any]:
        """The content of audit.json."""
        return {"format": AUDIT_FORMAT, "findings": [f.to_json() for f in self.findings], "facts": dict(self.facts)}


def audit_from_json(content: Mapping[str, Any]) -> AuditReport:
    """The report that `AuditReport.to_json` wrote."""
    findings = tuple(
        Finding(
            kind=entry["kind"],
            severity=entry["severity"],
            message=entry["message"],
            split=entry.get("split"),
            file=entry.get("file"),
            column=entry.get("column"),
            rows=tuple(entry["rows"]),
            related=tuple(entry.get("related", ())),
            suggested=tuple(entry.get("suggested", ())),
        )
        for entry in content["findings"]
    )
    return AuditReport(findings=findings, facts=content["facts"])
