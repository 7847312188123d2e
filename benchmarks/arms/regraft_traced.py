"""`regraft ...` with a stamp at the start of every phase and every piece of work, to say where the seconds of a command go.

python benchmarks/arms/regraft_traced.py adapt DATA --model minilm --strategy probe --out RUN
"""

from __future__ import annotations

import gc

gc.set_threshold(50_000, 20, 20)  # as the command line itself does

from common import report, seconds  # noqa: E402


def main() -> None:
    from regraft import cli
    from regraft.cli import screen
    from regraft.cli.screen import Screen
    from regraft.phases import opening, path  # noqa: F401  # what `adapt` imports first; the stamp below is their end

    stamps: list[tuple[float, str, str]] = [(seconds(), "imported", "")]

    class Stamped(Screen):
        def phase(self, name: str, what: str, /) -> None:
            stamps.append((seconds(), "phase", name))
            super().phase(name, what)

        def begin(self, label: str, total: int, unit: str, /) -> None:
            super().begin(label, total, unit)
            stamps.append((seconds(), "begin", label))

        def end(self) -> None:
            if self.piece is not None:
                stamps.append((seconds(), "end", self.piece[0]))
            super().end()

    screen.Screen = Stamped  # type: ignore[misc]
    try:
        cli.main()
    finally:
        stamps.append((seconds(), "exit", ""))
        report(stamps=[[round(at, 4), kind, name] for at, kind, name in stamps])


if __name__ == "__main__":
    main()
