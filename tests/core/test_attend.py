"""What a run does for its steps does not keep it alive."""

from __future__ import annotations

import gc
import weakref

import toy

from regraft.core import fit
from regraft.core import train as loop


def test_an_optimizers_state_goes_with_its_run_and_does_not_wait_for_the_collector(monkeypatch):
    fit(
        toy.recipe(toy.stage(steps=1))
    )  # torch imports its compiler with the first optimizer, and that holds on to frames
    seen: list[weakref.ref] = []
    start = loop.start

    def watched(*args, **options):
        run = start(*args, **options)
        seen.append(weakref.ref(run))
        seen.extend(weakref.ref(update.optimizer) for update in run.step.updates.values())
        return run

    monkeypatch.setattr(loop, "start", watched)
    gc.disable()
    try:
        fit(toy.recipe(toy.stage(steps=2)))
        assert len(seen) == 2
        assert [each() for each in seen] == [None, None]
    finally:
        gc.enable()
