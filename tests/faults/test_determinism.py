"""One recipe and one seed give one result in any process, hash seed and directory; what differs on a resume is named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from faults.injectors import Point, Reporter, strike
from faults.lab import forked, record
from faults.recipes import VARIANTS, spec

from regraft.config.recipe import dump_recipe
from regraft.phases import machine as machines
from regraft.phases.job import Job
from regraft.phases.machine import differences, machine
from regraft.phases.report.read import read_run
from regraft.phases.report.upkeep import limits
from regraft.phases.rundir import RunDirectory
from regraft.phases.train import resume_training, train_job

RUN = """
import hashlib, json, sys
from pathlib import Path
from regraft.config.recipe import read_recipe
from regraft.phases import train
train.write_report = lambda run: run
run = train.train_job(read_recipe(Path(sys.argv[1])), Path(sys.argv[2])).path
files = ["phases/final.safetensors", "events.jsonl", "phases/train.json", "phases/evaluate.json", "model/model.safetensors"]
print(json.dumps({name: hashlib.sha256((run / name).read_bytes()).hexdigest() for name in files}))
"""
RECIPES = {
    "staged thaw, dropout": spec(VARIANTS["StagedThaw"], "dropout", prefetch=True),
    "distillation, MixUp": spec(VARIANTS["Distillation"], "MixUp", prefetch=False),
}


def fresh_process(recipe: Path, folder: Path, number: int, cache: Path) -> dict[str, str]:
    """Hashes of a run in an interpreter of its own, with a hash seed and a working directory of its own."""
    where = folder / f"directory-{number}"
    where.mkdir()
    own = os.environ | {
        "PYTHONHASHSEED": str(number * 7919 % 4001),
        "OMP_NUM_THREADS": "1",
        "REGRAFT_CACHE": str(cache),
    }
    command = [sys.executable, "-c", RUN, str(recipe), "run" if number % 2 else str(where / "run")]
    done = subprocess.run(command, cwd=where, env=own, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def written(tmp_path: Path, name: str) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(RECIPES[name]))
    return path


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_twenty_processes_with_their_own_hash_seed_and_directory_give_the_same_bits(tmp_path):
    found: dict[str, int] = {}
    for name in RECIPES:
        folder = tmp_path / name.replace(" ", "-")
        folder.mkdir()
        recipe = written(folder, name)
        runs = [fresh_process(recipe, folder, number, folder / "cache") for number in range(10)]
        found[name] = sum(run == runs[0] for run in runs)
    record("determinism", {"processes": 10 * len(RECIPES), "equal": sum(found.values())})
    assert found == dict.fromkeys(RECIPES, 10)


def test_two_processes_with_other_hash_seeds_and_directories_give_the_same_bits(tmp_path):
    recipe = written(tmp_path, "distillation, MixUp")
    one, two = (fresh_process(recipe, tmp_path, number, tmp_path / "cache") for number in (1, 2))
    assert one == two


def test_the_manifest_names_threads_versions_and_processor(tmp_path):
    threads = torch.get_num_threads()
    job = Job(RunDirectory.create(tmp_path / "run"), RECIPES["distillation, MixUp"])
    job.write_manifest()
    manifest = job.run.read_json("manifest.json")
    assert manifest["threads"] == threads
    assert (
        manifest["versions"]["torch"] == str(torch.__version__).partition("+")[0]
        or "+" in manifest["versions"]["torch"]
    )
    assert manifest["hardware"]["processor"]
    assert manifest["hardware"]["instructions"] == torch.backends.cpu.get_cpu_capability()
    assert job.compare_machine() == []
    assert job.run.read_json("manifest.json") == manifest


def test_what_differs_on_a_resume_is_said_and_stands_in_the_manifest_and_among_the_limits_of_the_report(
    tmp_path, monkeypatch
):
    made = spec(VARIANTS["SGD"], "dropout", prefetch=False, every=2)
    forked(lambda: train_job(made, tmp_path / "run", reporter=strike(Point("step", 5, "train"), "raise")).path.name)

    def resumed() -> list[str]:
        reporter = Reporter()
        torch.set_num_threads(torch.get_num_threads() + 1)
        monkeypatch.setattr(machines, "version_of", lambda name: "99.0" if name == "torch" else version_of(name))
        resume_training(tmp_path / "run", reporter=reporter)
        return reporter.sentences

    version_of, threads = machines.version_of, torch.get_num_threads()
    said = forked(resumed).result()
    began = f"the run began with {threads} thread{'s' * (threads > 1)} and goes on with {threads + 1}"
    assert any(sentence.startswith(began) for sentence in said)
    assert any("99.0 now" in sentence and sentence.startswith("the run began with other versions") for sentence in said)
    kept = json.loads((tmp_path / "run" / "manifest.json").read_text())["resumed elsewhere"]
    assert [sentence for sentence in said if sentence in kept] == kept
    assert any(began in line for line in limits(read_run(tmp_path / "run"))["lines"])


def test_every_kind_of_difference_has_its_sentence_and_equal_machines_have_none():
    now = machine()
    assert differences(now, now) == []
    assert differences({}, now) == []
    other = yaml.safe_load(yaml.safe_dump(now))
    other["threads"], other["versions"]["numpy"], other["hardware"]["processor"] = 64, "1.0", "another"
    found = differences(other, now)
    assert len(found) == 3
    assert "OMP_NUM_THREADS=64" in found[0]
    assert "numpy (1.0 then" in found[1]
    assert "processor (another then" in found[2]
    other["versions"].pop("numpy")  # an older manifest does not say
    assert len(differences(other, now)) == 2
