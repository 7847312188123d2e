"""The command line: `regraft COMMAND ...`. Nothing heavy is imported before a command needs it."""

from __future__ import annotations


def main() -> None:
    """Run the command that the arguments name; the process ends with its exit code."""
    from regraft.cli.app import app

    app(prog_name="regraft")
