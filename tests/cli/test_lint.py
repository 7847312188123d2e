"""regraft lint: what it says of a recipe, and with which code it ends."""

import json

RECIPE = """
data: {main: {path: PATH}}
models: {main: {name: minilm}}
stages: [{name: adapt, steps: 100}]
train: {optimizer: {AdamW: {lr: 2e-5, weight_decay: 0.01}}, schedule: {Linear: {warmup: 0.06}}}
"""


def test_the_command_speaks_of_a_real_recipe(regraft, tmp_path):
    (tmp_path / "data.csv").write_text("text,label\n" + "".join(f"row number {n},{'ab'[n % 2]}\n" for n in range(60)))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.replace("PATH", str(tmp_path / "data.csv")))
    result = regraft("lint", recipe, "--json")
    assert result.exit_code == 1
    assert {finding["code"] for finding in json.loads(result.stdout)} == {"RATE1", "FREEZE1"}
    gentle = ("--set", "techniques=[{LoRA: {rank: 4}}]")
    result = regraft("lint", recipe, *gentle)
    assert (result.exit_code, result.stdout.strip()) == (0, "Nothing to object to.")
