"""All rules of advice over one recipe."""

from __future__ import annotations

from collections.abc import Sequence

from regraft.config.recipe import RecipeSpec
from regraft.phases.advice import batches, examples, freezing, rates, updates
from regraft.phases.advice.situation import Finding, Rule, Situation, situation
from regraft.phases.build import assemble
from regraft.phases.resolve import resolved

RULES: tuple[Rule, ...] = (*rates.RULES, *updates.RULES, *batches.RULES, *examples.RULES, *freezing.RULES)


def advise(seen: Situation) -> list[Finding]:
    """What the rules find, warnings first."""
    found = [finding for rule in RULES for finding in rule(seen)]
    return sorted(found, key=lambda finding: (finding.severity != "warning", finding.code))


def lint(spec: RecipeSpec) -> list[Finding]:
    """Advice on a recipe to train; its data and models are opened, and nothing is trained.

    Raises:
        ConfigError, DataError, ModelError, Conflict: as `regraft train` would for the same recipe.
    """
    return advise(situation(assemble(resolved(spec))))


def sentences(findings: Sequence[Finding]) -> list[str]:
    """Each finding in a line: `warning: RATE1, techniques: reason; fix (source)`."""
    return [f"{f.severity}: {f.code}, {f.where}: {f.reason}; {f.fix} ({f.source})" for f in findings]
