"""From exceptions to sentences and exit codes.

2 for what the user can put right, 130 for an interrupt from the keyboard, 143 for SIGTERM, 1 for a bug.
"""

from __future__ import annotations

import errno
import functools
import sys
import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from regraft.errors import RegraftError

USER_ERROR, INTERRUPTED, BUG = 2, 130, 1
RECIPE, REPORT = "recipe.yaml", "report.html"  # of a run directory: there from its start, and at its end


FULL = "there is no space left on the disk"


def is_disk_full(error: BaseException) -> bool:
    """Did a write fail for want of space? Libraries written in other languages say so in words only."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return f"os error {errno.ENOSPC}" in str(error)


class Stopped(Exception):
    """A run that was under way ended early; the message says how to go on."""


def guarded(function: Callable[..., None]) -> Callable[..., None]:
    """The command with its errors told as one sentence on standard error; a traceback only with `common.debug`."""

    @functools.wraps(function)
    def call(**given: Any) -> None:
        import typer

        common = given.get("common")
        debug = bool(getattr(common, "debug", False))
        try:
            function(**given)
        except (typer.Exit, typer.Abort, BrokenPipeError):
            raise
        except (RegraftError, Stopped) as error:
            interrupted = isinstance(error.__cause__, KeyboardInterrupt)
            tell(str(error), debug=debug and not interrupted)
            raise typer.Exit(interrupt_code(error.__cause__) if interrupted else USER_ERROR) from None
        except KeyboardInterrupt as error:
            tell("stopped")
            raise typer.Exit(interrupt_code(error)) from None
        except Exception as error:
            if is_disk_full(error):
                tell(f"{FULL}; make room and try again", debug=debug)
                raise typer.Exit(USER_ERROR) from None
            _print_traceback()
            tell(
                f"this is a bug in regraft ({type(error).__name__}: {error}); please report it with the lines above and "
                "the command you ran"
            )
            raise typer.Exit(BUG) from None

    return call


def interrupt_code(error: BaseException | None) -> int:
    """130, or 143 where a run was stopped by SIGTERM: its `core.stopping.Interrupted` says so."""
    return int(getattr(error, "exit_code", INTERRUPTED))


def tell(sentence: str, *, debug: bool = False) -> None:
    """The sentence on standard error, in one line; before it, with `debug`, the traceback of the error being handled."""
    from regraft.config.secrets import redact

    if debug:
        _print_traceback()
    print(f"regraft: {redact(' '.join(sentence.split()))}", file=sys.stderr, flush=True)


def _print_traceback() -> None:
    """The traceback of the error being handled on standard error, without the secrets that its messages may hold."""
    from regraft.config.secrets import redact

    print(redact(traceback.format_exc()), end="", file=sys.stderr, flush=True)


@contextmanager
def resumable(run: Path) -> Generator[None]:
    """Around work on a run directory: what stops it says whether a run was begun there, and how to go on with it."""
    held = (run / RECIPE).exists()
    try:
        yield
    except KeyboardInterrupt as error:
        if not unfinished(run):
            raise Stopped(f"stopped; nothing was written to {run}") from error
        raise Stopped(f"stopped; {run} holds what is done, go on with `regraft resume {run}`") from error
    except RegraftError as error:
        if held or not unfinished(run) or "resume" in str(error):
            raise
        raise Stopped(f"{error}; then `regraft resume {run}` goes on from there") from error
    except Exception as error:
        if not is_disk_full(error) or not unfinished(run):
            raise
        raise Stopped(f"{FULL} while {run} was written; make room, then `regraft resume {run}` goes on") from error


def unfinished(run: Path) -> bool:
    """Was a run begun here that has not come to its end?"""
    return (run / RECIPE).exists() and not (run / REPORT).exists()
