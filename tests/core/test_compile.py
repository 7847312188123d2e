"""Order, refusals and the nest that `explain` prints."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import pytest
from torch import nn
from toy import Tensors, adam, blobs, mlp, recipe, stage

from regraft.core import Loss, OneUpdate, Technique, compile, each_stage, explain, fit
from regraft.core.compile import rank
from regraft.errors import ConfigError, Conflict
from regraft.losses.supervised import cross_entropy
from regraft.techniques.continual.ewc import EWC
from regraft.techniques.distil.distillation import Distillation
from regraft.techniques.domain.dann import DANN
from regraft.techniques.generative.gan import GAN
from regraft.techniques.meta.maml import MAML
from regraft.techniques.regularise.sam import SAM
from regraft.techniques.regularise.weight_average import WeightAverage
from regraft.testing import Players, network, toy_recipe


class Rogue(Technique):
    """Changes what it does not declare."""

    wraps: ClassVar[frozenset[str]] = frozenset({"hooks"})

    def apply(self, recipe):
        return each_stage(recipe, lambda s: replace(s, update=adam(1.0)))


class Doubling(Technique):
    """Makes two stages of one without saying so."""

    wraps: ClassVar[frozenset[str]] = frozenset({"hooks"})

    def apply(self, recipe):
        return replace(recipe, stages=recipe.stages * 2)


class OtherStep(Technique):
    """Another technique that provides the step."""

    provides: ClassVar[frozenset[str]] = frozenset({"step"})

    def apply(self, recipe):
        return each_stage(recipe, lambda s: replace(s, step=lambda given: OneUpdate(given)))


def test_a_technique_that_changes_an_undeclared_slot_is_refused():
    with pytest.raises(TypeError) as error:
        compile(recipe(stage()), [Rogue()])
    assert str(error.value) == "Rogue changed ['update'] of stage 'toy' without declaring it"


def test_a_technique_that_splits_stages_without_declaring_it_is_refused():
    with pytest.raises(TypeError) as error:
        compile(recipe(stage()), [Doubling()])
    assert str(error.value) == "Doubling changed the number of stages without declaring `splits`"


@pytest.mark.parametrize(
    ("techniques", "sentence"),
    [
        ((MAML(), GAN()), "GAN never calls the objective, so MAML would have no effect"),
        ((EWC(), GAN(), SAM()), "GAN never calls the objective, so EWC would have no effect"),
        ((GAN(), OtherStep()), "GAN and OtherStep both provide the step; keep one"),
        (
            (MAML(),),
            "MAML draws tasks from labelled examples or takes support_* and query_*, but the source of stage 'toy' is "
            "Tensors and yields ['x']",
        ),
        (
            (GAN(),),
            "GAN needs a model with `.generator`, `.discriminator` and `.latent`, such as the network GenerativePair, but "
            "stage 'toy' trains a Sequential",
        ),
    ],
)
def test_what_would_have_no_effect_is_refused_in_a_sentence(techniques, sentence):
    with pytest.raises(Conflict) as error:
        compile(recipe(stage()), techniques)
    assert str(error.value) == sentence


class ReadsTargets(Technique):
    """Reads a role that a plain source does not yield."""

    wraps: ClassVar[frozenset[str]] = frozenset({"objective"})
    reads: ClassVar[frozenset[str]] = frozenset({"", "target"})

    def apply(self, recipe):
        return recipe


def test_a_role_that_the_source_does_not_yield_is_named():
    with pytest.raises(Conflict) as error:
        compile(recipe(stage()), [ReadsTargets()])
    assert str(error.value) == "ReadsTargets reads target_*, but the source of stage 'toy' yields ['x']"


def test_plain_examples_are_missed_where_a_batch_holds_tasks():
    with pytest.raises(Conflict, match="reads plain examples"):
        compile(toy_recipe(network()), [MAML(ways=3, shots=2, queries=2), DANN(target="target")])


@pytest.mark.parametrize(
    ("technique", "sentence"),
    [
        (
            Distillation(teacher="teachr"),
            "Distillation.teacher: no entry of `models:` is called 'teachr'; did you mean 'teacher'?",
        ),
        (
            DANN(target="elsewhere"),
            "DANN.target: no entry of `data:` is called 'elsewhere'; one of: target",
        ),
    ],
)
def test_a_reference_to_a_part_that_is_not_there_suggests_the_nearest(technique, sentence):
    with pytest.raises(ConfigError) as error:
        compile(toy_recipe(network()), [technique])
    assert str(error.value) == sentence


def test_a_conflict_is_found_whatever_order_is_listed():
    for order in (1, -1):
        with pytest.raises(Conflict, match="so MAML would have no effect"):
            compile(recipe(stage()), [MAML(), GAN()][::order])


def test_providers_come_before_wrappers_and_the_inside_before_the_outside():
    listed = [EWC(), SAM(), DANN(target="t"), MAML(), OtherStep(), WeightAverage()]
    ordered = [type(t).__name__ for t in sorted(listed, key=rank)]
    assert ordered == ["OtherStep", "MAML", "WeightAverage", "DANN", "EWC", "SAM"]


def test_maml_is_inside_ewc_in_either_listed_order():
    """EWC's penalty goes around the loss over tasks; kept un-lifted it would ask for plain examples and crash."""
    for order in (1, -1):
        techniques = [EWC(weight=1.0, samples=4), MAML(ways=3, shots=2, queries=2)][::order]
        compiled = compile(toy_recipe(network(), steps=2), techniques)
        assert type(compiled.stages[0].objective).__name__ == "Penalised"
        assert type(compiled.stages[0].objective.base).__name__ == "QueryLoss"
        fit(compiled)


