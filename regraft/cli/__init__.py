"""The command line: `regraft COMMAND ...`. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import gc


def main() -> None:
    """Run the command that the arguments name; the process ends with its exit code."""
    from regraft.cli.app import app

    # torch and transformers are a million objects that live to the end: by default the collector walks over them a dozen
    # times while they are imported, and once more at exit, which together takes two seconds
    gc.set_threshold(50_000, 20, 20)
    try:
        app(prog_name="regraft")
    finally:
        gc.disable()
        gc.freeze()
