"""`regraft search` on real training: fields, fidelities, copies, sharing, files, and what is refused."""

from __future__ import annotations

import csv
import json
import re
import shutil

import pytest
import torch
from typer.testing import CliRunner

from regraft.config.recipe import parse_recipe, read_recipe
from regraft.core.stopping import Interrupted, Stop
from regraft.errors import ConfigError, RunError
from regraft.search import trial as trials_module
from regraft.search.legs import Leg
from regraft.search.run import resume_search, search
from regraft.search.trial import Workplace, run_leg

BASE = """
data: {{main: {{path: wine}}}}
models: {{main: {{network: {{MLP: {{width: 16, depth: 1}}}}}}}}
stages: [{{name: adapt, steps: {steps}}}]
search:
  method: {method}
  trials: {trials}
  seed: 2
  metric: loss
{more}
  space:
"""
RATE = "    train.optimizer.AdamW.lr: {log: [1.0e-4, 1.0e-1]}\n"
BATCH = "    train.batch_size: {log_int: [8, 64]}\n"


def recipe(space=RATE + BATCH, *, method="ASHA", trials=9, steps=27, more=""):
    return parse_recipe(BASE.format(method=method, trials=trials, steps=steps, more=more) + space)


@pytest.fixture
def command():
    from regraft.cli.app import app

    return lambda *arguments: CliRunner().invoke(app, [str(each) for each in arguments])


@pytest.fixture(scope="module")
def asha(tmp_path_factory):
    """A folder with a finished search, and what came out."""
    out = tmp_path_factory.mktemp("asha") / "out"
    return out, search(recipe(trials=18, more="  fidelity: {steps: 0.3}"), out)


# ---- fidelity


@pytest.mark.inventory("multi-fidelity", by="search: {fidelity: {steps: 0.3}}")
def test_a_promoted_trial_goes_on_from_its_checkpoint_to_the_bits_of_one_training(asha, tmp_path):
    out, found = asha
    best = found["best"]
    assert best["share"] == 1
    row = next(trial for trial in found["trials"] if trial["trial"] == best["trial"])
    assert [result["share"] for result in row["results"]] == pytest.approx([1 / 3, 1])
    assert row["steps"] == 27  # 9, then 18 more: none was made twice
    whole = Leg(number=0, trial=0, level=0, share=1.0, drawn=row["drawn"])
    (tmp_path / "recipe.yaml").write_text((out / "recipe.yaml").read_text())
    alone = run_leg({"out": str(tmp_path), "leg": whole.to_json()}, Stop())
    assert (alone["loss"], alone["score"], alone["steps"]) == (best["loss"], best["score"], 27)


@pytest.mark.inventory("multi-fidelity", by="regraft search")
def test_the_fidelity_of_every_result_is_kept_and_what_low_ones_say_of_high_ones_is_printed(asha, command):
    out, found = asha
    assert {result["share"] for trial in found["trials"] for result in trial["results"]} == {1 / 3, 1.0}
    (correlation,) = found["fidelities"]
    pairs = [[r["loss"] for r in t["results"]] for t in found["trials"] if len(t["results"]) == 2]
    from scipy.stats import spearmanr

    assert correlation["trials"] == len(pairs) >= 4
    assert correlation["spearman"] == pytest.approx(spearmanr(*zip(*pairs, strict=True)).statistic)
    shown = command("resume", out, "--quiet")
    assert shown.exit_code == 0, shown.stderr
    said = f"results at 0.333 of the training with those at 1: {correlation['spearman']:.2f} ({len(pairs)} trials)"
    assert said in shown.stdout


