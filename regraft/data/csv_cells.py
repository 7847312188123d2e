"""Cells of the CSV files that regraft writes for people: nothing in them is a formula when a spreadsheet opens them.

Predictions and findings hold text from data, which a stranger may have written. An apostrophe before such a cell makes it
text in every spreadsheet program. Cleaned copies of the user's own data are not changed in this way: they are read again, by
regraft or anything else, and must hold the same values as the original.
"""

from __future__ import annotations

import re

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")  # the last four are full width
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


def harmless(cell: object) -> object:
    """A cell as it is written: text that a spreadsheet would run, with an apostrophe before it; numbers as they are.

    >>> [harmless(cell) for cell in ("=1+1", "-1.5", "plain", -2)]
    ["'=1+1", '-1.5', 'plain', -2]
    """
    if not isinstance(cell, str) or not cell.startswith(FORMULA) or NUMBER.fullmatch(cell):
        return cell
    return f"'{cell}"
