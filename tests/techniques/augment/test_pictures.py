"""Augmented pictures: operations equal Pillow's, ranges and numbers are honoured, masks and boxes move along."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from toy import mlp, recipe, stage

from regraft.core import Batch, compile
from regraft.core.protocols import Source
from regraft.core.seeding import generator
from regraft.data import changed, colour
from regraft.data.changed import Pictures
from regraft.data.geometry import affine, moved_boxes
from regraft.data.images import EncodedImages
from regraft.data.sources import Examples
from regraft.errors import Conflict
from regraft.techniques.augment.image import ColorJitter, ImageGeometry
from regraft.techniques.augment.rand_augment import OPERATIONS, RandAugment, drawn_operations
from regraft.techniques.speed.prefetch import Prefetch
from regraft.techniques.transfer.cache_prefix import CachePrefix

GEOMETRIC = {"rotate", "shear-x", "shear-y", "translate-x", "translate-y"}


def levels(n: int = 6, *, channels: int = 3, size: tuple[int, int] = (24, 20), seed: int = 0) -> np.ndarray:
    """Smooth random pictures (n, C, H, W) of 256 levels."""
    coarse = torch.rand(n, channels, 5, 5, generator=generator(seed))
    fine = torch.nn.functional.interpolate(coarse, size, mode="bicubic", align_corners=False)
    return (fine.clamp(0, 1) * 255).round().numpy().astype(np.uint8)


def shown(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).float() / 255


def by_pillow(pixels: np.ndarray, change) -> np.ndarray:
    return np.stack([np.asarray(change(Image.fromarray(one.transpose(1, 2, 0)))).transpose(2, 0, 1) for one in pixels])


def source(pixels: np.ndarray, *, batch_size: int = 4, extra: dict | None = None) -> Examples:
    scale, shift = (1 / 255 / 0.25,) * pixels.shape[1], (-0.5 / 0.25,) * pixels.shape[1]
    encoded = EncodedImages(pixels, np.tile(pixels.shape[2:], (len(pixels), 1)), "x", scale, shift)
    return Examples(encoded, torch.arange(len(pixels)), batch_size=batch_size, seed=0)


def drawn(technique, base: Source, steps: int = 2, start: int = 0, *others) -> list[Batch]:
    made = compile(recipe(stage(source=base)), [technique, *others]).stages[0]
    batches = made.source.batches(made.model, start)
    return [next(batches) for _ in range(steps)]


PILLOW = {
    "brightness": (lambda p: colour.brightness(p, torch.full((len(p),), 1.6)), lambda i: ImageEnhance.Brightness(i).enhance(1.6)),
    "contrast": (lambda p: colour.contrast(p, torch.full((len(p),), 0.3)), lambda i: ImageEnhance.Contrast(i).enhance(0.3)),
    "color": (lambda p: colour.saturation(p, torch.full((len(p),), 1.7)), lambda i: ImageEnhance.Color(i).enhance(1.7)),
    "sharpness": (lambda p: colour.sharpness(p, torch.full((len(p),), 1.9)), lambda i: ImageEnhance.Sharpness(i).enhance(1.9)),
    "posterize": (lambda p: colour.posterize(p, torch.full((len(p),), 5.0)), lambda i: ImageOps.posterize(i, 5)),
    "solarize": (lambda p: colour.solarize(p, torch.full((len(p),), 128 / 255)), lambda i: ImageOps.solarize(i, 128)),
    "autocontrast": (colour.autocontrast, ImageOps.autocontrast),
    "equalize": (colour.equalize, ImageOps.equalize),
}  # fmt: skip


@pytest.mark.parametrize("name", PILLOW)
def test_a_colour_operation_is_pillows_up_to_its_rounding(name):
    ours, theirs = PILLOW[name]
    pixels = levels()
    got, wanted = (ours(shown(pixels)) * 255).numpy(), by_pillow(pixels, theirs).astype(float)
    # Pillow rounds grey, the smoothed copy and the result to whole levels each; factors below 2 leave that within two
    assert np.abs(got - wanted).max() <= 2.0
    assert np.abs(wanted - pixels).max() > 3, "the operation did something"


def test_a_turn_of_the_hue_by_a_third_changes_red_into_green():
    red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
    torch.testing.assert_close(colour.hue(red, torch.tensor([1 / 3])).flatten(), torch.tensor([0.0, 1.0, 0.0]))
    assert torch.equal(colour.hue(red[:, :1], torch.tensor([1 / 3])), red[:, :1])


@pytest.mark.inventory("img-color-jitter", by="technique ColorJitter")
def test_colour_jitter_stays_within_its_ranges_and_reaches_their_ends():
    pixels = np.full((400, 3, 4, 4), 100, dtype=np.uint8)
    batch = drawn(ColorJitter(brightness=0.4, contrast=0, saturation=0, hue=0), source(pixels, batch_size=400), 1)[0]
    factors = ((batch["x"] * 0.25 + 0.5) * 255 / 100)[:, 0, 0, 0]
    assert 0.6 - 1e-5 <= factors.min() < 0.62
    assert 1.38 < factors.max() <= 1.4 + 1e-5
    assert abs(float(factors.mean()) - 1) < 0.05
    pixels = levels(300)
    for field, operation in (("contrast", colour.contrast), ("saturation", colour.saturation), ("hue", colour.hue)):
        off = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
        spec = ColorJitter(**off | {field: 0.3})
        draws = torch.rand(300, 4, generator=generator(1))
        index = list(off).index(field)
        signed = 2 * draws[:, index] - 1
        factor = 0.3 * signed if field == "hue" else 1 + 0.3 * signed
        assert torch.equal(spec.picture(Pictures(shown(pixels)), draws).pixels, operation(shown(pixels), factor))


@pytest.mark.inventory("randaugment", by="technique RandAugment")
def test_randaugment_makes_number_operations_at_its_magnitude_and_keeps_the_label():
    pixels = levels(200)
    spec = RandAugment(number=1, magnitude=7.0)
    draws = torch.rand(200, spec.num_draws, generator=generator(2))
    which, signs = drawn_operations(draws)
    out = spec.picture(Pictures(shown(pixels)), draws).pixels
    for row in range(200):
        operation = list(OPERATIONS.values())[int(which[row, 0])]
        alone = operation(Pictures(shown(pixels)[row : row + 1]), torch.tensor([0.7]), signs[row])
        torch.testing.assert_close(out[row : row + 1], alone.pixels, rtol=0, atol=1e-5)
    chained = RandAugment(number=2, magnitude=7.0).picture(Pictures(shown(pixels)), draws[:, [0, 0, 1, 1]]).pixels
    torch.testing.assert_close(chained, spec.picture(Pictures(out), draws).pixels, rtol=0, atol=1e-5)
    batch = drawn(spec, source(pixels, batch_size=200), 1)[0]
    assert torch.equal(batch["y"], batch["id"])
    assert not torch.equal(batch["x"], source(pixels, batch_size=200).batch_at(0)["x"])


def test_randaugments_operations_are_drawn_evenly_and_grow_with_the_magnitude():
    which, signs = drawn_operations(torch.rand(7000, 4, generator=generator(3)))
    counts = torch.bincount(which.flatten(), minlength=14)
    assert ((counts - 1000).abs() < 130).all(), counts  # four standard deviations
    assert abs(float(signs.mean())) < 0.05
    picture = Pictures(shown(levels(4)))
    for name, operation in OPERATIONS.items():
        small, large = (
            float((operation(picture, torch.full((4,), s), torch.ones(4)).pixels - picture.pixels).abs().mean())
            for s in (0.2, 1.0)
        )
        graded = name not in ("identity", "autocontrast", "equalize")
        assert (small < large) if graded else small == large, name
        none = operation(picture, torch.zeros(4), torch.ones(4)).pixels
        if graded and name != "solarize":  # at magnitude 0 it still turns pure white
            torch.testing.assert_close(none, picture.pixels, rtol=0, atol=1e-5)


@pytest.mark.inventory("img-geometric", by="technique ImageGeometry")
def test_masks_and_boxes_move_with_the_picture():
    pixels = np.zeros((64, 1, 40, 32), dtype=np.uint8)
    place = np.random.default_rng(0).integers((14, 11), (21, 17), (64, 2))
    for picture, (top, left) in zip(pixels, place, strict=True):
        picture[0, top : top + 6, left : left + 5] = 255
    mask = torch.from_numpy((pixels[:, 0] > 0).astype(np.int64)) * 3
    corners = np.stack([place[:, 1], place[:, 0], place[:, 1] + 5, place[:, 0] + 6], 1)
    before = Pictures(shown(pixels), mask, torch.from_numpy(corners).float()[:, None])
    spec = ImageGeometry(rotate=30, shift=0.1, scale=0.1, flip=0.5, flip_vertical=0.5)
    after = spec.picture(before, torch.rand(64, spec.num_draws, generator=generator(4)))
    assert set(after.mask.unique().tolist()) == {0, 3}
    moved = 0
    for row in range(64):
        bright = after.pixels[row, 0] > 0.5
        overlap = bright & (after.mask[row] == 3)
        assert overlap.sum() / (bright | (after.mask[row] == 3)).sum() > 0.7, row
        left, top, right, bottom = after.boxes[row, 0].tolist()
        y, x = (after.pixels[row, 0] > 0.6).nonzero().T.double()
        # the box holds what is bright, and is no larger than a turned rectangle needs
        inside = (x + 0.5 >= left - 0.6) & (x + 0.5 <= right + 0.6) & (y + 0.5 >= top - 0.6) & (y + 0.5 <= bottom + 0.6)
        at_border = left == 0 or top == 0 or right == 32 or bottom == 40
        assert at_border or inside.all(), (row, after.boxes[row, 0])
        assert at_border or (right - left) * (bottom - top) <= 3.2 * bright.sum(), row
        moved += not torch.equal(after.mask[row], mask[row])
    assert moved > 60


@pytest.mark.parametrize("angle", [90.0, 180.0, -90.0])
def test_boxes_of_whole_numbers_are_not_cut_to_the_number_below(angle):
    draw = torch.Generator().manual_seed(0)
    corners = torch.randint(0, 100, (1, 50, 2), generator=draw)
    boxes = torch.cat([corners, corners + torch.tensor([50, 40])], -1)
    still = {"shift": torch.zeros(1, 2), "scale": torch.ones(1)}
    matrix = affine(size=(224, 224), angle=torch.tensor([angle]), **still)
    exact = moved_boxes(boxes.double(), matrix.double(), (224, 224))
    assert torch.equal(moved_boxes(boxes, matrix, (224, 224)), exact.round().long())


def test_mirroring_and_whole_shifts_are_exact():
    pixels = levels(4, size=(10, 20))
    before = Pictures(
        shown(pixels), torch.arange(200).view(1, 10, 20).expand(4, -1, -1), torch.tensor([[[2.0, 1, 7, 4]]] * 4)
    )
    spec = ImageGeometry(rotate=0, shift=0, scale=0, flip=1.0)
    after = spec.picture(before, torch.rand(4, 6, generator=generator(5)))
    assert torch.equal(after.pixels, before.pixels.flip(-1))
    assert torch.equal(after.mask, before.mask.flip(-1))
    assert after.boxes[0, 0].tolist() == [13.0, 1.0, 18.0, 4.0]
    draws = torch.full((4, 6), 0.5)
    draws[:, 3] = 0.75  # right by half of the largest shift: 2 pixels of 20
    after = ImageGeometry(rotate=0, shift=0.2, scale=0).picture(before, draws)
    torch.testing.assert_close(after.pixels[..., 2:], before.pixels[..., :-2], rtol=0, atol=1e-5)
    assert torch.equal(after.mask[..., 2:], before.mask[..., :-2])
    assert after.boxes[0, 0].tolist() == pytest.approx([4.0, 1.0, 9.0, 4.0], abs=1e-5)


def test_a_turn_is_the_one_that_pillow_makes_counter_clockwise():
    pixels = levels(1, size=(21, 21))
    draws = torch.full((1, 6), 0.5)
    draws[:, 2] = 1.0
    ours = ImageGeometry(rotate=90, shift=0, scale=0).picture(Pictures(shown(pixels)), draws).pixels * 255
    theirs = by_pillow(pixels, lambda image: image.rotate(90))
    assert np.abs(ours.numpy() - theirs).max() < 0.1


class Lesions(Source):
    """Pictures in [0, 1] with a mask and a box, as a source of one's own."""

    inputs = {"x": "id"}  # noqa: RUF012 - read only

    def batches(self, model, start=0, /):
        while True:
            mask = torch.zeros(2, 16, 16, dtype=torch.long)
            mask[:, 3:6, 8:12] = 1
            boxes = torch.tensor([[[8.0, 3.0, 12.0, 6.0]]]).expand(2, 1, 4)
            yield {
                "id": torch.arange(2),
                "x": mask[:, None].float(),
                "mask": mask,
                "boxes": boxes,
                "y": torch.zeros(2).long(),
            }


