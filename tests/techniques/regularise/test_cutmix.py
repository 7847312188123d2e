"""CutMix: the share of the label is that of the area, drawn as the paper says; and MixUp's effect on calibration."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from sklearn.datasets import load_digits
from toy import mlp, recipe, stage

from regraft.core import Clock, compile, fit
from regraft.data.images import EncodedImages
from regraft.data.sources import Examples, Tensors
from regraft.errors import Conflict
from regraft.losses.supervised import cross_entropy
from regraft.phases.evaluate.reliability import ece_statistics, stated_and_observed
from regraft.techniques.regularise.mixup import CutMix, MixUp, Window, cutting, mixed, pasted


def pictures(n: int = 8, size: int = 16) -> Examples:
    """Picture k is flat at level k."""
    pixels = np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None, None], (n, 3, size, size))
    encoded = EncodedImages(np.ascontiguousarray(pixels), np.full((n, 2), size), "x", (1.0,), (0.0,))
    return Examples(encoded, torch.arange(n) % 4, batch_size=n, seed=0)


def batches(technique, steps: int, start: int = 0):
    made = compile(recipe(stage(source=pictures())), [technique]).stages[0]
    drawn = made.source.batches(made.model, start)
    return [next(drawn) for _ in range(steps)]


@pytest.mark.inventory("cutmix", by="technique CutMix")
def test_the_share_of_the_label_is_exactly_the_share_of_the_area():
    seen = set()
    for batch in batches(CutMix(), 40):
        own = batch["id"].float()[:, None, None, None]
        kept = (batch["x"] == own).all(1)
        for row in range(8):
            partner = sorted(set(batch["x"][row].unique().tolist()) - {float(batch["id"][row])})
            assert len(partner) <= 1
            if partner:  # else the partner is the picture itself, or the window is empty
                assert float(kept[row].float().mean()) == pytest.approx(float(batch["share"][row]), abs=1e-7)
                assert int(batch["other_y"][row]) == int(partner[0]) % 4
                rows, columns = (~kept[row]).nonzero().T
                area = (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
                assert int(area) == int((~kept[row]).sum()), "the window is a rectangle"
        seen.add(float(batch["share"][0]))
    assert len(seen) > 20


def test_what_has_no_mean_is_refused():
    x, partners = torch.rand(2, 1, 4, 4), np.array([1, 0])
    with pytest.raises(Conflict, match="`mask` holds whole numbers"):
        mixed({"x": x, "mask": torch.zeros(2, 4, 4, dtype=torch.long)}, 0.5, partners)
    assert mixed({"x": x, "mask": x[:, 0]}, 0.5, partners)["mask"].is_floating_point()
    boxed = {"x": x, "boxes": torch.ones(2, 1, 4)}
    for mixing_of in (lambda: mixed(boxed, 0.5, partners), lambda: pasted(boxed, Window(0, 2, 0, 2), partners, "x")):
        with pytest.raises(Conflict, match="do not know what becomes of its `boxes`"):
            mixing_of()


def test_a_window_is_pasted_into_picture_and_mask_as_computed_by_hand():
    batch = {"x": torch.zeros(2, 1, 4, 4), "mask": torch.zeros(2, 4, 4, dtype=torch.long), "y": torch.tensor([0, 1])}
    batch["x"][1], batch["mask"][1] = 1.0, 7
    out = pasted(batch, Window(1, 3, 0, 3), np.array([1, 0]), "x")
    wanted = torch.zeros(4, 4)
    wanted[1:3, 0:3] = 1
    assert torch.equal(out["x"][0, 0], wanted)
    assert torch.equal(out["mask"][0], (7 * wanted).long())
    assert out["share"].tolist() == [10 / 16, 10 / 16]
    labels = 10 / 16 * F.one_hot(out["y"], 4) + 6 / 16 * F.one_hot(out["other_y"], 4)
    model = torch.nn.Sequential(torch.nn.Flatten(), mlp(dim=16))
    loss = cross_entropy(model, out, Clock(0, 1))
    torch.testing.assert_close(loss.value, F.cross_entropy(model(out["x"]), labels))


def test_sides_are_the_root_of_the_cut_share_drawn_from_beta():
    shares = []
    for step in range(3000):
        window, _ = cutting(2, (10_000, 5_000), 0.7, seed=1, step=step)
        if window.top > 0 and window.bottom < 10_000:  # not cut at the border: its height says what was drawn
            height = (window.bottom - window.top) / 10_000
            if window.left > 0 and window.right < 5_000:
                assert height == pytest.approx((window.right - window.left) / 5_000, abs=1e-3)
        shares.append(window.share_outside(10_000, 5_000))
    assert min(shares) >= 0
    assert max(shares) <= 1
    # the same window from the paper's formula with numbers of its own
    draw = np.random.default_rng(5)
    share = draw.beta(0.7, 0.7, 3000)
    sides = []
    half = np.sqrt(1 - share) / 2
    for _ in range(2):
        centre = draw.random(3000)
        sides.append(np.minimum(1, centre + half) - np.maximum(0, centre - half))
    assert stats.ks_2samp(shares, 1 - sides[0] * sides[1]).pvalue > 0.01


def test_batches_are_cut_or_mixed_and_depend_on_seed_and_step_alone():
    whole = batches(CutMix(mixup_alpha=0.4, switch=0.5), 40)
    cut = [bool(torch.isin(batch["x"], torch.arange(8.0)).all()) for batch in whole]
    assert 10 < sum(cut) < 30
    late = batches(CutMix(mixup_alpha=0.4, switch=0.5), 1, start=17)[0]
    assert all(torch.equal(late[key], whole[17][key]) for key in late)


def test_beside_mixup_it_is_refused_with_the_way_out():
    for pair in ([MixUp(), CutMix()], [CutMix(), MixUp()]):
        with pytest.raises(Conflict, match=r"write `CutMix: \{mixup_alpha: 0.2\}`"):
            compile(recipe(stage(source=pictures())), pair)


def test_rows_of_numbers_are_refused():
    with pytest.raises(Conflict, match="CutMix changes pictures"):
        compile(recipe(stage()), [CutMix()])


def error_of_calibration(probabilities: np.ndarray, targets: np.ndarray) -> float:
    stated, observed = stated_and_observed(probabilities, targets, "multiclass")
    return float(ece_statistics(stated, observed, len(targets))(np.ones((len(targets), 1)))["ece"][0])


@pytest.mark.inventory("mixup", by="technique MixUp")
def test_mixup_on_handwritten_digits_halves_the_calibration_error_of_an_overconfident_network():
    x, y = load_digits(return_X_y=True)
    x, y = torch.from_numpy(x / 16).float(), torch.from_numpy(y)
    y[:150:5] = (y[:150:5] + 3) % 10  # a fifth of the training labels is wrong, which the network learns by heart
    found = {"without": [], "with": []}
    for seed in range(2):
        for name, techniques in {"without": [], "with": [MixUp(alpha=0.4)]}.items():
            model = mlp(dim=64, width=64, classes=10, seed=seed)
            source = Tensors({"x": x[:150], "y": y[:150]}, batch_size=32, seed=seed)
            fit(compile(recipe(stage(model=model, source=source, steps=200)), techniques))
            with torch.no_grad():
                probabilities = model(x[600:]).softmax(1).numpy()
            accuracy = float((probabilities.argmax(1) == y[600:].numpy()).mean())
            found[name].append((error_of_calibration(probabilities, y[600:].numpy()), accuracy))
    (ece, accuracy), (mixed_ece, mixed_accuracy) = (np.mean(found[name], axis=0) for name in ("without", "with"))
    assert mixed_ece < 0.5 * ece, found
    assert mixed_accuracy > accuracy - 0.02, found
