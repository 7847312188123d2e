"""What is seen while a command works: phases, sentences and bars on standard error, so that standard output stays clean."""

from __future__ import annotations

import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

LONG = 5.0  # seconds after which a piece of work earns a line of its own where no bar can be drawn


def printable(text: str) -> str:
    """The text in one line, without control characters: names out of data must not steer a terminal."""
    return "".join(each if each.isprintable() else " " for each in text)


class Rate(ProgressColumn):
    """`1,240 rows/s`, or `2.1 s a step` below one a second."""

    def render(self, task: Task) -> Text:
        """Empty until there is a speed."""
        unit = str(task.fields.get("unit", "steps"))
        if not task.speed:
            return Text("")
        if task.speed < 1:
            return Text(f"{1 / task.speed:.1f} s a {unit.removesuffix('s')}", style="dim")
        return Text(f"{task.speed:,.0f} {unit}/s", style="dim")


class Screen:
    """A `Reporter` that draws with rich on a terminal, and writes plain lines anywhere else."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self.began = time.perf_counter()
        self.bar: Progress | None = None
        self.task: TaskID | None = None
        self.piece: tuple[str, int, str, float] | None = None
        self.done = 0

    @property
    def drawing(self) -> bool:
        """Is it a terminal that can redraw a line?"""
        return self.console.is_terminal and not self.console.is_dumb_terminal

    def phase(self, name: str, what: str, /) -> None:
        """A heading with the seconds since the command began."""
        self.end()
        elapsed = f"{time.perf_counter() - self.began:6.1f} s"
        if self.drawing:
            self.console.print(Text.assemble((elapsed, "dim"), "  ", (name, "bold cyan"), f"  {printable(what)}"))
        else:
            self._plain(f"{elapsed}  {name}: {printable(what)}")

    def say(self, sentence: str, /) -> None:
        """A sentence, indented under its phase."""
        sentence = printable(sentence)
        if not self.drawing:
            self._plain(f"          {sentence}")
            return
        style = {"error": "red", "warning": "yellow"}.get(sentence.partition(":")[0], "")
        self.console.print(Padding(Text(sentence, style=style), (0, 0, 0, 10)))

    def begin(self, label: str, total: int, unit: str, /) -> None:
        """A bar with rate, newest note and time left."""
        self.end()
        self.piece, self.done = (label, total, unit, time.perf_counter()), 0
        if self.drawing:
            self.bar = Progress(
                TextColumn("          {task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.completed:,.0f}/{task.total:,.0f} {task.fields[unit]}"),
                Rate(),
                TextColumn("{task.fields[note]}", style="cyan"),
                TimeRemainingColumn(compact=True, elapsed_when_finished=True),
                console=self.console,
                transient=True,
            )
            self.task = self.bar.add_task(printable(label), total=max(total, 1), unit=unit, note="")
            self.bar.start()

    def advance(self, done: int, note: str = "", /) -> None:
        """Move the bar on."""
        self.done += done
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, advance=done)
            if note:
                self.bar.update(self.task, note=printable(note))

    def end(self) -> None:
        """Take the bar away."""
        if self.bar is not None:
            self.bar.stop()
        if self.piece is not None and not self.drawing:
            label, _, unit, began = self.piece
            if time.perf_counter() - began > LONG:
                self._plain(f"          {label}: {self.done:,} {unit} in {time.perf_counter() - began:.1f} s")
        self.bar = self.task = self.piece = None

    def _plain(self, line: str) -> None:
        print(line, file=self.console.file, flush=True)


@contextmanager
def screen(quiet: bool) -> Generator[Any]:
    """A reporter for one command: a screen, or a silent one. No bar is left behind when the command fails."""
    from regraft.phases.progress import Silent

    shown = Silent() if quiet else Screen()
    try:
        yield shown
    finally:
        shown.end()


def show_lines(lines: Sequence[str], *, indent: int = 0) -> None:
    """Lines on standard output; titles up to the first colon stand out on a terminal."""
    console = Console(highlight=False)
    for line in lines:
        line = printable(line)
        if not console.is_terminal:
            print(" " * indent + line)
            continue
        title, colon, rest = line.partition(":")
        bold = bool(colon) and len(title) < 20 and " " not in title
        text = Text.assemble((title + colon, "bold"), rest) if bold else Text(line)
        console.print(Padding(text, (0, 0, 0, indent)))


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = ()) -> None:
    """A table on standard output; cells are plain text. Off a terminal it is as wide as it needs to be."""
    from rich.table import Table

    console = Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=200)
    if title:
        print(printable(title))
    table = Table(show_edge=False, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    console.print(table)


def show_json(value: Any) -> None:
    """The value as JSON on standard output."""
    import json

    print(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False))
