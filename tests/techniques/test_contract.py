"""Every technique of the table keeps the contract."""

from __future__ import annotations

from techniques.cases import ROWS

from regraft.testing import TechniqueContract

for case in ROWS:
    globals()[f"Test{case.name}"] = type(f"Test{case.name}", (TechniqueContract,), {"case": case})
