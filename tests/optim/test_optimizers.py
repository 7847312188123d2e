"""Optimizers: what each promises, what it keeps, and that a resumed one goes on to the same bits."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from regraft.config.catalogue import names
from regraft.config.parse import dump_one, parse_one
from regraft.core.checkpoint import load, save
from regraft.core.descent import Descent
from regraft.core.values import Clock, Loss
from regraft.errors import ConfigError

NAMES = names("optimizer")
VARIANTS = [
    *NAMES,
    {"SGD": {"momentum": 0.9, "nesterov": True}},
    {"RMSprop": {"momentum": 0.9, "centered": True}},
    {"Shampoo": {"every": 2}},
]


def parameters(seed=0):
    """A matrix, a vector and a kernel."""
    draw = torch.Generator().manual_seed(seed)
    shapes = {"matrix": (6, 5), "vector": (6,), "kernel": (4, 3, 2, 2)}
    return {name: nn.Parameter(torch.randn(shape, generator=draw)) for name, shape in shapes.items()}


def update(node, named, **options):
    return Descent(named, parse_one(node, "optimizer").build, **options)


def quadratic(named, scale=1.0):
    """A loss with curvatures from 1 to `scale`."""

    def loss(batch):
        curvature = torch.linspace(1.0, scale, 6)
        return Loss(sum((p.flatten()[:6].square() * curvature).sum() for p in named.values()) / 2)

    return loss


def steps(node, count, named=None, scale=1.0):
    named = named if named is not None else parameters()
    made = update(node, named)
    losses = [float(made(quadratic(named, scale), {"x": torch.zeros(1)}, Clock(k, count)).value) for k in range(count)]
    return named, made, losses


@pytest.mark.parametrize("node", VARIANTS, ids=json.dumps)
def test_it_goes_downhill(node):
    options = node if isinstance(node, dict) else {node: {}}
    ((name, fields),) = options.items()
    rate = {"Adadelta": 30.0, "SGD": 0.05, "Adafactor": 0.05, "Shampoo": 0.05}.get(name, 0.02)
    _, _, losses = steps({name: {**fields, "lr": rate}}, 40)
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("node", VARIANTS, ids=json.dumps)
def test_a_saved_one_goes_on_to_the_same_bits(node, tmp_path):
    named, made, _ = steps(node, 3)
    save(tmp_path / "saved", {"weights": dict(named), "update": made.state_dict()})
    state = load(tmp_path / "saved")
    others = {name: nn.Parameter(value.clone()) for name, value in state["weights"].items()}
    resumed = update(node, others)
    resumed.load_state_dict(state["update"])
    for k in range(3, 8):
        made(quadratic(named), {"x": torch.zeros(1)}, Clock(k, 8))
        resumed(quadratic(others), {"x": torch.zeros(1)}, Clock(k, 8))
    assert all(torch.equal(named[name], others[name]) for name in named)


@pytest.mark.inventory("opt-state-memory", by="regraft explain")
@pytest.mark.parametrize("node", VARIANTS, ids=json.dumps)
def test_what_it_keeps_is_known_beforehand(node):
    named = parameters()
    expected = parse_one(node, "optimizer").state_bytes(named)
    _, made, _ = steps(node, 3, named)
    assert held(list(made.optimizer.state.values())) == expected


def held(value):
    """Bytes of the tensors in a nest, counters apart."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size() if value.ndim else 0
    if isinstance(value, dict):
        return sum(held(each) for each in value.values())
    return sum(held(each) for each in value) if isinstance(value, list | tuple) else 0


@pytest.mark.parametrize("node", VARIANTS, ids=json.dumps)
def test_a_rate_of_zero_moves_nothing_and_an_unnamed_scale_is_one(node):
    named = parameters()
    before = {name: p.detach().clone() for name, p in named.items()}
    made = update(node, named)
    made.scale_rates({"vector": 0.0})
    for k in range(2):  # the first step of some computes no more than a preconditioner
        made(quadratic(named), {"x": torch.zeros(1)}, Clock(k, 2))
    assert torch.equal(named["vector"], before["vector"])
    assert not torch.equal(named["matrix"], before["matrix"])


@pytest.mark.parametrize("name", NAMES)
def test_a_file_gives_it_back(name):
    assert parse_one(dump_one(parse_one({name: {"lr": 0.5}}, "optimizer")), "optimizer").lr == 0.5


def scheduled(node, clocks):
    named = parameters()
    cycle = parse_one("OneCycle", "schedule")
    made = update(node, named, schedule=cycle, momentum=cycle.momentum)
    for clock in clocks:
        made(quadratic(named), {"x": torch.zeros(1)}, clock)
    return made.optimizer.param_groups


def test_a_schedule_moves_the_momentum_where_there_is_one():
    cycle = parse_one("OneCycle", "schedule")
    clocks = [Clock(k, 40) for k in range(3)]
    expected = cycle.momentum(clocks[-1])
    assert cycle.low_momentum < expected < cycle.high_momentum
    assert {group["betas"] for group in scheduled("AdamW", clocks)} == {(expected, 0.999)}
    assert {group["momentum"] for group in scheduled({"SGD": {"momentum": 0.9}}, clocks)} == {expected}
    with pytest.raises(ConfigError, match="the optimizer has none"):
        scheduled("Adagrad", clocks)


