"""No technique waits for the device within a step; an update does once, to learn whether its gradients are finite."""

from __future__ import annotations

from unittest.mock import patch

import pytest
from techniques.cases import CASES
from torch import Tensor

from regraft.core import Descent, compile
from regraft.core.train import start
from regraft.testing import toy_recipe

READS = ("item", "tolist", "__float__", "__bool__", "__int__", "numpy")


READ_BY_DESIGN = {
    "AdaptiveBackprop": ["numpy"],  # once a round: what the tensors gained decides which of them train
    "Guard": ["__float__"]
    * 4,  # in each of two steps: the loss, for `spike`, and whether the weights are finite, for "roll_back"
    "HypergradientLR": ["__float__"] * 6,  # in each of two steps: two lengths and an inner product decide the rate
    # one table of inner products is fetched in each of two steps; the rest is read of it, and of orders drawn on the processor
    "PCGrad": [*["numpy"] * 6, *["tolist"] * 10],
    # transformers looks whether a mask has padding in it; the two steps of a plain tiny encoder do so as well
    "PTuning": ["__bool__"] * 2,
    "PrefixTuning": ["__bool__"] * 2,
    "PromptTuning": ["__bool__"] * 2,
    "StopWhen": ["__float__"] * 4,  # in each of two steps the norm of the gradient and that of the step
}


@pytest.mark.parametrize("name", CASES)
def test_a_step_reads_one_number_from_the_device_for_each_update_it_makes(name):
    case = CASES[name]
    recipe = toy_recipe(case.network(0.0), shows=case.shows, objective=case.objective)
    run = start(compile(recipe, [case.technique]))
    source = run.stage.source.batches(run.stage.model)
    batches = [next(source) for _ in range(3)]
    run.step(batches[0], run.clock)  # optimizers set themselves up
    reads = []
    originals = {read: getattr(Tensor, read) for read in READS}

    def noting(read):
        def call(self, *args, **kwargs):
            reads.append(read)
            return originals[read](self, *args, **kwargs)

        return call

    applied = []
    originals["apply"] = Descent.apply

    def counting(self, clock):
        applied.append(clock)
        originals["apply"](self, clock)

    with patch.multiple(Tensor, **{read: noting(read) for read in READS}), patch.object(Descent, "apply", counting):
        for batch in batches[1:]:
            run.step(batch, run.clock)
            for hook in run.hooks:
                hook.on_step(run, None)
    assert sorted(reads) == sorted(READ_BY_DESIGN.get(name, []) + ["__float__"] * len(applied))
    assert len(applied) >= 2
