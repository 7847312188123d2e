"""Claims about label smoothing, MixUp and stochastic weight averaging: accuracy and calibration.

    python benchmarks/claims/regularisers.py [--seeds 5] [--only SETTING ...] [--again]

Small residual networks from scratch on few images. Data comes from `REGRAFT_DATA`.
"""

from __future__ import annotations

from common import Arm, Claim, Experiment, Setting, run
from harness import DATA

RATES = (1e-3, 4e-3)
PLAIN = Arm(name="plain", rates=RATES)
SMOOTH = Arm(name="label smoothing 0.1", rates=RATES, train={"loss": {"CrossEntropy": {"label_smoothing": 0.1}}})
MIXED = Arm(name="MixUp 0.2", rates=RATES, techniques=({"MixUp": {"alpha": 0.2}},))
AVERAGED = Arm(name="SWA", rates=RATES, techniques=({"WeightAverage": {"kind": "uniform", "last": 0.25}},))

MULLER = "Müller et al. 2019, arXiv:1906.02629"
THULASIDASAN = "Thulasidasan et al. 2019, arXiv:1905.11001"
IZMAILOV = "Izmailov et al. 2018, arXiv:1803.05407"


def claims() -> tuple[Claim, ...]:
    """Each technique against the plain network, by accuracy and by calibration error."""
    made = []
    for arm, source in ((SMOOTH, MULLER), (MIXED, THULASIDASAN), (AVERAGED, IZMAILOV)):
        made.append(Claim(says=f"{arm.name} raises accuracy", source=source, better=arm.name, than=PLAIN.name))
        made.append(
            Claim(
                says=f"{arm.name} lowers the expected calibration error", source=source, better=arm.name, than=PLAIN.name,
                metric="ece", lower=True,
            )
        )  # fmt: skip
    return tuple(made)


def experiments() -> list[Experiment]:
    """500 digits and 500 pieces of clothing at 14 x 14 pixels, with 1,000 and 300 test images."""
    train = {"batch_size": 50, "schedule": {"Cosine": {"warmup": 0.05}}}
    network = {"network": {"ConvNet": {"width": 16, "dropout": 0.0}}, "image_size": 14}
    return [
        Experiment(
            setting=Setting(
                name=name,
                data={"path": str(DATA / folder), "limit": 500},
                model=network,
                steps=300,
                probe=False,
                train=train,
            ),
            arms=(PLAIN, SMOOTH, MIXED, AVERAGED),
            claims=claims(),
        )
        for name, folder in (("mnist, 500 rows", "mnist_5k"), ("fashion-mnist, 500 rows", "fashion_mnist_900"))
    ]


if __name__ == "__main__":
    run("regularisers", experiments(), __doc__ or "")