# ---- what tells them apart


@pytest.mark.inventory("adamw", by="train.optimizer: AdamW")
def test_adamw_shrinks_idle_matrices_by_rate_times_decay_and_leaves_vectors_alone():
    named = parameters()
    before = {name: p.detach().clone() for name, p in named.items()}
    made = parse_one({"AdamW": {"lr": 0.1, "weight_decay": 0.05}}, "optimizer").build(named, {})
    for p in named.values():
        p.grad = torch.zeros_like(p)
    made.step()
    torch.testing.assert_close(named["matrix"].detach(), before["matrix"] * (1 - 0.1 * 0.05), rtol=1e-6, atol=0)
    assert torch.equal(named["vector"], before["vector"])


def test_adams_penalty_is_not_its_decay():
    """An L2 term in the gradient is divided by its own size, so a weight of any size moves by the rate."""
    named = parameters()
    before = named["matrix"].detach().clone()
    made = parse_one({"Adam": {"lr": 0.1, "weight_decay": 0.05}}, "optimizer").build(named, {})
    for p in named.values():
        p.grad = torch.zeros_like(p)
    made.step()
    moved = (named["matrix"].detach() - before).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, 0.1), rtol=1e-4, atol=0)


@pytest.mark.inventory("adam", by="train.optimizer: Adam")
def test_adam_corrects_its_bias_by_one_minus_beta_to_the_t():
    """Three steps by hand, Kingma and Ba, algorithm 1."""
    named = {"w": nn.Parameter(torch.tensor([2.0]))}
    made = parse_one({"Adam": {"lr": 0.1}}, "optimizer").build(named, {})
    w, m, v = 2.0, 0.0, 0.0
    for t in range(1, 4):
        gradient = 3.0 * w
        named["w"].grad = 3.0 * named["w"].detach()
        made.step()
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        w -= 0.1 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        assert named["w"].item() == pytest.approx(w, rel=1e-6)


TORCH = {
    "SGD": ({"momentum": 0.9}, lambda ps: torch.optim.SGD(ps, lr=0.02, momentum=0.9)),
    "NAG": ({"momentum": 0.9, "nesterov": True}, lambda ps: torch.optim.SGD(ps, lr=0.02, momentum=0.9, nesterov=True)),
    "Adam": ({}, lambda ps: torch.optim.Adam(ps, lr=0.02)),
    "AdamW": ({"weight_decay": 0.1}, lambda ps: torch.optim.AdamW(ps, lr=0.02, weight_decay=0.1)),
    "Adagrad": ({}, lambda ps: torch.optim.Adagrad(ps, lr=0.02)),
    "Adadelta": ({}, lambda ps: torch.optim.Adadelta(ps, lr=0.02, rho=0.9)),
    "RMSprop": ({}, lambda ps: torch.optim.RMSprop(ps, lr=0.02)),
}


