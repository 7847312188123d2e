"""Schedules: each trace against torch's scheduler of the same name, or against the formula of its source."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import lr_scheduler as theirs

from regraft.config.catalogue import names
from regraft.config.parse import dump_one, parse_one
from regraft.core.values import Clock
from regraft.errors import ConfigError

TOTAL = 60
PLAIN = [name for name in names("schedule") if name != "Sequence"]


def trace(node, total=TOTAL):
    schedule = parse_one(node, "schedule")
    return [schedule(Clock(step, total)) for step in range(total)]


def traced(make, lr=1.0, total=TOTAL, **options):
    """The rates that torch's scheduler gives."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr, momentum=0.9)
    scheduler, rates, momenta = make(optimizer, **options), [], []
    for _ in range(total):
        rates.append(optimizer.param_groups[0]["lr"])
        momenta.append(optimizer.param_groups[0]["momentum"])
        optimizer.step()
        scheduler.step()
    return rates, momenta


ORACLES = {
    "linear": ("Linear", theirs.LinearLR, {"start_factor": 1.0, "end_factor": 0.0, "total_iters": TOTAL}),
    "linear to a tenth": (
        {"Linear": {"floor": 0.1}}, theirs.LinearLR, {"start_factor": 1.0, "end_factor": 0.1, "total_iters": TOTAL},
    ),
    "cosine": ({"Cosine": {"floor": 0.05}}, theirs.CosineAnnealingLR, {"T_max": TOTAL, "eta_min": 0.05}),
    "polynomial": ({"Polynomial": {"power": 3}}, theirs.PolynomialLR, {"total_iters": TOTAL, "power": 3}),
    "exponential": ({"Exponential": {"floor": 0.02}}, theirs.ExponentialLR, {"gamma": 0.02 ** (1 / TOTAL)}),
    "steps": ("StepDecay", theirs.MultiStepLR, {"milestones": [30, 45], "gamma": 0.1}),
    "triangular": (
        {"Cyclic": {"cycles": 3, "low": 0.2}}, theirs.CyclicLR, {"base_lr": 0.2, "max_lr": 1.0, "step_size_up": 10},
    ),
    "triangular2": (
        {"Cyclic": {"cycles": 3, "low": 0.2, "shrink": 0.5}}, theirs.CyclicLR,
        {"base_lr": 0.2, "max_lr": 1.0, "step_size_up": 10, "mode": "triangular2"},
    ),
    "exp_range": (
        {"Cyclic": {"cycles": 3, "low": 0.2, "shrink": 0.8, "smooth": True}}, theirs.CyclicLR,
        {"base_lr": 0.2, "max_lr": 1.0, "step_size_up": 10, "mode": "exp_range", "gamma": 0.8 ** (1 / 20)},
    ),
    "restarts of one length": (
        {"WarmRestarts": {"cycles": 3, "growth": 1, "floor": 0.1}}, theirs.CosineAnnealingWarmRestarts,
        {"T_0": 20, "eta_min": 0.1},
    ),
    "one cycle": (
        "OneCycle", theirs.OneCycleLR,
        {"max_lr": 1.0, "total_steps": TOTAL + 1, "pct_start": 0.3 * TOTAL / (TOTAL + 1), "final_div_factor": 1e4},
    ),
}  # fmt: skip


@pytest.mark.inventory("cosine", by="train.schedule: Cosine")
@pytest.mark.inventory("clr-triangular", by="train.schedule: Cyclic")
@pytest.mark.inventory("clr-exp", by="train.schedule: {Cyclic: {shrink: 0.8, smooth: true}}")
@pytest.mark.inventory("step-decay", by="train.schedule: StepDecay")
@pytest.mark.inventory("exp-decay", by="train.schedule: Exponential")
@pytest.mark.inventory("warm-restarts", by="train.schedule: WarmRestarts")
@pytest.mark.parametrize("case", [name for name in ORACLES if name != "one cycle"])
def test_a_trace_is_that_of_torch(case):
    node, make, options = ORACLES[case]
    assert trace(node) == pytest.approx(traced(make, **options)[0], rel=1e-9, abs=1e-12)


