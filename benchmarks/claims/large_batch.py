"""Claims about large batches: the linear scaling rule, and warm-up where the scaled rate is high.

    python benchmarks/claims/large_batch.py [--seeds 5] [--only SETTING ...] [--again]

The same number of epochs with batches of 32 and of 512. Data comes from `REGRAFT_DATA`.
"""

from __future__ import annotations

from common import Arm, Claim, Experiment, Setting, Tree, run
from harness import DATA

BASE, SMALL, LARGE, EPOCHS, ROWS = 0.02, 32, 512, 12, 3072
GOYAL = "Goyal et al. 2017, arXiv:1706.02677, section 2"


def arm(name: str, *, batch: int, rate: float, warmup: float) -> Arm:
    """SGD with momentum for as many epochs as the others."""
    train: Tree = {"batch_size": batch, "schedule": {"Cosine": {"warmup": warmup}}, "max_norm": None}
    options = {"momentum": 0.9, "nesterov": True}
    return Arm(
        name=name, rates=(rate,), train=train, steps=EPOCHS * ROWS // batch, optimizer="SGD", optimizer_options=options
    )


REFERENCE = arm("batch 32", batch=SMALL, rate=BASE, warmup=0.0)
SAME = arm("batch 512, same rate", batch=LARGE, rate=BASE, warmup=0.0)
SCALED = arm("batch 512, rate x16", batch=LARGE, rate=BASE * LARGE / SMALL, warmup=0.0)
WARMED = arm("batch 512, rate x16, warm-up", batch=LARGE, rate=BASE * LARGE / SMALL, warmup=0.2)


def experiments() -> list[Experiment]:
    """3,072 digits of 14 x 14 pixels."""
    setting = Setting(
        name="mnist, 3,072 rows", data={"path": str(DATA / "mnist_5k"), "limit": ROWS}, steps=0, probe=False,
        model={"network": {"ConvNet": {"width": 16, "dropout": 0.0}}, "image_size": 14},
    )  # fmt: skip
    claims = (
        Claim(
            says="at a larger batch, the rate scaled with it beats the same rate", source=GOYAL, better=SCALED.name,
            than=SAME.name,
        ),
        Claim(
            says="at a large batch and its rate, warm-up beats none", source=GOYAL, better=WARMED.name, than=SCALED.name
        ),
        Claim(
            says="the linear scaling rule with warm-up keeps the small batch's accuracy (reversed: it loses some)",
            source=GOYAL, better=WARMED.name, than=REFERENCE.name,
        ),
    )  # fmt: skip
    return [Experiment(setting=setting, arms=(REFERENCE, SAME, SCALED, WARMED), claims=claims)]


if __name__ == "__main__":
    run("large_batch", experiments(), __doc__ or "")
