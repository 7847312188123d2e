"""YAML to specs and back, messages that name the field and the nearest name, and files that can import nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel, Field, field_validator

from regraft.config.catalogue import find, modules, names
from regraft.config.parse import dump_one, load_yaml, override, parse_one
from regraft.config.recipe import RecipeSpec, dump_recipe, parse_recipe
from regraft.config.spec import Named
from regraft.errors import ConfigError, RegraftError, suggest
from regraft.techniques.regularise.sam import SAM
from regraft.techniques.regularise.weight_average import WeightAverage

RECIPE = """
seed: 7
data:
  main: {path: tickets.csv}
  field: {path: other.csv}
models:
  main: {name: minilm}
  teacher: {name: ./large}
train:
  batch_size: 16
  optimizer: {AdamW: {lr: 3.0e-4, betas: [0.9, 0.98]}}
  schedule: {Cosine: {warmup: 0.1}}
stages:
  - {name: adapt, steps: 900}
techniques:
  - SAM: {rho: 0.1}
  - DANN: {target: field}
  - Distillation: {teacher: teacher, weight: 0.9}
  - CachePrefix
"""


# ---- round trips


@pytest.mark.parametrize(
    "node", ["SAM", {"SAM": {"rho": 0.1}}, {"GRPO": {"epochs": 3, "clip": 0.1}}, {"EWC": {"weight": 5.0}}]
)
def test_a_technique_is_written_as_it_was_read(node):
    assert dump_one(parse_one(node, "technique")) == node


def test_yaml_and_python_spell_it_the_same():
    assert parse_one({"SAM": {"rho": 0.1}}, "technique") == SAM(rho=0.1)
    assert parse_one("SAM", "technique") == parse_one({"SAM": None}, "technique") == SAM()


@pytest.mark.parametrize("name", sorted(modules("technique")))
def test_every_technique_of_the_catalogue_is_found_under_its_class_name(name):
    assert find("technique", name).__name__ == name


def test_a_recipe_goes_to_yaml_and_back_without_loss():
    spec = parse_recipe(RECIPE)
    assert parse_recipe(dump_recipe(spec)) == spec
    assert spec.techniques[0] == SAM(rho=0.1)
    assert spec.train.optimizer.betas == (0.9, 0.98)


def test_what_stands_at_its_default_is_not_written():
    text = dump_recipe(parse_recipe("data: {main: {path: a.csv}}\nmodels: {main: {name: minilm}}"))
    assert set(yaml.safe_load(text)) == {"format", "data", "models"}


def test_a_module_cannot_be_written_and_the_message_says_where_it_belongs():
    from torch import nn

    from regraft.techniques.distil.distillation import Distillation

    with pytest.raises(ConfigError) as error:
        dump_one(Distillation(teacher=nn.Linear(2, 2)))
    assert str(error.value) == (
        "a recipe file cannot hold a Linear; name it under `models:` or `data:` and refer to it by that name"
    )


# ---- messages


@pytest.mark.parametrize(
    ("technique", "message"),
    [
        ("sam", "techniques[0]: no technique is called 'sam'; did you mean 'SAM'?"),
        ("Distilation", "techniques[0]: no technique is called 'Distilation'; did you mean 'Distillation'?"),
        ("{SAM: {roh: 0.1}}", "techniques[0].SAM: no field 'roh'; did you mean 'rho'?; fields: adaptive, rho"),
        ("{SAM: {rho: -1}}", "techniques[0].SAM.rho: input should be greater than or equal to 0, got -1"),
        ("{Distillation: {}}", "techniques[0].Distillation: field 'teacher' is required"),
        ("{SAM: 3}", "techniques[0]: the options of SAM must be fields and values, got 3"),
        (
            "{SAM: {}, EWC: {}}",
            "techniques[0]: write a technique as `Name` or `Name: {field: value}`, got {'SAM': {}, 'EWC': {}}",
        ),
    ],
)
def test_errors_name_the_entry_the_field_and_the_nearest_valid_name(technique, message):
    text = f"data: {{main: {{path: a.csv}}}}\nmodels: {{main: {{name: minilm}}}}\ntechniques:\n  - {technique}"
    with pytest.raises(ConfigError) as error:
        parse_recipe(text)
    assert str(error.value) == f"recipe.yaml: {message}"


def test_a_name_far_from_all_lists_them():
    assert suggest("xyzzy", ["SAM", "EWC"]) == "; one of: EWC, SAM"
    assert suggest("xyzzy", []) == ""


@pytest.mark.parametrize("kind", [ConfigError, RegraftError])
def test_no_error_of_ours_is_a_value_error(kind):
    assert not issubclass(kind, ValueError)


def test_a_config_error_raised_while_validating_comes_out_as_it_is():
    """pydantic swallows a ValueError raised in a validator and buries its sentence in a longer one."""

    class Inner(Named):
        family = "test-inner"
        size: int = Field(1, ge=1)

    class Outer(BaseModel):
        size: int

        @field_validator("size")
        @classmethod
        def check(cls, value):
            return Inner(size=value).size

    with pytest.raises(ConfigError) as error:
        Outer(size=0)
    assert str(error.value) == "Inner.size: input should be greater than or equal to 1, got 0"


# ---- specs


def test_specs_are_frozen_equal_by_value_and_replaced_with_validation():
    spec = WeightAverage(decay=0.5)
    assert spec.replaced(decay=0.6) == WeightAverage(decay=0.6)
    with pytest.raises(ConfigError, match=r"WeightAverage.decay: input should be less than 1, got 1.0"):
        spec.replaced(decay=1.0)
    with pytest.raises(Exception, match="frozen"):
        spec.decay = 0.1


def test_two_of_one_name_are_refused_at_definition():
    class First(Named):
        family = "test-names"

    def define(where):
        return type("Same", (First,), {"__module__": where, "__qualname__": f"{where}.Same"})

    define("one")
    with pytest.raises(TypeError, match="two test-namess are called 'Same': one and two"):
        define("two")


# ---- overrides


@pytest.mark.parametrize(
    ("assignment", "path", "value"),
    [
        ("seed=9", ("seed",), 9),
        ("train.batch_size=64", ("train", "batch_size"), 64),
        ("techniques.SAM.rho=0.2", ("techniques", 0, "SAM", "rho"), 0.2),
        ("techniques.0.SAM.rho=0.2", ("techniques", 0, "SAM", "rho"), 0.2),
        ("techniques.CachePrefix.max_gb=1", ("techniques", 3, "CachePrefix", "max_gb"), 1),
        ("checkpoint.every_steps=50", ("checkpoint", "every_steps"), 50),
        ("train.optimizer.AdamW.lr=1.0e-3", ("train", "optimizer", "AdamW", "lr"), 1e-3),
        ("data.main.path=x=y.csv", ("data", "main", "path"), "x=y.csv"),
    ],
)
def test_an_override_reaches_any_field(assignment, path, value):
    tree = yaml.safe_load(RECIPE)
    override(tree, assignment)
    node = tree
    for key in path:
        node = node[key]
    assert node == value


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("seed", "--set seed: write it as path.to.field=value, such as --set seed=7"),
        ("=3", "--set =3: write it as path.to.field=value, such as --set seed=7"),
        ("techniques.SAMM.rho=1", "--set techniques.SAMM: the list has 4 entries and none called 'SAMM'; did you mean 'SAM'?"),
        ("techniques.9=SAM", "--set techniques.9: the list has 4 entries and none called '9'; one of: "
         "CachePrefix, DANN, Distillation, SAM"),
        ("seed.deep.er=1", "--set seed.deep: the value 7 has no field 'deep'"),
    ],
)  # fmt: skip
def test_an_override_that_leads_nowhere_says_where_it_stopped(assignment, message):
    with pytest.raises(ConfigError) as error:
        override(yaml.safe_load(RECIPE), assignment)
    assert str(error.value) == message


def test_an_override_of_an_unknown_field_is_refused_like_one_in_the_file():
    with pytest.raises(ConfigError, match=r"no field 'bach_size'; did you mean 'batch_size'\?"):
        parse_recipe(RECIPE, overrides=["train.bach_size=3"])


# ---- a file can import nothing


@pytest.mark.parametrize(
    "text",
    [
        "data: !!python/object/apply:os.system ['touch HERE']",
        "data: !!python/name:os.system",
        "data: !!python/module:subprocess",
        "models: !!python/object/new:os.system ['touch HERE']",
        "techniques: [!SAM {rho: 0.1}]",
    ],
)
def test_a_yaml_tag_is_refused_and_nothing_runs(text, tmp_path):
    marker = tmp_path / "ran"
    with pytest.raises(
        ConfigError, match=r"recipe\.yaml: line 1: .* is a tag, and only plain values are read; remove it"
    ):
        load_yaml(text.replace("HERE", str(marker)), "recipe.yaml")
    assert not marker.exists()


@pytest.mark.parametrize(
    "name", ["os.system", "regraft.techniques.regularise.sam.SAM", "subprocess.Popen", "__class__"]
)
def test_a_dotted_path_is_a_name_nobody_has(name):
    with pytest.raises(ConfigError, match="no technique is called"):
        parse_one({name: {}}, "technique")


def test_what_is_not_a_mapping_is_refused():
    with pytest.raises(ConfigError, match="a recipe is a mapping with `data:` and `models:`, got list"):
        load_yaml("- a\n- b", "recipe.yaml")


def test_a_recipe_of_another_format_is_refused():
    with pytest.raises(ConfigError, match=r"format must be 'regraft\.recipe/1', got 'regraft.recipe/9'"):
        parse_recipe("format: regraft.recipe/9\n" + RECIPE)


# ---- the catalogue


def test_the_catalogue_is_the_classes_found_on_disk():
    import ast

    root = Path(__file__).resolve().parents[2] / "regraft" / "techniques"
    found = {}
    for path in sorted(root.rglob("*.py")):
        classes = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)]
        bases = {node.name: {base.id for base in node.bases if isinstance(base, ast.Name)} for node in classes}
        techniques = {name for name, above in bases.items() if "Technique" in above}
        techniques |= {name for name, above in bases.items() if above & techniques}
        shared = {base for name in techniques for base in bases[name]}  # a base class is no technique itself
        module = ".".join(path.relative_to(root.parents[1]).with_suffix("").parts)
        found |= dict.fromkeys(techniques - shared, module)
    assert found == modules("technique")


def test_names_are_listed_in_order_and_without_importing_anything():
    assert [name for name in names("technique") if name in modules("technique")] == sorted(modules("technique"))


def test_the_defaults_of_a_recipe_are_specs_not_names():
    spec = RecipeSpec(data={"main": {"path": "a.csv"}}, models={"main": {"name": "minilm"}})
    assert dump_one(spec.train.optimizer) == "AdamW"
    assert dump_one(spec.train.schedule) == "Constant"