@pytest.mark.inventory("multi-fidelity", by="search: {fidelity: {data: 0.3}}")
def test_with_data_as_fidelity_short_trials_see_fewer_rows_for_as_many_epochs(tmp_path):
    found = search(recipe(trials=3, more="  fidelity: {data: 0.33}"), tmp_path / "out")
    place = Workplace(read_recipe(tmp_path / "out" / "recipe.yaml"))
    drawn = found["trials"][0]["drawn"]
    specs = [place.recipe(Leg(number=0, trial=0, level=i, share=s, drawn=drawn)) for i, s in enumerate((1 / 3, 1.0))]
    rows = len(place.ground(specs[1]).entries["main"].materials.rows("train"))
    assert specs[0].main_data().limit == -(-rows // 3)
    assert specs[1].main_data().limit is None
    assert [spec.stages[0].steps for spec in specs] == [9, 27]
    went = next(trial for trial in found["trials"] if trial["share"] == 1)
    assert went["steps"] == 9 + 27  # on other rows, so it begins anew


# ---- what is searched over


@pytest.mark.inventory("auto-opt-hp", "batch-epochs-tuning", by="search: {space: {train.optimizer: {choice: [...]}}}")
def test_optimizer_rate_schedule_batch_size_and_steps_are_searched_jointly(tmp_path):
    space = """
    train.optimizer: {choice: [{AdamW: {lr: {log: [1.0e-4, 1.0e-1]}}}, {SGD: {lr: {log: [1.0e-2, 1]}, momentum: 0.9}}]}
    train.schedule: {choice: [Constant, {Cosine: {warmup: {uniform: [0.0, 0.3]}}}]}
    train.batch_size: {choice: [8, 32]}
    stages.0.steps: {choice: [4, 30]}
"""
    found = search(recipe(space, method="Random", trials=12), tmp_path / "out")
    names = {next(iter(t["values"]["train.optimizer"])) for t in found["trials"]}
    assert names == {"AdamW", "SGD"}
    assert {t["steps"] for t in found["trials"]} == {4, 30}
    losses = {t["trial"]: t["loss"] for t in found["trials"]}
    assert found["best"]["trial"] == min(losses, key=losses.get)
    best = read_recipe(tmp_path / "out" / "best.yaml")
    assert best.stages[0].steps == found["best"]["values"]["stages.0.steps"] == 30  # chosen on validation rows
    assert best.search is None
    assert best.train.batch_size == found["best"]["values"]["train.batch_size"]


@pytest.mark.inventory("batch-epochs-tuning", by="validate: {patience: 2}")
def test_epochs_are_chosen_on_validation_rows_where_the_recipe_has_patience(tmp_path):
    spec = recipe(RATE.replace("1.0e-4, 1.0e-1", "0.2, 0.9"), method="Random", trials=2, steps=400)
    spec = spec.replaced(validate={"times": 20, "patience": 1})
    found = search(spec, tmp_path / "out")
    assert all(trial["steps"] < 400 for trial in found["trials"])


@pytest.mark.inventory(
    "adapter-placement-risk", by="search: {space: {techniques: {choice: [[{Adapter: {blocks: ...}}], []]}}}"
)
def test_adapter_placement_is_searched_beside_full_fine_tuning_and_reading_is_shared(tmp_path, tiny_bert, texts):
    text = f"""
data: {{main: {{path: {texts}}}}}
models: {{main: {{name: {tiny_bert}}}}}
stages: [{{name: adapt, steps: 4}}]
search:
  method: Grid
  space:
    techniques:
      choice:
        - [{{Adapter: {{width: 4, blocks: {{choice: [1, [1], all]}}}}}}]
        - [{{LoRA: {{rank: 2, blocks: {{choice: [1, all]}}}}}}]
        - []
"""
    spec = parse_recipe(text)
    found = search(spec, tmp_path / "out")
    sizes = {json.dumps(t["values"]["techniques"]): t["trained"] for t in found["trials"]}
    assert len(sizes) == 6
    assert all(t["state"] == "COMPLETE" for t in found["trials"])
    full = sizes.pop("[]")
    assert all(size < full / 2 for size in sizes.values())
    assert sizes['[{"Adapter": {"width": 4, "blocks": 1}}]'] < sizes['[{"Adapter": {"width": 4, "blocks": "all"}}]']
    page = (tmp_path / "out" / "search.html").read_text()
    assert ">Trained parameters<" in page
    assert "techniques []" in page  # full fine-tuning stands in the same table


# ---- sharing


@pytest.mark.inventory("multi-fidelity", by="regraft search")
def test_trials_share_reading_encoding_and_the_results_of_frozen_parts(tmp_path, tiny_bert, texts, monkeypatch):
    from regraft.models.frozen import Frozen

    text = f"""
data: {{main: {{path: {texts}}}}}
models: {{main: {{name: {tiny_bert}}}}}
stages: [{{name: adapt, steps: 6}}]
techniques: [{{LastK: {{blocks: 1}}}}, CachePrefix]
search:
  method: Random
  trials: 5
  space: {{train.optimizer.AdamW.lr: {{log: [1.0e-4, 1.0e-1]}}}}
"""
    made: list[Frozen] = []
    before = Frozen.__init__

    def init(self, *given, **named):
        made.append(self)
        before(self, *given, **named)

    monkeypatch.setattr(Frozen, "__init__", init)
    trials_module.workplace.cache_clear()
    search(parse_recipe(text), tmp_path / "out")
    file = tmp_path / "out" / "recipe.yaml"
    place = trials_module.workplace(file, file.stat().st_mtime_ns)
    rows = len(next(iter(place.entries.values()))["main"].materials.rows("train"))
    assert place.made == 1
    assert sum(frozen.computed for frozen in made) == rows  # once for five trials


# ---- population based training


@pytest.mark.inventory("pbt", by="regraft search --method pbt")
def test_a_copying_member_has_weights_and_optimizer_state_of_its_parent_and_values_of_its_own(tmp_path, monkeypatch):
    begun: dict[int, dict] = {}
    put = trials_module._put

    def watched(trainer, state, *, copied):
        put(trainer, state, copied=copied)
        if copied:
            update = trainer.run.step.updates["all"]
            state = {"model": trainer.recipe.model.state_dict(), "updates": update.state_dict()}
            begun[len(begun)] = {
                "weights": {k: v.clone() for k, v in state["model"].items()},
                "moments": {k: v["exp_avg"].clone() for k, v in state["updates"]["state"].items()},
                "decay": {g["weight_decay"] for g in update.optimizer.param_groups},
                "rate": update.base_rates[0],
            }

    monkeypatch.setattr(trials_module, "_put", watched)
    space = RATE + "    train.optimizer.AdamW.weight_decay: {log: [1.0e-3, 1.0]}\n"
    out = tmp_path / "out"
    search(recipe(space, method="{PBT: {generations: 3}}", trials=4), out)
    with (out / "lineage.csv").open() as file:
        lineage = list(csv.DictReader(file))
    assert [row["generation"] for row in lineage] == ["0"] * 4 + ["1"] * 4 + ["2"] * 4
    copies = [row for row in lineage if row["from_trial"] not in ("", row["trial"])]
    assert len(copies) == len(begun) == 2
    for row, found in zip(copies, begun.values(), strict=True):
        rung = out / "trials" / f"{int(row['from_trial']):04d}" / "rungs" / f"leg-{int(row['after_leg']):05d}"
        state = trials_module.load(rung)
        assert all(torch.equal(value, state["model"][name]) for name, value in found["weights"].items())
        saved = state["updates"]["all"]["state"]
        assert all(torch.equal(value, saved[name]["exp_avg"]) for name, value in found["moments"].items())
        assert found["rate"] == pytest.approx(float(row["train.optimizer.AdamW.lr"]))
        assert float(row["train.optimizer.AdamW.weight_decay"]) in found["decay"]
        parent = next(one for one in lineage if one["leg"] == row["after_leg"])
        assert parent["train.optimizer.AdamW.lr"] != row["train.optimizer.AdamW.lr"]


def test_population_based_training_refuses_fields_that_weights_depend_on(tmp_path):
    with pytest.raises(
        ConfigError, match=r"search\.space\.stages\.0\.steps: PBT changes values while weights are kept"
    ):
        search(recipe(RATE + "    stages.0.steps: {int: [3, 9]}\n", method="PBT"), tmp_path / "out")


@pytest.mark.parametrize("field", ["optimizer: {choice: [RMSprop, AdamW]}", "schedule: {choice: [Constant, Cosine]}"])
def test_population_based_training_refuses_to_change_the_optimizer_or_schedule_whose_state_it_copies(tmp_path, field):
    with pytest.raises(ConfigError, match=rf"search\.space\.train\.{field.partition(':')[0]}: PBT changes values"):
        search(recipe(f"    train.{field}\n", method="PBT"), tmp_path / "out")


def test_a_copying_member_has_every_option_of_its_own_optimizer(tmp_path, monkeypatch):
    begun: list[tuple[float, float]] = []
    put = trials_module._put

    def watched(trainer, state, *, copied):
        put(trainer, state, copied=copied)
        if copied:
            (group,) = {group["d"] for group in trainer.run.step.updates["all"].optimizer.param_groups}
            begun.append((group, state["updates"]["all"]["groups"][0]["d"]))

    monkeypatch.setattr(trials_module, "_put", watched)
    space = "    train.optimizer.Adafactor.d: {log: [1, 10]}\n"
    search(recipe(space, method="{PBT: {generations: 3, anew: 1}}", trials=4), tmp_path / "out")
    assert len(begun) == 2
    assert all(own != parent for own, parent in begun)


# ---- the command and its files


@pytest.mark.inventory("no-grid-nn", "hpo-grid", by="regraft search --method grid")
def test_a_large_grid_is_advised_against_with_what_it_costs(tmp_path, command):
    file = tmp_path / "recipe.yaml"
    space = "    train.optimizer.AdamW.weight_decay: {log: [1.0e-3, 1.0]}\n    models.main.network.MLP.width: {int: [4, 16]}\n"
    file.write_text(
        BASE.format(method="ASHA", trials=2, steps=3, more="").replace("  trials: 2\n", "") + RATE + BATCH + space
    )
    shown = command("search", file, "--out", tmp_path / "out", "--method", "grid", "--budget", "0.01")
    said = " ".join(shown.stderr.split())
    assert "a grid of 4 fields is 81 trials and 243 steps, and grows by a factor with every field" in said
    assert re.search(r"ASHA with 64 trials takes about \d+ steps and TPE with 32 trials 96", said)


def test_the_command_leaves_a_recipe_a_table_and_a_page_without_scripts(tmp_path, command):
    file = tmp_path / "recipe.yaml"
    file.write_text(BASE.format(method="ASHA", trials=40, steps=9, more="") + RATE + BATCH)
    out = tmp_path / "out"
    shown = command("search", file, "--out", out, "--method", "tpe", "--trials", 3, "--json", "--set", "search.seed=5")
    assert shown.exit_code == 0, shown.stderr
    found = json.loads(shown.stdout)
    assert (found["method"], found["cost"]["trials"], found["over"]) == ("TPE", 3, True)
    assert found == json.loads((out / "search.json").read_text())
    assert len((out / "trials.csv").read_text().splitlines()) == 4
    page = (out / "search.html").read_text()
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")
    assert page.count("<polyline") >= 3
    assert command("train", out / "best.yaml", "--out", tmp_path / "run", "--quiet").exit_code == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"metric": "test/score"},
            "search.metric: must be score or loss of the validation rows, got 'test/score'; test rows",
        ),
        ({"metric": "accuracy"}, "search.metric: must be score or loss"),
        ({"space": {}}, "search.space: must name a field"),
        ({"method": "ASHAA"}, "no method is called 'ASHAA'; did you mean 'ASHA'?"),
        ({"fidelity": {"steps": 0.1, "data": 0.1}}, "fidelity: must have one of steps and data"),
        ({"method": "TPE", "fidelity": {"steps": 0.1}}, "search.fidelity: belongs to ASHA and Hyperband"),
        ({"fidelity": {"steps": 0.9}}, "search.fidelity: must allow a share of 1/3"),
        ({"space": {"train.batch_sise": {"int": [1, 4]}}}, "no field 'batch_sise'; did you mean 'batch_size'?"),
        ({"space": {"train.optimizer": {"choice": ["AdamW", "AdamX"]}}}, "no optimizer is called 'AdamX'"),
    ],
)
def test_what_cannot_be_searched_is_refused_before_anything_is_written(tmp_path, change, said):
    spec = recipe()
    with pytest.raises(ConfigError, match=re.escape(said)):
        search(spec.replaced(search=spec.search.replaced(**change)), tmp_path / "out")
    assert not (tmp_path / "out" / "journal.jsonl").exists()


