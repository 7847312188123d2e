from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from regraft.config.spec import Spec
from regraft.data.augment import Augment, brightened, contrasted, horizontal_flip, moved, uniforms
from regraft.errors import ConfigError


def pictures(n: int = 4, height: int = 12, width: int = 10, seed: int = 0) -> torch.Tensor:
    return torch.randint(
        0, 256, (n, 3, height, width), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
    )


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
def test_all_off_is_the_identity_bit_for_bit(dtype):
    pixels = pictures().to(dtype)
    assert torch.equal(Augment()(pixels, generator()), pixels)


def test_shape_and_dtype_stay_and_the_input_is_not_changed():
    augment = Augment(flip=0.5, translate=0.2, rotate=15, brightness=0.3, contrast=0.3)
    for pixels in (pictures(), pictures().float() / 255):
        before = pixels.clone()
        out = augment(pixels, generator())
        assert (out.shape, out.dtype) == (pixels.shape, pixels.dtype)
        assert torch.equal(pixels, before)
        assert not torch.equal(out, pixels)


def test_the_same_generator_state_gives_the_same_pictures_and_another_does_not():
    augment, pixels = Augment(flip=0.5, rotate=20), pictures()
    assert torch.equal(augment(pixels, generator(3)), augment(pixels, generator(3)))
    assert not torch.equal(augment(pixels, generator(3)), augment(pixels, generator(4)))


def test_a_flip_mirrors_the_chosen_images_only():
    pixels = pictures(2)
    out = horizontal_flip(pixels, torch.tensor([True, False]))
    assert np.array_equal(out[0].numpy(), pixels[0].numpy()[:, :, ::-1])
    assert torch.equal(out[1], pixels[1])


def test_a_flip_happens_as_often_as_asked():
    pixels = torch.arange(2, dtype=torch.uint8).expand(4000, 1, 1, 2)
    flipped = Augment(flip=0.3)(pixels, generator())[:, 0, 0, 0] == 1
    assert flipped.float().mean().item() == pytest.approx(0.3, abs=0.03)


def test_a_shift_moves_whole_pixels_exactly_and_reflects_what_comes_in():
    pixels = pictures(1, height=10, width=10)
    out = moved(pixels, angle=torch.zeros(1), shift=torch.tensor([[0.2, -0.1]]))  # 2 down, 1 left
    expected = np.pad(pixels[0].numpy(), ((0, 0), (2, 0), (0, 1)), mode="symmetric")[:, :10, 1:]
    assert np.array_equal(out[0].numpy(), expected)


@pytest.mark.parametrize(("height", "width"), [(41, 41), (31, 57)])
def test_a_rotation_agrees_with_pillow_inside_the_picture(height, width):
    y, x = np.mgrid[:height, :width]
    smooth = (127 + 60 * np.sin(x / 6) + 60 * np.cos(y / 5)).astype(np.uint8)
    out = moved(torch.from_numpy(smooth)[None, None], angle=torch.tensor([np.pi / 9]), shift=torch.zeros(1, 2))
    expected = np.asarray(Image.fromarray(smooth).rotate(20, resample=Image.Resampling.BILINEAR))  # counter-clockwise
    radius = min(height, width) / 2 - 2
    inside = (y - (height - 1) / 2) ** 2 + (x - (width - 1) / 2) ** 2 < radius**2
    difference = np.abs(out[0, 0].numpy().astype(int) - expected.astype(int))[inside]
    assert difference.max() <= 2
    assert np.abs(smooth.astype(int) - expected.astype(int))[inside].mean() > 5


def test_a_shift_after_a_rotation_is_along_the_axes_of_the_result():
    y, x = np.mgrid[:40, :40]
    smooth = torch.from_numpy((127 + 100 * np.sin(x / 7) * np.cos(y / 9)).astype(np.float32))[None, None]
    turned = moved(smooth, angle=torch.tensor([0.5]), shift=torch.zeros(1, 2))
    both = moved(smooth, angle=torch.tensor([0.5]), shift=torch.tensor([[0.1, 0.05]]))  # 4 down, 2 right
    assert torch.allclose(both[0, 0, 14:26, 14:26], turned[0, 0, 10:22, 12:24], atol=0.01)


def test_brightness_multiplies_and_contrast_keeps_the_mean():
    pixels = pictures(2).float() / 4 + 60
    assert torch.allclose(brightened(pixels, torch.tensor([0.5, 1.5]))[1], pixels[1] * 1.5)
    out = contrasted(pixels, torch.tensor([0.5, 1.5]))
    assert torch.allclose(out.mean(dim=(1, 2, 3)), pixels.mean(dim=(1, 2, 3)), atol=1e-3)
    assert torch.allclose(out.std(dim=(1, 2, 3)), pixels.std(dim=(1, 2, 3)) * torch.tensor([0.5, 1.5]), rtol=1e-4)


def test_bytes_are_clipped_rather_than_wrapped_around():
    white = torch.full((1, 1, 2, 2), 250, dtype=torch.uint8)
    assert brightened(white, torch.tensor([1.5])).unique().tolist() == [255]


def test_uniform_numbers_depend_on_seed_and_id_alone():
    ids = np.arange(5000)
    draws = uniforms(7, ids)
    assert torch.equal(uniforms(7, ids[[4000, 3]]), draws[[4000, 3]])
    assert not torch.equal(uniforms(8, ids), draws)
    assert draws.dtype == torch.float32


def test_uniform_numbers_are_uniform_and_independent_between_columns_and_ids():
    from scipy.stats import kstest

    draws = uniforms(0, np.arange(20_000)).double().numpy()
    assert draws.min() >= 0
    assert draws.max() < 1
    for column in draws.T:
        assert kstest(column, "uniform").pvalue > 1e-3
    assert np.abs(np.corrcoef(draws.T) - np.eye(6)).max() < 0.03
    assert abs(np.corrcoef(draws[:-1, 0], draws[1:, 0])[0, 1]) < 0.03


def test_options_out_of_range_are_refused_by_name():
    assert issubclass(Augment, Spec)
    with pytest.raises(ConfigError, match=r"Augment.flip: input should be less than or equal to 1, got 2"):
        Augment(flip=2)
    with pytest.raises(ConfigError, match="no field 'rotation'; did you mean 'rotate'"):
        Augment(rotation=3)  # type: ignore[call-arg]
