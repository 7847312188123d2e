"""The guard of a training by a recipe: rows of a later split that an earlier one has too, or whose group it has.

Splits that regraft cuts itself have none. `regraft audit` finds near duplicates, and copies of images, as well.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np

from regraft.data.dataset import Dataset
from regraft.data.splits import units_of_inputs
from regraft.phases.audit.leakage import CHECKED, leakage_findings
from regraft.phases.audit.parts import Part, parts_of


def leaks(dataset: Dataset) -> list[str]:
    """A sentence for each two given splits that share inputs or groups, or whose times overlap."""
    parts = tuple(part for part in parts_of(dataset) if part.name in CHECKED)
    if len(parts) < 2:
        return []
    shared = [said for earlier, later in combinations(parts, 2) for said in _shared(earlier, later, dataset)]
    return [
        f"warning: {said}" for said in [*shared, *(finding.message for finding in leakage_findings(parts, dataset))]
    ]


def _shared(earlier: Part, later: Part, dataset: Dataset) -> list[str]:
    """Rows of the later split whose inputs stand in the earlier one."""
    columns = [name for name in dataset.schema.inputs if name in earlier.split.column_names]
    if not columns or set(columns) - set(later.split.column_names):
        return []
    tables = [table for part in (earlier, later) for _, table in part.batches(columns)]
    if len({table.schema for table in tables}) > 1:
        return []  # columns of other types: the audit compares those as text
    leaders = units_of_inputs(batch for table in tables for batch in table.to_batches())
    count = 0 if leaders is None else int(np.count_nonzero(leaders[len(earlier) :] < len(earlier)))
    if not count:
        return []
    return [
        f"{count:,} of {len(later):,} rows in {later.name} ({count / len(later):.1%}) stand in {earlier.name} with the same "
        f"inputs, so scores on {later.name} are too good; drop them from {earlier.name}"
    ]