def test_trials_that_fail_are_kept_with_their_reason_and_where_all_do_it_is_said(tmp_path):
    space = "    train.optimizer: {choice: [{SGD: {lr: 1.0e+30}}, {SGD: {lr: 1.0e-3}}]}\n    train.max_norm: {choice: [null]}\n"
    found = search(recipe(space, method="Grid"), tmp_path / "some")
    assert [trial["state"] for trial in found["trials"]] == ["FAIL", "COMPLETE"]
    assert found["trials"][0]["reason"]
    assert found["best"]["trial"] == 1
    with pytest.raises(RunError, match="no trial of 1 could be trained; the first:"):
        search(recipe(space.replace(", {SGD: {lr: 1.0e-3}}", ""), method="Grid"), tmp_path / "none")


def test_a_full_disk_ends_the_search_and_no_trial_fails_by_it(tmp_path, monkeypatch):
    whole = search(recipe(method="Random", trials=4), tmp_path / "whole")
    looked = iter(range(100))
    free = shutil.disk_usage

    def full(path):
        return free(path)._replace(free=0) if next(looked) == 2 else free(path)

    monkeypatch.setattr("regraft.core.sizing.shutil.disk_usage", full)
    with pytest.raises(RunError, match=r"need .* but 0\.00 kB are free there"):
        search(recipe(method="Random", trials=4), tmp_path / "out")
    found = resume_search(tmp_path / "out")
    assert [t["loss"] for t in found["trials"]] == [t["loss"] for t in whole["trials"]]


