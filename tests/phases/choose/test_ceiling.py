"""The report says what training few weights cost against full fine-tuning, where both raced, and where to put them instead."""

from __future__ import annotations

import pytest

from regraft.phases.choose.ceiling import FEW, against_full


def entry(name, score, steps, *techniques):
    return {"name": name, "valid": {"score": score, "loss": 1.0}, "steps": steps, "techniques": list(techniques)}


@pytest.mark.inventory("adapter-placement-risk", by="regraft adapt (the report's reasons)")
def test_few_weights_are_compared_with_full_fine_tuning_where_both_raced():
    full = entry("full", 0.9, 400, {"Discriminative": {"decay": 0.9}})
    lora = entry("lora", 0.85, 200, {"LoRA": {"rank": 8}})
    adapter = entry("adapter", 0.95, 1000, "Adapter")
    probe = {"name": "probe", "valid": {"score": 0.8}, "steps": 0, "techniques": []}
    assert against_full([full, lora, adapter, probe]) == [
        "lora (LoRA) stood at 0.8500 on validation after 200 steps, full fine-tuning at 0.9000 on validation after 400 steps: "
        "0.0500 below it; more weights or other places may close that: search over `LoRA.targets, LoRA.blocks, LoRA.rank`",
        "adapter (Adapter) stood at 0.9500 on validation after 1,000 steps, full fine-tuning at 0.9000 on validation after 400 "
        "steps: 0.0500 above it",
    ]
    assert against_full([lora, probe]) == [], "full did not race, so there is nothing to compare with"
    refused = {"name": "full", "valid": {}, "steps": 0, "techniques": []}
    assert against_full([refused, lora]) == []


def test_it_knows_the_techniques_that_train_few_weights_by_their_names():
    from regraft.config.catalogue import modules

    peft = {name for name, module in modules("technique").items() if ".peft." in module}
    assert peft <= FEW <= modules("technique").keys()
