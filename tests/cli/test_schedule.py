"""regraft schedule: a recipe's learning rates as a chart and as numbers."""

import json

import pytest

from regraft.cli.chart import DOTS, curve

RECIPE = """
data: {main: {path: data.csv}}
models: {main: {name: minilm}}
train: {optimizer: {SGD: {lr: 0.5}}, schedule: {Linear: {warmup: 0.5}}}
stages: [{name: first, steps: 4}, {name: second, steps: 8}]
"""


def dots(lines):
    """The (column, row) of every dot of a chart, row 0 at the top."""
    cells = [line.partition("┤")[2] for line in lines if "┤" in line]
    return {
        (2 * x + column, 4 * y + row)
        for y, line in enumerate(cells)
        for x, cell in enumerate(line)
        for column in (0, 1)
        for row in range(4)
        if ord(cell) - 0x2800 & DOTS[column][row]
    }


def test_a_straight_line_is_a_diagonal():
    found = dots(curve(range(40, 0, -1), width=20, height=10))
    assert {(k, k) for k in range(40)} <= found
    assert all(abs(x - y) <= 1 for x, y in found)


def test_a_jump_is_joined_and_the_ends_are_labelled():
    lines = curve([0.001] * 8 + [1.0] * 8, width=8, height=2, unit="steps")
    assert {row for _, row in dots(lines)} == set(range(8))
    assert lines[0].startswith("    1 ┤")
    assert lines[1].startswith("0.001 ┤")
    assert lines[2].endswith("16 steps")


def test_a_level_line_is_one_row():
    assert {row for _, row in dots(curve([0.3] * 5, width=6, height=3))} == {0}


def test_each_stage_of_a_recipe_is_traced(regraft, tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    first, second = json.loads(regraft("schedule", tmp_path / "recipe.yaml", "--json").stdout)
    assert first["rates"] == pytest.approx([0.5 / 3, 1 / 3, 0.5, 0.25])
    assert (first["stage"], first["momenta"], len(second["rates"])) == ("first", None, 8)
    changed = json.loads(
        regraft("schedule", tmp_path / "recipe.yaml", "--set", "train.schedule=Constant", "--json").stdout
    )
    assert set(changed[0]["rates"]) == {0.5}


def test_a_schedule_by_itself_is_drawn_with_its_momentum(regraft):
    shown = regraft("schedule", "OneCycle", "--steps", "50").stdout
    assert "learning rate" in shown
    assert "momentum" in shown
    assert "50 steps" in shown
    assert (
        len(json.loads(regraft("schedule", "{Cosine: {warmup: 0.1}}", "--steps", "7", "--json").stdout)[0]["rates"])
        == 7
    )


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("Cosin", "did you mean 'Cosine'"),
        ("no.yaml", "cannot be read"),
        ("{Cosine: {floor: 2}}", "less than or equal to 1"),
    ],
)
def test_what_is_not_there_is_one_sentence(regraft, what, said):
    result = regraft("schedule", what)
    assert result.exit_code == 2
    assert said in result.stderr


def test_a_range_test_draws_its_losses_and_suggests_a_rate(regraft, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "data: {main: {path: wine}}\nmodels: {main: {network: MLP}}\n"
        "train: {optimizer: {SGD: {momentum: 0.9}}}\nstages: [{name: adapt, steps: 9}]\n"
    )
    shown = regraft("lr", path, "--low", "1e-5", "--high", "10", "--steps", "60").stdout
    assert "Suggested: 0." in shown
    assert "┤" in shown
    refused = regraft("lr", path, "--low", "1", "--high", "0.1")
    assert refused.exit_code == 2
    assert "0 < low < high" in refused.stderr