def test_a_schedule_that_acts_on_validation_results_is_told_of_them(tmp_path):
    """No result passes this threshold, so the rate falls to nothing after the second one, and the trial stays behind."""
    plateau = "{ReduceLROnPlateau: {patience: 0, threshold: 100, factor: 1.0e-9}}"
    space = RATE.replace("{log: [1.0e-4, 1.0e-1]}", "{choice: [0.01]}")
    space += f"    train.schedule: {{choice: [Constant, {plateau}]}}\n"
    constant, fallen = search(recipe(space, method="Grid", trials=2), tmp_path / "out")["trials"]
    assert fallen["loss"] > constant["loss"] + 0.01


def test_a_search_that_is_stopped_within_a_trial_goes_on_to_the_same_end(tmp_path, monkeypatch):
    spec = recipe(trials=6, more="  fidelity: {steps: 0.3}").replaced(checkpoint={"every_steps": 4})
    whole = search(spec, tmp_path / "whole")
    steps = iter(range(1000))
    step = trials_module.Checkpointer.on_step

    def stopping(self, run, loss):
        if next(steps) == 30:
            self.stop.requested = 15
        step(self, run, loss)

    monkeypatch.setattr(trials_module.Checkpointer, "on_step", stopping)
    with pytest.raises(Interrupted):
        search(spec, tmp_path / "parts")
    monkeypatch.undo()
    with pytest.raises(RunError, match="holds a search already"):
        search(spec, tmp_path / "parts")
    with pytest.raises(RunError, match="was begun with another recipe"):
        search(spec.replaced(seed=9), tmp_path / "parts", resume=True)
    parts = resume_search(tmp_path / "parts")
    kept = ("trial", "state", "score", "loss", "steps", "values")
    assert [[t[k] for k in kept] for t in parts["trials"]] == [[t[k] for k in kept] for t in whole["trials"]]
    assert parts["best"] == whole["best"]
