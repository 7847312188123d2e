"""Losses of recipes: each against torch, scikit-learn or its formula, and its gradient against finite differences."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from regraft.config.catalogue import find, names
from regraft.config.parse import dump_one, parse_one
from regraft.config.recipe import parse_recipe
from regraft.core import Clock
from regraft.core.micro_batch import why_whole
from regraft.core.values import split
from regraft.errors import ConfigError
from regraft.losses.criterion import MeanOverExamples, objective_of, question_of
from regraft.losses.supervised import objective_for

NAMES = names("loss")
PAIRS = [(name, task) for name in NAMES for task in sorted(find("loss", name).tasks - {"language-model"})]
HERE = Clock(0, 1)


class Given(nn.Module):
    """A model whose outputs are parameters."""

    def __init__(self, outputs):
        super().__init__()
        self.outputs = nn.Parameter(outputs.clone())

    def forward(self, x):
        return self.outputs[x.long()]


def targets_for(task, n=12, c=4, seed=0):
    draw = torch.Generator().manual_seed(seed)
    if task == "multilabel":
        return (torch.rand(n, c, generator=draw) > 0.6).float()
    if task == "regression":
        return torch.randn(n, generator=draw)
    return torch.randint(2 if task == "binary" else c, (n,), generator=draw)


def outputs_for(task, n=12, c=4, seed=1):
    width = {"binary": 2, "regression": 1}.get(task, c)
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def loss_of(node, outputs, target, task, counts_from=None, **extra):
    """Value of the objective, and the model it was called on."""
    model = Given(outputs)
    question = question_of(task, target if counts_from is None else counts_from, outputs.shape[1])
    objective = objective_of(parse_one(node, "loss") if node else None, question)
    batch = {"x": torch.arange(len(outputs)), "y": target} | extra
    return objective(model, batch, HERE), model


# ---- numbers


@pytest.mark.inventory("ce", by="train.loss: CrossEntropy")
def test_cross_entropy_is_torchs_with_smoothing_weights_and_missing_targets():
    outputs, target = outputs_for("multiclass"), targets_for("multiclass")
    target[3] = -1
    weights = (0.5, 1.0, 2.0, 4.0)
    ours, _ = loss_of({"CrossEntropy": {"class_weights": weights}}, outputs, target, "multiclass")
    theirs = F.cross_entropy(outputs, target, weight=torch.tensor(weights), ignore_index=-1)
    torch.testing.assert_close(ours.value, theirs, rtol=1e-6, atol=0)
    ours, _ = loss_of({"CrossEntropy": {"label_smoothing": 0.1}}, outputs, target, "multiclass")
    torch.testing.assert_close(
        ours.value, F.cross_entropy(outputs, target, ignore_index=-1, label_smoothing=0.1), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("CrossEntropy", "binary"),
        ("CrossEntropy", "multiclass"),
        ("CrossEntropy", "multilabel"),
        ("MSE", "regression"),
    ],
)
def test_the_usual_objective_has_a_name(name, task):
    outputs, target = outputs_for(task), targets_for(task)
    named, _ = loss_of(name, outputs, target, task)
    usual = objective_for(task)(Given(outputs), {"x": torch.arange(len(outputs)), "y": target}, HERE)
    torch.testing.assert_close(named.value, usual.value, rtol=1e-6, atol=0)
    assert set(named.terms) == set(usual.terms)


@pytest.mark.inventory("label-smoothing", by="train.loss: {CrossEntropy: {label_smoothing: 0.1}}")
def test_smoothed_targets_sum_to_one():
    """The gradient at zero logits is softmax minus target, so its sum over the classes is zero."""
    loss, model = loss_of(
        {"CrossEntropy": {"label_smoothing": 0.3}}, torch.zeros(1, 5), torch.tensor([2]), "multiclass"
    )
    loss.value.backward()
    smoothed = 0.2 - model.outputs.grad[0]
    assert smoothed.tolist() == pytest.approx([0.06, 0.06, 0.76, 0.06, 0.06])


def test_balanced_weights_are_those_of_scikit_learn():
    from sklearn.utils.class_weight import compute_class_weight

    target = torch.tensor([0] * 9 + [1] * 2 + [2])
    outputs = outputs_for("multiclass", c=3)
    theirs = compute_class_weight("balanced", classes=np.arange(3), y=target.numpy())
    ours, _ = loss_of({"CrossEntropy": {"class_weights": "balanced"}}, outputs, target, "multiclass")
    expected = F.cross_entropy(outputs, target, weight=torch.from_numpy(theirs).float())
    torch.testing.assert_close(ours.value, expected, rtol=1e-6, atol=0)


@pytest.mark.inventory("focal", by="train.loss: Focal")
@pytest.mark.parametrize("task", ["binary", "multiclass", "multilabel"])
def test_focal_without_focus_is_cross_entropy_and_with_it_what_the_paper_says(task):
    outputs, target = outputs_for(task), targets_for(task)
    plain, _ = loss_of({"Focal": {"gamma": 0}}, outputs, target, task)
    usual, _ = loss_of("CrossEntropy", outputs, target, task)
    torch.testing.assert_close(plain.value, usual.value, rtol=1e-5, atol=1e-6)
    if task == "multiclass":
        p = outputs.softmax(-1)[torch.arange(len(target)), target]
        focused, _ = loss_of({"Focal": {"gamma": 2}}, outputs, target, task)
        torch.testing.assert_close(focused.value, (-((1 - p) ** 2) * p.log()).mean(), rtol=1e-5, atol=0)


@pytest.mark.inventory("dice", by="train.loss: Dice")
@pytest.mark.inventory("iou-loss", by="train.loss: IoU")
def test_dice_and_iou_of_a_perfect_answer_are_nothing_and_of_an_empty_one_finite():
    sure, target = torch.tensor([[40.0, -40.0], [-40.0, 40.0]]), torch.eye(2)
    empty = torch.zeros(2, 2)
    for name in ("Dice", "IoU"):
        assert loss_of(name, sure, target, "multilabel")[0].value.item() == pytest.approx(0.0, abs=1e-6)
        loss, model = loss_of(name, sure, empty, "multilabel")
        loss.value.backward()
        assert 0 <= loss.value.item() <= 1
        assert model.outputs.grad.isfinite().all()


def test_dice_and_iou_by_hand():
    """One class, |A| = 1.5, |B| = 2, overlap 1."""
    outputs = torch.tensor([[0.0], [0.0], [0.0]])
    target = torch.tensor([[1.0], [1.0], [0.0]])
    dice, _ = loss_of("Dice", outputs, target, "multilabel")
    iou, _ = loss_of("IoU", outputs, target, "multilabel")
    assert dice.value.item() == pytest.approx(1 - (2 * 1.0 + 1) / (1.5 + 2 + 1))
    assert iou.value.item() == pytest.approx(1 - (1.0 + 1) / (1.5 + 2 - 1.0 + 1))


@pytest.mark.inventory("iou-loss", by="train.loss: IoU")
@given(st.lists(st.floats(-4, 4), min_size=6, max_size=6))
def test_dice_and_iou_rise_and_fall_together(values):
    """With the same smoothing, J = D / (2 - D) up to what is added; so an answer nearer by one is nearer by the other."""
    target = torch.tensor([[1.0], [0.0], [1.0]])
    near, far = torch.tensor(values[:3])[:, None], torch.tensor(values[3:])[:, None]
    dice = [loss_of({"Dice": {"smooth": 1e-6}}, o, target, "multilabel")[0].value.item() for o in (near, far)]
    iou = [loss_of({"IoU": {"smooth": 1e-6}}, o, target, "multilabel")[0].value.item() for o in (near, far)]
    if abs(dice[0] - dice[1]) > 1e-3:
        assert (dice[0] < dice[1]) == (iou[0] < iou[1])


@pytest.mark.inventory("huber", by="train.loss: Huber")
def test_huber_is_half_the_square_inside_delta_a_line_outside_and_never_pulls_harder():
    target, outputs = torch.zeros(4), torch.tensor([[0.2], [-0.9], [3.0], [-50.0]])
    loss, model = loss_of({"Huber": {"delta": 1.0}}, outputs, target, "regression")
    assert loss.value.item() == pytest.approx((0.02 + 0.405 + 2.5 + 49.5) / 4, rel=1e-6)
    (loss.value * 4).backward()
    assert model.outputs.grad.abs().max().item() == pytest.approx(1.0)


@pytest.mark.inventory("mae-loss", by="train.loss: MAE")
def test_mae_fits_the_median_and_mse_the_mean():
    target = torch.tensor([1.0, 2.0, 3.0, 4.0, 100.0])
    for name, expected in (("MAE", 3.0), ("MSE", 22.0)):
        constants = torch.linspace(0, 30, 3001)
        losses = [loss_of(name, torch.full((5, 1), c.item()), target, "regression")[0].value.item() for c in constants]
        assert constants[int(np.argmin(losses))].item() == pytest.approx(expected, abs=0.02)


@pytest.mark.inventory("rank-pairwise", by="train.loss: PairwiseRank")
@pytest.mark.parametrize("form", ["logistic", "hinge"])
def test_putting_a_pair_in_order_lowers_the_pairwise_loss(form):
    target = torch.tensor([3.0, 2.0, 1.0])
    right, wrong = torch.tensor([[3.0], [2.0], [1.0]]), torch.tensor([[2.0], [3.0], [1.0]])
    node = {"PairwiseRank": {"form": form, "margin": 2.0}}
    ordered, swapped = (loss_of(node, o, target, "regression")[0].value for o in (right, wrong))
    assert ordered < swapped
    if form == "logistic":
        gaps = torch.tensor([1.0, 2.0, 1.0])
        torch.testing.assert_close(ordered, F.softplus(-gaps).mean())
    assert loss_of(node, right, torch.ones(3), "regression")[0].value.item() == 0.0


@pytest.mark.inventory("rank-listwise", by="train.loss: ListwiseRank")
def test_listmle_is_plackett_luce_and_lists_are_best_in_order():
    target, score = torch.tensor([1.0, 3.0, 2.0]), torch.tensor([[0.3], [1.0], [-0.5]])
    loss, _ = loss_of({"ListwiseRank": {"form": "listmle"}}, score, target, "regression")
    s = [1.0, -0.5, 0.3]  # in the true order
    likelihood = math.prod(math.exp(s[k]) / sum(map(math.exp, s[k:])) for k in range(3))
    assert loss.value.item() == pytest.approx(-math.log(likelihood) / 3, rel=1e-6)
    for form in ("listnet", "listmle"):
        node = {"ListwiseRank": {"form": form}}
        values = {
            order: loss_of(node, torch.tensor(order)[:, None], target, "regression")[0].value.item()
            for order in ((1.0, 3.0, 2.0), (3.0, 1.0, 2.0), (1.0, 2.0, 3.0), (2.0, 3.0, 1.0))
        }
        assert min(values, key=values.get) == (1.0, 3.0, 2.0)


@pytest.mark.parametrize(("name", "task"), PAIRS)
def test_gradients_are_those_of_finite_differences(name, task):
    outputs, target = outputs_for(task, n=5).double(), targets_for(task, n=5)
    if task in ("regression", "multilabel"):
        target = target.double()
    criterion, question = parse_one(name, "loss"), question_of(task, target, outputs.shape[1])
    compare = getattr(criterion, "value", None) or (lambda o, t, q: criterion.values(o, t, q).sum())
    outputs.requires_grad_()
    assert torch.autograd.gradcheck(lambda o: compare(o, target, question), (outputs,))


# ---- in a recipe


@pytest.mark.parametrize(("name", "task"), PAIRS)
def test_a_mean_over_examples_is_that_of_its_slices_and_other_losses_say_they_cannot_be_cut(name, task):
    outputs, target = outputs_for(task), targets_for(task)
    if task in ("binary", "multiclass"):
        target[:5] = -1
    objective = objective_of(parse_one(name, "loss"), question_of(task, target, outputs.shape[1]))
    if not isinstance(objective, MeanOverExamples):
        from regraft.core import Stage

        stage = Stage(name="s", model=Given(outputs), source=None, objective=objective, update=None, steps=1)
        assert "compares its examples" in why_whole(stage)
        return
    batch = {"x": torch.arange(12), "y": target}
    whole = objective(Given(outputs), batch, HERE)
    parts = [objective(Given(outputs), part, HERE) for part in split(batch, 3)]
    total = sum(part.value * part.weight for part in parts) / sum(part.weight for part in parts)
    torch.testing.assert_close(total, whole.value, rtol=1e-5, atol=1e-6)


def test_mixed_examples_count_with_both_their_labels():
    outputs, first = outputs_for("multiclass"), targets_for("multiclass")
    second, share = first.flip(0), torch.full((12,), 0.7)
    mixed, _ = loss_of({"Focal": {"gamma": 1}}, outputs, first, "multiclass", other_y=second, share=share)
    one, _ = loss_of({"Focal": {"gamma": 1}}, outputs, first, "multiclass")
    two, _ = loss_of({"Focal": {"gamma": 1}}, outputs, second, "multiclass")
    torch.testing.assert_close(mixed.value, 0.7 * one.value + 0.3 * two.value)
    with pytest.raises(ConfigError, match="MixUp mixes them"):
        loss_of("Dice", outputs, first, "multiclass", other_y=second, share=share)


@pytest.mark.inventory("loss-matched-to-model", by="train.loss")
@pytest.mark.parametrize("name", NAMES)
def test_a_task_it_says_nothing_about_is_refused_with_those_that_do(name):
    wrong = "regression" if "regression" not in find("loss", name).tasks else "multiclass"
    with pytest.raises(ConfigError, match=f"{name} is for .* but the task is {wrong}; take .*(Huber|Focal)"):
        objective_of(parse_one(name, "loss"), question_of(wrong, None))


@pytest.mark.parametrize("name", NAMES)
def test_a_file_gives_it_back(name):
    recipe = parse_recipe(
        f"data: {{main: {{path: a.csv}}}}\nmodels: {{main: {{name: minilm}}}}\ntrain: {{loss: {name}}}"
    )
    assert dump_one(recipe.train.loss) == name


def test_weights_of_another_number_of_classes_are_refused():
    with pytest.raises(ConfigError, match="a number for each of 4 classes, got 2"):
        loss_of(
            {"CrossEntropy": {"class_weights": [1.0, 2.0]}},
            outputs_for("multiclass"),
            targets_for("multiclass"),
            "multiclass",
        )
