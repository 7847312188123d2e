"""Claims about parts of a vision transformer: attention alone and feed-forward layers alone against all weights.

    python benchmarks/claims/vision_transformer.py [--seeds 5] [--only SETTING ...] [--again]

No pretrained vision transformer is at hand, so a small one (6 blocks of width 96, patches of 7 x 7) is trained here on 4,000
digits first, and kept in a temporary folder; then it is carried over to clothing and to digits of another hand, with the
probe's head. Data comes from `REGRAFT_DATA`.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from common import Arm, Claim, Experiment, Setting, run
from harness import DATA, say

SIZE, EPOCHS = 28, 12
RATES = (3e-4, 1e-3)
FULL = Arm(name="full", rates=RATES)
ATTENTION = Arm(name="attention only", rates=RATES, techniques=("AttentionOnly",))
FFN = Arm(name="FFN only", rates=RATES, techniques=("FFNOnly",))
NORMS = Arm(name="norm layers", rates=(1e-3, 4e-3), techniques=("NormOnly",))
FISHER = Arm(name="a third of the norm layers", rates=(1e-3, 4e-3), techniques=({"FisherNorms": {"share": 0.33}},))

TOUVRON = "Touvron et al. 2022, arXiv:2203.09795, section 4"
VALIZADEH = "ValizadehAslani and Liang 2024, arXiv:2403.20284"


def pretrained(folder: Path) -> Path:
    """A small vision transformer trained on digits, in the layout of transformers; made where it is not there."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification

    from regraft.config.recipe import recipe_from_tree
    from regraft.core import fit
    from regraft.phases.build import assemble

    if (folder / "trained").exists():
        return folder
    config = ViTConfig(
        image_size=SIZE, patch_size=7, num_channels=3, hidden_size=96, num_hidden_layers=6, num_attention_heads=4,
        intermediate_size=384, num_labels=10, hidden_dropout_prob=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    ViTForImageClassification(config).save_pretrained(folder)
    preprocessing = {
        "image_processor_type": "ViTImageProcessor", "size": {"height": SIZE, "width": SIZE}, "do_resize": True,
        "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing), encoding="utf-8")
    tree = {
        "data": {"main": {"path": str(DATA / "mnist_5k")}},
        "models": {"main": {"name": str(folder), "head": "standard"}},
        "train": {
            "batch_size": 64, "augment": True, "optimizer": {"AdamW": {"lr": 1e-3}}, "schedule": {"Cosine": {"warmup": 0.1}},
        },
        "stages": [{"name": "pretrain", "steps": int(EPOCHS * 4000 / 64)}],
    }  # fmt: skip
    made = assemble(recipe_from_tree(tree))
    report = fit(made.recipe, seed=0)
    say(f"pretrained on digits: loss {report.history[-1]['loss']:.3f}")
    made.recipe.model.whole.save_pretrained(folder)
    (folder / "trained").touch()
    return folder


def experiments() -> list[Experiment]:
    """500 pieces of clothing, and 500 digits of another hand."""
    folder = pretrained(Path(tempfile.gettempdir()) / "regraft-claims-vit")
    sources = {ATTENTION.name: TOUVRON, FFN.name: TOUVRON, NORMS.name: VALIZADEH}
    claims = [
        Claim(says=f"{name} does better than all weights", source=source, better=name, than=FULL.name)
        for name, source in sources.items()
    ]
    claims.append(
        Claim(
            says="a third of the norm layers does better than all of them", source=VALIZADEH, better=FISHER.name,
            than=NORMS.name,
        )
    )  # fmt: skip
    made = []
    for name, data in (("fashion-mnist", "fashion_mnist_900"), ("usps", "usps_3k")):
        setting = Setting(
            name=f"{name}, 500 rows", data={"path": str(DATA / data), "limit": 500}, model={"name": str(folder)}, steps=160,
            train={"batch_size": 50, "schedule": {"Linear": {"warmup": 0.06}}},
        )  # fmt: skip
        made.append(Experiment(setting=setting, arms=(FULL, ATTENTION, FFN, NORMS, FISHER), claims=tuple(claims)))
    return made


if __name__ == "__main__":
    run("vision_transformer", experiments(), __doc__ or "")
