"""Every pair of techniques composes, with each having its effect and in either listed order, or is refused in a sentence."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
from techniques.cases import CASES

from regraft.core import Recipe, compile, fit
from regraft.errors import ConfigError, Conflict
from regraft.losses.supervised import cross_entropy
from regraft.testing import Case, Players, Rows, assert_sentence, differing, model_state, toy_recipe

PAIRS = list(itertools.combinations(sorted(CASES), 2))


def built(model_case: Case, *techniques: Case) -> Recipe:
    recipe = toy_recipe(
        model_case.network(0.0), steps=4, frozen=True, shows=model_case.shows, objective=model_case.objective
    )
    return compile(recipe, [case.technique for case in techniques])


def trained(model_case: Case, *techniques: Case) -> dict:
    recipe = built(model_case, *techniques)
    report = fit(recipe)
    assert all(math.isfinite(record["loss"]) for record in report.history)
    return model_state(recipe)


def refusal(one: Case, other: Case, model_case: Case) -> str | None:
    """Why the pair is refused, when it is compiled or as a stage starts."""
    try:
        recipe = built(model_case, one, other)
        for stage in recipe.stages:
            stage.prepare()
            stage.step(stage)
    except (Conflict, ConfigError) as error:
        return str(error)
    return None


@pytest.mark.parametrize(("first", "second"), PAIRS, ids=[f"{a}-{b}" for a, b in PAIRS])
def test_every_pair_composes_or_is_refused(first, second):
    one, other = CASES[first], CASES[second]
    model_case = shared_toy(one, other)
    sentences = [refusal(one, other, model_case), refusal(other, one, model_case)]
    assert (sentences[0] is None) == (sentences[1] is None), sentences
    if sentences[0] is not None:
        for sentence in sentences:
            assert_sentence(sentence)
        return
    both = trained(model_case, one, other)
    assert differing(both, trained(model_case, other, one)) == [], "the listed order changed the weights"
    for kept, dropped in ((one, other), (other, one)):
        if dropped.effect and not alone_is_refused(kept, model_case):
            assert differing(both, trained(model_case, kept)), f"{dropped.name} had no effect beside {kept.name}"


def shared_toy(one: Case, other: Case) -> Case:
    """The case whose network both train, with rows shown as one of the two needs them."""
    case = one if one.network is Players else other
    shows = next((c.shows for c in (one, other) if c.shows is not Rows), Rows)
    objective = next((c.objective for c in (one, other) if c.objective is not cross_entropy), cross_entropy)
    return case if case.network is Players else replace(case, shows=shows, objective=objective)


def alone_is_refused(case: Case, model_case: Case) -> bool:
    """Can the model of the pair not be trained by this technique alone, as a generator and a discriminator without GAN?"""
    return model_case.network is Players and case.network is not Players


def test_the_table_holds_every_technique_of_the_catalogue():
    from regraft.config.catalogue import modules

    assert sorted(CASES) == sorted(modules("technique"))
