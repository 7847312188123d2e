"""The command on number formats: dtypes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from regraft.cli.app import app
from regraft.cli.options import Common, Set, command
from regraft.cli.screen import show_json, show_lines, show_table


@command(app)
def dtypes(
    recipe: Annotated[
        Path | None,
        typer.Argument(metavar="[RECIPE]", help="A recipe to train: its steps are timed in each precision."),
    ] = None,
    overrides: Set = None,
    common: Common = Common(),  # noqa: B008
) -> None:
    """The formats that training computes in: range and digits, and how fast this machine is in each, beside what is published."""
    from dataclasses import asdict

    from regraft.config.recipe import read_recipe
    from regraft.core.dtypes import published
    from regraft.core.sizing import amount
    from regraft.phases.dtypes import card, products, step_costs

    formats, timed = card(), products()
    costs = [] if recipe is None else step_costs(read_recipe(recipe, overrides or []))
    if common.json:
        measured = {"products": [asdict(each) for each in timed], "steps": [asdict(each) for each in costs]}
        show_json({"formats": formats, **measured, "published": published()})
        return
    speeds = {each.precision: "-" if each.ratio is None else f"{each.ratio:.2f}" for each in timed}
    show_table(
        "",
        (
            "format",
            "bits (1 + exponent + mantissa)",
            "in memory",
            "largest",
            "smallest normal",
            "digits",
            "matrix products",
        ),
        [
            (
                one["name"],
                f"{one['bits']} (1 + {one['exponent']} + {one['mantissa']})",
                f"{one['stored_bits']}",
                f"{one['largest']:.4g}" if one["largest"] > 1e6 else f"{one['largest']:.0f}",
                f"{one['smallest_normal']:.3g}",
                f"{one['decimal_digits']:.1f}",
                speeds[one["name"]],
            )
            for one in formats
        ],
    )
    show_lines(["", f"Matrix products: times as fast as fp32, measured here ({published()}); - is not there."])
    if costs:
        show_table(
            "a step of the recipe",
            ("precision", "ms", "times as fast", "kept for the backward pass", "of fp32's", "loss", "off by"),
            [
                (
                    c.precision, f"{c.seconds * 1e3:.2f}", f"{c.ratio:.2f}", amount(c.saved_bytes), f"{c.saved_ratio:.0%}",
                    f"{c.loss:.4f}", f"{c.off:.2g}",
                )
                for c in costs
            ],
        )  # fmt: skip
