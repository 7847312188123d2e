"""Every error a person can cause: one sentence that names the thing, what it must be, what it got and the way out.

None of these derives from ValueError: pydantic catches a ValueError raised inside a validator and buries it in its own message.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class RegraftError(Exception):
    """Something the user can put right. The command line prints it as one sentence and exits with code 2."""


class ConfigError(RegraftError):
    """A recipe, a field or an option that is not valid."""


class Conflict(RegraftError):
    """Two techniques, or a technique and a source or model, that cannot be combined."""


class DataError(RegraftError):
    """A file, column, row or label that cannot be used."""


class ModelError(RegraftError):
    """A model that cannot be found, loaded, cut or used for this task."""


class RunError(RegraftError):
    """A run directory or checkpoint that is missing, occupied, damaged or of another recipe."""


class DiskError(RunError):
    """A disk that is full or cannot be written to: no fault of what was to be saved."""


class BudgetError(RegraftError):
    """A budget that is too small for what must be done in it."""


def suggest(word: str, valid: Iterable[str]) -> str:
    """`; did you mean 'X'?` for the nearest valid name, else `; one of: ...`, ready to end a sentence with.

    >>> suggest("lora", ["LoRA", "SAM"])
    "; did you mean 'LoRA'?"
    """
    folded = {name.casefold(): name for name in valid}
    close = get_close_matches(word.casefold(), folded, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {folded[close[0]]!r}?"
    return f"; one of: {', '.join(sorted(folded.values()))}" if folded else ""
