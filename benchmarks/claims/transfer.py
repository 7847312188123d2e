"""Claims about transfer: rates by depth, thawing in stages, and training the norm layers alone.

    python benchmarks/claims/transfer.py [--seeds 5] [--only SETTING ...] [--again]

MiniLM-L6 (text) and MobileNetV1-0.25 (images), each with the probe's head. Data comes from `REGRAFT_DATA`.
"""

from __future__ import annotations

from common import Arm, Claim, Experiment, Setting, run
from harness import DATA, MOBILENET

TEXT = {"path": str(DATA / "sst2"), "limit_valid": 400, "limit_test": 1000}
IMAGES = {"path": str(DATA / "sign_digits")}
STEADY = {"batch_size": 32, "steady": True, "schedule": {"Linear": {"warmup": 0.06}}, "precision": "bf16"}
PLAIN = STEADY | {"precision": "fp32"}

FULL = Arm(name="full, one rate", rates=(1e-4, 3e-4))
BY_DEPTH = Arm(
    name="full, rates by depth", rates=(1e-4, 3e-4), techniques=({"Discriminative": {"decay": 0.8, "head": 1.0}},)
)
THAW = Arm(name="staged thaw", rates=(1e-4, 3e-4), techniques=("StagedThaw",))
NORM = Arm(name="norm layers", rates=(5e-4, 2e-3), techniques=("NormOnly",))

HOWARD = "Howard and Ruder 2018, arXiv:1801.06146, section 3.2"
DEPTH = Claim(says="rates that fall with depth beat one rate", source=HOWARD, better=BY_DEPTH.name, than=FULL.name)
STAGES = Claim(says="thawing in stages beats thawing all at once", source=HOWARD, better=THAW.name, than=FULL.name)
NORMS = Claim(
    says="training the norm layers alone is as good as training everything (held: better; reversed: worse)",
    source="Qi et al. 2022, arXiv:2204.00733", better=NORM.name, than=FULL.name,
)  # fmt: skip


def experiments() -> list[Experiment]:
    """The same arms on 100 and 1,000 sentences, and on 100 and 800 photographs."""
    made = []
    for rows, steps in ((100, 40), (1000, 63)):
        text = Setting(
            name=f"sst2, {rows} rows", data=TEXT | {"limit": rows}, model={"name": "minilm", "max_length": 48}, steps=steps,
            train=STEADY,
        )  # fmt: skip
        made.append(Experiment(setting=text, arms=(FULL, BY_DEPTH, THAW, NORM), claims=(DEPTH, STAGES, NORMS)))
    for rows, steps in ((100, 60), (700, 120)):
        images = Setting(
            name=f"sign_digits, {rows} rows", data=IMAGES | {"limit": rows}, model={"name": str(MOBILENET)}, steps=steps,
            train=PLAIN,
        )  # fmt: skip
        arms = (
            Arm(name=FULL.name, rates=(5e-4, 2e-3, 8e-3)),
            Arm(
                name=BY_DEPTH.name,
                rates=(2e-3, 8e-3, 3e-2),
                techniques=({"Discriminative": {"decay": 0.9, "head": 1.0}},),
            ),
            Arm(name=THAW.name, rates=(5e-4, 2e-3, 8e-3), techniques=THAW.techniques),
            Arm(name=NORM.name, rates=(8e-3, 3e-2, 1e-1), techniques=NORM.techniques),
        )
        made.append(Experiment(setting=images, arms=arms, claims=(DEPTH, STAGES, NORMS)))
    return made


if __name__ == "__main__":
    run("transfer", experiments(), __doc__ or "")
