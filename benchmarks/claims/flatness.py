"""Claims about flat minima: does SAM, GSAM or weight averaging end in a flatter one, and does that help?

    python benchmarks/claims/flatness.py [--seeds 5] [--only SETTING ...] [--again]

Sharpness is measured on the training rows of the finished network in three ways (`regraft landscape`): the worst point within a
ball, the Hessian's largest eigenvalue, the mean rise under noise. Data comes from `REGRAFT_DATA`.
"""

from __future__ import annotations

from common import Arm, Claim, Experiment, Setting, Trained, run
from harness import DATA

RATES = (1e-3, 4e-3)
PLAIN = Arm(name="plain", rates=RATES)
SAM = Arm(name="SAM", rates=RATES, techniques=({"SAM": {"rho": 0.1}},))
GSAM = Arm(name="GSAM", rates=RATES, techniques=({"GSAM": {"rho": 0.1, "alpha": 0.4}},))
AVERAGED = Arm(name="SWA", rates=RATES, techniques=({"WeightAverage": {"kind": "uniform", "last": 0.25}},))
METHODS = {"epsilon-sharpness": "worst", "largest Hessian eigenvalue": "eigenvalue", "mean rise under noise": "noise"}
SOURCES = {
    "SAM": "Foret et al. 2021, arXiv:2010.01412",
    "GSAM": "Zhuang et al. 2022, arXiv:2203.08065",
    "SWA": "Izmailov et al. 2018, arXiv:1803.05407",
}


def sharpness(done: Trained) -> dict[str, float]:
    """The three measures on 256 training rows."""
    import torch

    from regraft.phases.landscape import measures_of, over

    stage = done.assembled.recipe.stages[-1]
    entry, model = done.assembled.main, done.assembled.recipe.model
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    ground = over(model, stage.objective, entry.encoded("train"), entry.targets("train"), names, 256, 0, "all")
    with ground.still():
        found = measures_of(ground.loss, ground.weights, torch.Generator().manual_seed(0))
    return {METHODS[each.method]: each.value for each in found}


def claims() -> tuple[Claim, ...]:
    """Each technique against the plain network: flatter by each measure, and more accurate."""
    made = []
    for arm in (SAM, GSAM, AVERAGED):
        for method, key in METHODS.items():
            made.append(
                Claim(
                    says=f"{arm.name} ends in a flatter minimum ({method})", source=SOURCES[arm.name], better=arm.name,
                    than=PLAIN.name, metric=key, lower=True,
                )
            )  # fmt: skip
        made.append(
            Claim(says=f"{arm.name} raises accuracy", source=SOURCES[arm.name], better=arm.name, than=PLAIN.name)
        )
    return tuple(made)


def experiments() -> list[Experiment]:
    """A residual network on 500 digits, and a perceptron on the digits of scikit-learn."""
    train = {"batch_size": 50, "schedule": {"Cosine": {"warmup": 0.05}}}
    images = Setting(
        name="mnist, 500 rows", data={"path": str(DATA / "mnist_5k"), "limit": 500}, steps=200, probe=False, train=train,
        model={"network": {"ConvNet": {"width": 16, "dropout": 0.0}}, "image_size": 14},
    )  # fmt: skip
    rows = Setting(
        name="digits, 500 rows", data={"path": "digits", "limit": 500}, steps=600, probe=False, train=train,
        model={"network": {"ConvNet": {"width": 8, "dropout": 0.0}}, "image_size": 8},
    )  # fmt: skip
    arms = (PLAIN, SAM, GSAM, AVERAGED)
    return [Experiment(setting=each, arms=arms, claims=claims(), measure=sharpness) for each in (images, rows)]


if __name__ == "__main__":
    run("flatness", experiments(), __doc__ or "")
