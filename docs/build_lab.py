"""The pages and pictures of `regraft lab`, written from the demonstrations themselves.

python docs/build_lab.py            write the pages
python docs/build_lab.py --check    exit 1 and name what differs from what would be written
"""

from __future__ import annotations

import argparse
from functools import cache
from pathlib import Path

from regraft.phases.lab.page import markdown, pictures
from regraft.phases.lab.registry import DEMONSTRATIONS, demonstration

LAB = Path(__file__).resolve().parent / "lab"
GENERATED = "<!-- Written by docs/build_lab.py from regraft/phases/lab; edit those files. -->\n"


@cache
def pages() -> dict[str, str]:
    """Every page and picture: path below docs/lab/ -> text."""
    made = {name: demonstration(name) for name in DEMONSTRATIONS}
    written = {f"{name}.md": GENERATED + markdown(name, each) for name, each in made.items()}
    rows = [f"| [{name}]({name}.md) | {each.title} | {each.findings[0]} |" for name, each in made.items()]
    head = (
        "# Lab\n\n`regraft lab NAME` computes a demonstration of how training behaves, with the optimizers and schedules that "
        "recipes name, and draws it; `--html FILE` writes a page with pictures. These pages are what it gives with seed 0, "
        "apart from what is measured on your machine.\n\n| name | about | first finding |\n|---|---|---|\n"
    )
    written["index.md"] = GENERATED + head + "\n".join(rows) + "\n"
    for name, each in made.items():
        written |= {f"images/{file}": text for file, text in pictures(name, each).items()}
    return written


def stale(folder: Path = LAB) -> list[str]:
    """Files that differ from what would be written, and those that no demonstration writes."""
    expected = pages()
    differing = [p for p, text in expected.items() if not (folder / p).exists() or (folder / p).read_text() != text]
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return sorted({*differing, *(there - expected.keys())})


def main() -> int:
    """Write the pages, or compare them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    if parser.parse_args().check:
        found = stale()
        for path in found:
            print(f"docs/lab/{path} differs from what is computed; run: python docs/build_lab.py")
        return 1 if found else 0
    for path, text in pages().items():
        (LAB / path).parent.mkdir(parents=True, exist_ok=True)
        (LAB / path).write_text(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