def test_batches_with_masks_and_boxes_are_changed_as_a_whole():
    batch = drawn(ImageGeometry(rotate=0, shift=0, scale=0, flip=1.0), Lesions(), 1)[0]
    assert torch.equal(batch["x"][:, 0].long(), batch["mask"])
    assert batch["boxes"][0, 0].tolist() == [4.0, 3.0, 8.0, 6.0]


@pytest.mark.parametrize(
    "technique", [ColorJitter(), ImageGeometry(), RandAugment()], ids=lambda technique: type(technique).__name__
)
def test_a_look_is_a_function_of_seed_step_and_example_and_cannot_be_stored(technique):
    pixels = levels(12)
    whole = drawn(technique, source(pixels), 5)
    for late in (drawn(technique, source(pixels), 1, 3)[0], drawn(technique, source(pixels), 1, 3, Prefetch())[0]):
        assert all(torch.equal(late[key], whole[3][key]) for key in late)
    other = drawn(technique.replaced(seed=1), source(pixels), 1)[0]
    assert not torch.equal(other["x"], whole[0]["x"])
    model = torch.nn.Sequential(torch.nn.Flatten(), *mlp(dim=1440))
    model[1].requires_grad_(False)
    compile(recipe(stage(source=source(pixels), model=model)), [CachePrefix()])
    with pytest.raises(Conflict, match="differ each time"):
        compile(recipe(stage(source=source(pixels), model=model)), [technique, CachePrefix()])


def test_two_techniques_with_one_seed_draw_numbers_of_their_own(monkeypatch):
    seen = []
    real = changed.uniforms
    monkeypatch.setattr(changed, "uniforms", lambda *given: seen.append(real(*given)) or seen[-1])
    for technique in (ColorJitter(), ImageGeometry(), RandAugment()):
        drawn(technique, source(levels(12)), 1)
    first = [tuple(draws[:, 0].tolist()) for draws in seen]
    assert len(set(first)) == 3


def test_what_is_no_picture_is_refused_and_so_is_an_unknown_range():
    with pytest.raises(Conflict, match=r"RandAugment changes pictures \(N, C, H, W\)"):
        compile(recipe(stage(model=mlp())), [RandAugment()])

    class Normalised(Lesions):
        def batches(self, model, start=0, /):
            yield {"id": torch.arange(2), "x": torch.randn(2, 1, 8, 8), "y": torch.zeros(2).long()}

    with pytest.raises(Conflict, match="must hold values from 0 to 1"):
        drawn(ColorJitter(), Normalised(), 1)