@pytest.mark.inventory("cosine", by="train.schedule: Cosine")
@pytest.mark.parametrize("floor", [0.0, 0.05])
def test_a_cosine_ends_at_its_floor(floor):
    schedule = parse_one({"Cosine": {"floor": floor}}, "schedule")
    assert schedule(Clock(TOTAL, TOTAL)) == pytest.approx(floor, abs=1e-15)


@pytest.mark.inventory("warm-restarts", by="train.schedule: WarmRestarts")
def test_restarts_grow_as_torch_has_them():
    ours = trace({"WarmRestarts": {"cycles": 3, "growth": 2}}, total=70)
    assert ours == pytest.approx(traced(theirs.CosineAnnealingWarmRestarts, T_0=10, T_mult=2, total=70)[0], abs=1e-12)


@pytest.mark.inventory("one-cycle", by="train.schedule: OneCycle")
def test_one_cycle_and_its_momentum_are_those_of_torch():
    rates, momenta = traced(
        theirs.OneCycleLR, lr=1.0, total=TOTAL, max_lr=1.0, total_steps=TOTAL + 1, pct_start=0.3,
        div_factor=25, final_div_factor=1e4,
    )  # fmt: skip
    schedule = parse_one("OneCycle", "schedule")
    ours = [schedule(Clock(step, TOTAL + 1)) for step in range(TOTAL)]
    assert ours == pytest.approx(rates, rel=1e-6)
    assert [schedule.momentum(Clock(step, TOTAL + 1)) for step in range(TOTAL)] == pytest.approx(momenta, rel=1e-6)


@pytest.mark.inventory("power-decay", by="train.schedule: Power")
def test_the_power_schedule_is_a_tenth_over_the_third_root():
    rates = [0.1 * factor for factor in trace("Power")]
    assert rates == pytest.approx([0.1 / step**0.3 for step in range(1, TOTAL + 1)], rel=1e-12)


@pytest.mark.inventory("clr-triangular", by="train.schedule: {Cyclic: {form: cosine}}")
def test_a_cosine_wave_has_its_valleys_and_peaks_where_the_triangle_has():
    wave = trace({"Cyclic": {"cycles": 3, "low": 0.2, "form": "cosine"}})
    assert [wave[0], wave[10], wave[20], wave[30]] == pytest.approx([0.2, 1.0, 0.2, 1.0])
    assert wave[5] == pytest.approx(0.6)


@pytest.mark.inventory("warmup", by="train.schedule: {Cosine: {warmup: 0.1}}")
def test_a_warm_up_rises_to_where_the_schedule_begins():
    rates = trace({"Cosine": {"warmup": 0.1}})
    assert rates[:6] == pytest.approx([k / 7 for k in range(1, 7)])
    assert rates[6:] == pytest.approx(traced(theirs.CosineAnnealingLR, T_max=54, total=54)[0])
    assert trace({"Cyclic": {"cycles": 1, "warmup": 0.1}})[5] < 0.1


@pytest.mark.inventory("warmup", by="train.schedule: {Cosine: {warmup: 10, warmup_factor: 0.1}}")
def test_a_warm_up_of_so_many_steps_may_be_held():
    def make(optimizer):
        inner = [
            theirs.ConstantLR(optimizer, factor=0.1, total_iters=100),
            theirs.CosineAnnealingLR(optimizer, T_max=50),
        ]
        return theirs.SequentialLR(optimizer, inner, milestones=[10])

    held = trace({"Cosine": {"warmup": 10, "warmup_factor": 0.1}})
    assert held == pytest.approx(traced(make)[0], abs=1e-9)
    assert trace({"Linear": {"warmup": 6}}) == trace({"Linear": {"warmup": 0.1}})
    assert trace({"Constant": {"warmup": 100}}) == pytest.approx([k / 101 for k in range(1, 61)])


