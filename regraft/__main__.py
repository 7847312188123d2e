"""`python -m regraft` is the same as `regraft`."""

from __future__ import annotations

from regraft.cli import main

main()