def test_compiling_leaves_the_recipe_as_it_was():
    plain = recipe(stage())
    before = plain.stages[0]
    compile(plain, [SAM(), EWC()])
    assert plain.stages[0] is before
    assert before.hooks == ()
    assert before.objective is cross_entropy


def test_explain_prints_the_nest_from_the_outside_in():
    compiled = compile(toy_recipe(network()), [EWC(), Distillation(teacher="teacher"), SAM()])
    assert explain(compiled).splitlines()[:7] == [
        "stage first: 5 steps, 788 trainable parameters",
        "  model     Sequential",
        "  source    Precompute(Examples)",
        "  objective Penalised(Distilled(cross_entropy))",
        "  update    Climbing(Descent(Adam, Constant, fp32))",
        "  step      OneUpdate",
        "  hooks     Consolidate(Distilled(cross_entropy))",
    ]


class Weighty(nn.Module):
    """An objective with a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(mlp().get_parameter("0.weight").new_ones(()))

    def forward(self, model, batch, clock):
        loss = cross_entropy(model, batch, clock)
        return Loss(loss.value * self.scale, loss.weight, loss.terms)


WRAPPERS = [Distillation(teacher="teacher"), EWC(), DANN(target="target"), MAML(ways=3, shots=2, queries=2)]


@pytest.mark.parametrize("technique", WRAPPERS)
def test_the_weights_of_an_inner_objective_still_train_under_every_wrapper(technique):
    plain = toy_recipe(network(), steps=2)
    objective = Weighty()
    compiled = compile(each_stage(plain, lambda s: replace(s, objective=objective)), [technique])
    names = [name for name in compiled.stages[0].trainable() if name.endswith("scale")]
    assert len(names) == 1
    fit(compiled)
    assert objective.scale.item() != 1.0


def test_all_but_the_frozen_are_asked_for():
    """The `model.parameters()` trap: gradients of a frozen tensor do not exist, and EWC must not ask for them."""
    model = mlp()
    model[0].requires_grad_(False)
    fit(compile(recipe(stage(model, steps=2, source=Tensors(blobs()))), [EWC(samples=8), SAM(), WeightAverage()]))
    assert model[0].weight.grad is None


def test_gan_trains_players_from_the_table():
    assert compile(toy_recipe(Players()), [GAN(), SAM()]).stages[0].step is not OneUpdate