@pytest.mark.inventory("warmup", by="train.schedule: {Constant: {warmup: 20}}")
def test_a_warm_up_spares_the_early_jump_of_the_loss():
    """Adam at a high rate on large batches: a deep network's loss jumps in the first steps unless the rate is low there."""
    import toy

    from regraft.core import fit

    def highest(seed, schedule):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            inner = [part for _ in range(4) for part in (torch.nn.Linear(64, 64), torch.nn.ReLU())]
            model = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.ReLU(), *inner, torch.nn.Linear(64, 4))
        update = toy.adam(lr=0.1, schedule=parse_one(schedule, "schedule"))
        source = toy.Tensors(toy.blobs(n=512, seed=seed), batch_size=256)
        report = fit(toy.recipe(toy.stage(model=model, source=source, steps=40, update=update)), seed=seed)
        return max(record["loss"] for record in report.history[:20])

    for seed in range(3):
        without = highest(seed, "Constant")
        for warm in ({"warmup": 40}, {"warmup": 20, "warmup_factor": 0.1}):
            assert highest(seed, {"Constant": warm}) < 0.8 * without


def test_a_sequence_holds_between_a_rise_and_a_fall():
    parts = [{"schedule": {"Constant": {"warmup": 10}}, "steps": 30}, {"schedule": "Linear"}]
    factors = trace({"Sequence": {"parts": parts}})
    assert factors[:10] == pytest.approx([k / 11 for k in range(1, 11)])
    assert factors[10:31] == [1.0] * 21
    assert factors[31:] == pytest.approx([1 - k / 30 for k in range(1, 30)])


def test_a_sequence_is_torchs_sequential():
    parts = [
        {"schedule": {"Constant": {}}, "steps": 10, "scale": 0.1},
        {"schedule": "Constant", "share": 0.5},
        {"schedule": {"Cosine": {"floor": 0.01}}},
    ]

    def make(optimizer):
        inner = [
            theirs.ConstantLR(optimizer, factor=0.1, total_iters=100),
            theirs.ConstantLR(optimizer, factor=1.0, total_iters=100),
            theirs.CosineAnnealingLR(optimizer, T_max=20, eta_min=0.01),
        ]
        return theirs.SequentialLR(optimizer, inner, milestones=[10, 40])

    ours = trace({"Sequence": {"parts": parts}})
    assert ours == pytest.approx(traced(make)[0], abs=1e-9)


@pytest.mark.parametrize("name", PLAIN)
@given(total=st.integers(1, 400), warmup=st.sampled_from([0.0, 0.1, 0.5]))
def test_factors_are_between_0_and_1_for_every_length(name, total, warmup):
    node = {name: {}} if name == "OneCycle" else {name: {"warmup": warmup}}
    for factor in trace(node, total):
        assert 0.0 <= factor <= 1.0
        assert math.isfinite(factor)


@pytest.mark.parametrize("name", PLAIN)
def test_a_schedule_survives_the_file(name):
    schedule = parse_one(name, "schedule")
    assert parse_one(dump_one(schedule), "schedule") == schedule


def test_a_sequence_survives_the_file():
    node = {"Sequence": {"parts": [{"schedule": "Constant", "steps": 3}, {"schedule": {"Power": {"exponent": 1.0}}}]}}
    assert dump_one(parse_one(node, "schedule")) == node


@pytest.mark.parametrize(
    ("node", "said"),
    [
        ({"StepDecay": {"at": [0.7, 0.5]}}, "ascending shares"),
        ({"OneCycle": {"warmup": 0.1}}, "the rise of the cycle is its warm-up"),
        ({"Sequence": {"parts": [{"schedule": "Constant"}, {"schedule": "Cosine"}]}}, "either `share` or `steps`"),
        ({"Sequence": {"parts": [{"schedule": "Cosine", "share": 0.5}]}}, "leave `share` and `steps` out there"),
        ({"Sequence": {"parts": []}}, "at least 1 item"),
        ({"Cosin": {}}, "did you mean 'Cosine'"),
        ({"Cosine": {"warmup": 1.5}}, "a share below 1, or a whole number of steps"),
        ({"Cosine": {"warmup_factor": 0.1}}, "say in `warmup` how long that is"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_sentence(node, said):
    with pytest.raises(ConfigError, match=said):
        parse_one(node, "schedule")


def test_parts_longer_than_the_stage_are_an_error():
    schedule = parse_one(
        {"Sequence": {"parts": [{"schedule": "Constant", "steps": 60}, {"schedule": "Cosine"}]}}, "schedule"
    )
    with pytest.raises(ConfigError, match="none is left"):
        schedule(Clock(0, 60))
