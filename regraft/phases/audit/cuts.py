"""Findings about the cuts that regraft made itself: near copies that came to stand on both sides of one.

Equal inputs are kept on one side when a split is cut, so exact copies never straddle it; near ones can.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from regraft.data.dataset import Dataset
from regraft.phases.audit.parts import Part, index_of, places
from regraft.phases.findings import Finding


def cut_findings(dataset: Dataset, parts: Sequence[Part], findings: Sequence[Finding]) -> list[Finding]:
    """For each file that was cut, the held-out rows with a near copy in another split; `findings` are those about duplicates."""
    out = []
    for part in parts:
        pieces = [name for name, split in dataset.splits.items() if split.file == part.split.file]
        near = [
            f for f in findings if f.kind == "near-duplicate" and f.split == part.name and f.file == part.split.file
        ]
        if len(pieces) < 2 or not near:
            continue
        side = np.full(len(part), -1)
        for number, name in enumerate(pieces):
            side[places(part, dataset.splits[name])] = number
        here = np.concatenate([index_of(part, f.rows) for f in near])
        there = np.concatenate([index_of(part, tuple(r["row"] for r in f.related)) for f in near])
        parted = (side[here] != side[there]) & (side[here] >= 0) & (side[there] >= 0)
        held = np.concatenate([here[parted], there[parted]])
        other = np.concatenate([there[parted], here[parted]])
        kept = side[held] != pieces.index(part.name) if part.name in pieces else np.ones(len(held), dtype=bool)
        rows, first = np.unique(held[kept], return_index=True)
        if len(rows):
            cut = " and ".join(name for name in pieces if name != part.name)
            message = (
                f"{len(rows):,} rows that were cut off {part.name} for {cut} have a near copy left on the other side "
                "(exact copies are kept together), so scores on them are a little too good; drop the copies or give --group"
            )
            related = [(part, int(row)) for row in other[kept][first]]
            out.append(part.finding("near-duplicate-across-cut", "info", message, rows, related=related))
    return out