@pytest.mark.inventory("sgd-momentum", by="train.optimizer: {SGD: {momentum: 0.9}}")
@pytest.mark.inventory("nesterov", by="train.optimizer: {SGD: {momentum: 0.9, nesterov: true}}")
@pytest.mark.inventory("adam", by="train.optimizer: Adam")
@pytest.mark.parametrize("name", TORCH)
def test_a_descent_of_it_is_torchs_own_step_by_step(name):
    options, make = TORCH[name]
    named, theirs = {"matrix": parameters()["matrix"]}, nn.Parameter(parameters()["matrix"].detach().clone())
    made, reference = update({"SGD" if name == "NAG" else name: {"lr": 0.02, **options}}, named), make([theirs])
    for k in range(10):
        made(quadratic(named, 5.0), {"x": torch.zeros(1)}, Clock(k, 10))
        reference.zero_grad()
        quadratic({"matrix": theirs}, 5.0)({}).value.backward()
        reference.step()
    torch.testing.assert_close(named["matrix"], theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.inventory("nesterov", by="train.optimizer: {SGD: {momentum: 0.9, nesterov: true}}")
def test_nesterov_is_the_gradient_at_where_the_momentum_leads():
    """Nesterov's own form: v' = mu v - lr g(w + mu v), w' = w + v'; torch keeps w + mu v. Sutskever et al., 2013, eq. 3 and 4."""
    named, curvature = {"w": nn.Parameter(torch.tensor([3.0, -1.0]))}, torch.tensor([1.0, 10.0])
    made = parse_one({"SGD": {"lr": 0.05, "momentum": 0.8, "nesterov": True}}, "optimizer").build(named, {})
    w, v = torch.tensor([3.0, -1.0]), torch.zeros(2)
    for _ in range(12):
        named["w"].grad = curvature * named["w"].detach()
        made.step()
        v = 0.8 * v - 0.05 * curvature * (w + 0.8 * v)
        w = w + v
        torch.testing.assert_close(named["w"].detach(), w + 0.8 * v, rtol=1e-5, atol=1e-6)


@pytest.mark.inventory("adadelta", by="train.optimizer: Adadelta")
def test_adadelta_keeps_running_means_and_needs_no_rate():
    """Zeiler, algorithm 1, by hand at rate 1; the same default goes downhill whatever the scale of the loss."""
    named = {"w": nn.Parameter(torch.tensor([2.0]))}
    made = parse_one("Adadelta", "optimizer").build(named, {})
    w, squares, steps_ = 2.0, 0.0, 0.0
    for _ in range(20):
        named["w"].grad = 3.0 * named["w"].detach()
        made.step()
        gradient = 3.0 * w
        squares = 0.9 * squares + 0.1 * gradient**2
        step = np.sqrt(steps_ + 1e-6) / np.sqrt(squares + 1e-6) * gradient
        steps_ = 0.9 * steps_ + 0.1 * step**2
        w -= step
        assert named["w"].item() == pytest.approx(w, rel=1e-4)

    def fallen(scale):
        losses = steps("Adadelta", 400, scale=scale)[2]
        return losses[-1] / losses[0]

    assert max(fallen(scale) for scale in (0.1, 1.0, 100.0)) < 0.5


@pytest.mark.inventory("sgd-momentum", by="train.optimizer: {SGD: {momentum: 0.9}}")
def test_momentum_needs_fewer_steps_where_curvatures_differ():
    def needed(node):
        losses = steps(node, 400, scale=50.0)[2]
        return next(k for k, loss in enumerate(losses) if loss < 1e-8 * losses[0])

    assert needed({"SGD": {"lr": 0.03, "momentum": 0.8}}) < 0.6 * needed({"SGD": {"lr": 0.03}})


@pytest.mark.inventory("adagrad", "rmsprop", by="train.optimizer: Adagrad, RMSprop")
def test_adagrads_sum_never_falls_and_rmsprops_mean_stays_bounded():
    named = {"w": nn.Parameter(torch.ones(3))}
    grad, sums, means = torch.tensor([1.0, 2.0, 0.5]), [], []
    for node, key, kept in (("Adagrad", "sum", sums), ({"RMSprop": {"alpha": 0.9}}, "square_avg", means)):
        made = parse_one(node, "optimizer").build(named, {})
        for k in range(50):
            named["w"].grad = grad * (-1) ** k
            made.step()
            kept.append(made.state[named["w"]][key].clone())
    assert all((later > earlier).all() for earlier, later in pairwise(sums))
    rates = [float(0.01 / (total.sqrt() + 1e-10).max()) for total in sums]  # of the weight with the largest gradient
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(rates[0] / 50**0.5, rel=1e-5)
    assert torch.allclose(sums[-1], 50 * grad.square())
    assert (means[-1] <= grad.square() * (1 + 1e-5)).all()


@pytest.mark.inventory("lion", by="train.optimizer: Lion")
def test_lion_moves_every_weight_by_the_rate():
    named = {"w": nn.Parameter(torch.zeros(4))}
    made = parse_one({"Lion": {"lr": 0.01, "weight_decay": 0.0}}, "optimizer").build(named, {})
    named["w"].grad = torch.tensor([3.0, -0.001, 40.0, -2.0])
    made.step()
    assert named["w"].detach().tolist() == pytest.approx([-0.01, 0.01, -0.01, 0.01])
    assert [key for key, value in made.state[named["w"]].items() if isinstance(value, torch.Tensor)] == ["exp_avg"]


@pytest.mark.inventory("adafactor", by="train.optimizer: Adafactor")
def test_adafactor_keeps_the_sides_of_a_matrix():
    named = {"w": nn.Parameter(torch.zeros(512, 256))}
    sizes = {name: parse_one(name, "optimizer").state_bytes(named) for name in ("Adafactor", "AdamW", "SGD", "Lion")}
    assert sizes == {"Adafactor": 4 * 768, "AdamW": 8 * 512 * 256, "SGD": 0, "Lion": 4 * 512 * 256}


@pytest.mark.inventory("shampoo", by="train.optimizer: Shampoo")
def test_shampoo_needs_fewer_steps_than_sgd_on_a_kronecker_structured_quadratic():
    draw = torch.Generator().manual_seed(0)
    left, right = (torch.diag(torch.logspace(0, -2, n)) for n in (8, 6))
    turn_left, turn_right = (torch.linalg.qr(torch.randn(n, n, generator=draw))[0] for n in (8, 6))
    left, right = turn_left @ left @ turn_left.T, turn_right @ right @ turn_right.T

    def loss_after_60(name, rate):
        named = {"w": nn.Parameter(torch.randn(8, 6, generator=torch.Generator().manual_seed(1)))}
        made = update({name: {"lr": rate}}, named)

        def loss(batch):
            return Loss((named["w"] * (left @ named["w"] @ right)).sum() / 2)

        return [float(made(loss, {"x": torch.zeros(1)}, Clock(k, 60)).value) for k in range(60)][-1]

    sgd = min(loss_after_60("SGD", rate) for rate in (0.3, 0.6, 1.0, 1.5, 1.9))
    assert min(loss_after_60("Shampoo", rate) for rate in (0.03, 0.1, 0.3, 1.0)) < 0.5 * sgd
