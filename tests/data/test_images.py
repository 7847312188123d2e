from __future__ import annotations

import io
import json
import struct
import warnings
import zlib

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from regraft.data.encode import preprocessor_from_json
from regraft.data.image_config import options_from_config
from regraft.data.images import ImagePreprocessor, converted, resized_shape, upright
from regraft.errors import ConfigError, DataError, ModelError


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A smooth colour picture (H, W, 3) with some noise."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / max(height, width)
    colours = [np.sin(7 * x + random.random() * 6 + c) * np.cos(5 * y + c) for c in range(3)]
    return np.clip(127 + 110 * np.stack(colours, -1) + random.normal(0, 6, (height, width, 3)), 0, 255).astype(np.uint8)


def saved(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def png(height: int, width: int, seed: int = 0) -> bytes:
    return saved(Image.fromarray(photo(height, width, seed)))


def antialiased(pixels: np.ndarray, size: tuple[int, int], kernel, support: float) -> np.ndarray:
    """Resampling (H, W, C) written from its definition in float64: a weighted mean, the kernel widened when shrinking."""
    for axis, new in enumerate(size):
        old = pixels.shape[axis]
        stretch = max(1.0, old / new)
        centres = (np.arange(new) + 0.5) * old / new
        distance = (np.arange(old) + 0.5 - centres[:, None]) / stretch
        weights = np.where(np.abs(distance) < support, kernel(np.abs(distance)), 0)
        weights /= weights.sum(1, keepdims=True)
        pixels = np.moveaxis(np.tensordot(weights, pixels, (1, axis)), 0, axis)
    return pixels


def bilinear(d: np.ndarray) -> np.ndarray:
    return np.maximum(0, 1 - d)


def bicubic(d: np.ndarray) -> np.ndarray:
    return np.where(d < 1, 1.5 * d**3 - 2.5 * d**2 + 1, -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2)


@pytest.mark.parametrize("shape", [(131, 90), (32, 32), (60, 200)])
@pytest.mark.parametrize(("resample", "kernel", "support"), [(2, bilinear, 1), (3, bicubic, 2)])
def test_resized_pixels_agree_with_the_definition_of_antialiased_resampling(shape, resample, kernel, support):
    preprocessor = ImagePreprocessor(
        column="image", size=(96, 80), resize=(96, 80), resample=resample, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.1)
    )
    batch = preprocessor.encode({"image": [png(*shape)]}).collate(np.array([0]))["pixel_values"]
    slow = np.clip(antialiased(photo(*shape).astype(np.float64), (96, 80), kernel, support), 0, 255)
    expected = (slow / 255 - [0.4, 0.5, 0.6]) / [0.2, 0.3, 0.1]
    error = np.abs(batch[0].permute(1, 2, 0).double().numpy() - expected) * [0.2, 0.3, 0.1] * 255
    assert batch.dtype == torch.float32
    assert error.max() <= 2  # two passes that round to whole pixel values
    assert error.mean() < 0.5


@pytest.mark.parametrize(("kind", "config"), [
    ("vit.image_processing_pil_vit.ViTImageProcessorPil", {"size": {"height": 48, "width": 40}, "resample": 2}),
    ("convnext.image_processing_pil_convnext.ConvNextImageProcessorPil", {"size": {"shortest_edge": 64}, "resample": 3}),
    ("convnext.image_processing_pil_convnext.ConvNextImageProcessorPil", {"size": {"shortest_edge": 384}, "resample": 3}),
    ("mobilenet_v2.image_processing_pil_mobilenet_v2.MobileNetV2ImageProcessorPil",
     {"size": {"shortest_edge": 60}, "crop_size": {"height": 48, "width": 52}, "resample": 2}),
])  # fmt: skip
def test_pixels_equal_those_of_the_transformers_processor(kind, config):
    import importlib

    module, _, name = kind.rpartition(".")
    processor = getattr(importlib.import_module(f"transformers.models.{module}"), name)(**config)
    stored = json.loads(processor.to_json_string()) | {"image_processor_type": name.removesuffix("Pil")}
    preprocessor = ImagePreprocessor(column="image", **options_from_config(stored, name="test"))
    for shape in ((70, 101), (90, 61), (33, 33)):
        ours = preprocessor.encode({"image": [png(*shape)]}).collate(np.array([0]))["pixel_values"]
        theirs = processor(Image.fromarray(photo(*shape)), return_tensors="pt")["pixel_values"]
        assert ours.shape == theirs.shape
        assert (ours - theirs).abs().max() < 1e-5


def test_the_mobilenet_folder_gives_pixels_in_0_to_1_enlarged_to_96(shared_data):
    preprocessor = ImagePreprocessor.from_model(shared_data("weights_mobilenetv1_025_vww"), column="img")
    table = pq.read_table(shared_data("cifar10_jpg") / "test.parquet").slice(0, 5)
    column = next(c for c in table.column_names if c != "label")
    cells = table[column].to_pylist()
    files = [cell["bytes"] if isinstance(cell, dict) else cell for cell in cells]
    encoded = preprocessor.encode({"img": files})
    batch = encoded.collate(np.array([4, 0]))["pixel_values"]
    direct = Image.open(io.BytesIO(files[4])).convert("RGB").resize((96, 96), Image.Resampling.BILINEAR)
    assert torch.allclose(batch[0], torch.from_numpy(np.array(direct)).permute(2, 0, 1) / 255, atol=1e-6)
    assert encoded.sizes.tolist() == [[32, 32]] * 5
    assert encoded.num_enlarged == 5


def test_exif_orientation_is_applied(shared_data):
    truth = json.loads((shared_data("messy_images_dev") / "ground_truth.json").read_text())["defects"]["exif_rotated"][
        0
    ]
    data = (shared_data("messy_images_dev") / "data" / truth["file"]).read_bytes()
    assert Image.open(io.BytesIO(data)).size == tuple(truth["upright_size"][::-1])
    assert upright(data, name="x").size == tuple(truth["upright_size"])
    stored = saved(Image.fromarray(photo(20, 30)), exif=Image.Exif())
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 270 degrees to see it upright
    turned = saved(Image.fromarray(photo(20, 30)), exif=exif)
    assert np.array_equal(np.asarray(upright(turned, name="x")), np.rot90(np.asarray(upright(stored, name="x")), 3))


def test_every_mode_is_converted_to_what_a_viewer_shows():
    grey = photo(9, 8)[..., 0]

    def rgb(image):
        return np.asarray(converted(upright(saved(image, "TIFF" if image.mode == "CMYK" else "PNG"), name="x"), 3))

    assert np.array_equal(rgb(Image.fromarray(grey)), np.stack([grey] * 3, -1))
    assert np.array_equal(rgb(Image.fromarray(grey.astype(np.uint16) * 257)), np.stack([grey] * 3, -1))
    assert np.array_equal(rgb(Image.fromarray(grey > 100)), np.stack([np.where(grey > 100, 255, 0)] * 3, -1))
    cmyk = Image.new("CMYK", (4, 4), (0, 255, 255, 0))
    assert rgb(cmyk)[0, 0].tolist() == [255, 0, 0]
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 10, 200, 30])
    assert rgb(palette)[0, 0].tolist() == [10, 200, 30]


def test_transparency_is_composited_on_white():
    half = Image.new("RGBA", (3, 3), (255, 0, 0, 128))
    assert np.abs(np.asarray(converted(half, 3))[0, 0].astype(int) - [255, 127, 127]).max() <= 1
    clear = Image.new("LA", (3, 3), (0, 0))
    assert np.asarray(converted(clear, 1))[0, 0] == 255
    palette = Image.new("P", (3, 3), 0)
    palette.putpalette([9, 9, 9])
    again = upright(saved(palette, "PNG", transparency=0), name="x")
    assert np.asarray(converted(again, 3))[0, 0].tolist() == [255, 255, 255]


def test_colour_becomes_grey_by_luma_and_a_plain_network_gets_x_in_minus_one_to_one():
    picture = photo(8, 8)
    encoded = ImagePreprocessor.plain("image", (8, 8), num_channels=1).encode({"image": [png(8, 8)]})
    luma = picture @ [0.299, 0.587, 0.114]
    batch = encoded.collate(np.array([0]))
    assert encoded.inputs == ("x",)
    assert batch["x"].shape == (1, 1, 8, 8)
    assert np.abs((batch["x"][0, 0].numpy() + 1) * 127.5 - luma).max() <= 1


def test_the_messy_folder_is_read_but_for_its_three_unreadable_files(shared_data):
    base = shared_data("messy_images_dev")
    truth = json.loads((base / "ground_truth.json").read_text())["defects"]
    planted = {truth[kind][0]["file"] for kind in ("truncated_jpeg", "zero_byte_file", "not_an_image")}
    files = sorted(p for p in (base / "data").rglob("*") if p.suffix in (".jpg", ".png", ".gif", ".jpeg"))
    preprocessor = ImagePreprocessor.plain("image", (32, 32))
    refused = set()
    for file in files:
        name = file.relative_to(base / "data").as_posix()
        try:
            preprocessor.encode({"image": [file.read_bytes()]}, names=[name])
        except DataError as error:
            refused.add(str(error).split(": ")[0])
    assert refused == planted
    assert len(files) > 60


def test_bad_images_are_refused_in_one_sentence_that_names_them():
    preprocessor = ImagePreprocessor.plain("image", (8, 8))
    jpeg = saved(Image.fromarray(photo(64, 64)), "JPEG")
    for data, message in [
        (b"", "b.jpg: the image file is empty"),
        (b"hello", "b.jpg: not an image in a known format"),
        (jpeg[:700], "b.jpg: the image cannot be read: .*truncated"),
        ("b.jpg", "b.jpg: must be the bytes of an image file, got str"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "b.jpg: not an image in a known format"),
    ]:
        with pytest.raises(DataError, match=message):
            preprocessor.encode({"image": [png(8, 8), data]}, names=["a.png", "b.jpg"])
    with pytest.raises(DataError, match="image column 'image' is not in the data, which has 'file'"):
        preprocessor.encode({"file": []})


def test_a_decompression_bomb_is_refused_and_pillows_own_limit_is_left_as_it_was():
    small = saved(Image.new("1", (8, 8)))
    header = b"IHDR" + struct.pack(">II", 30_000, 30_000) + small[24:29]
    bomb = small[:12] + header + struct.pack(">I", zlib.crc32(header)) + small[33:]
    before = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DataError, match="row 0: the image has 30000 x 30000 pixels, more than 50,000,000"):
            ImagePreprocessor.plain("image", (8, 8)).encode({"image": [bomb]})
    assert before == Image.MAX_IMAGE_PIXELS


def test_floating_point_pixels_without_a_known_range_are_refused():
    data = saved(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF")
    with pytest.raises(DataError, match="row 0: pixels of mode 'F' have no known range"):
        ImagePreprocessor.plain("image", (4, 4)).encode({"image": [data]})


def test_the_shorter_side_is_resized_and_the_proportions_are_kept():
    assert resized_shape((100, 200), 50) == (50, 100)
    assert resized_shape((300, 200), 50) == (75, 50)
    assert resized_shape((7, 9), (3, 4)) == (3, 4)


def test_options_survive_json():
    preprocessor = ImagePreprocessor(column="i", size=(9, 8), resize=12, mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0))
    again = preprocessor_from_json("", json.loads(json.dumps(preprocessor.to_json())))
    assert again == preprocessor
    assert again.fingerprint == preprocessor.fingerprint


def test_what_a_config_asks_for_and_is_not_done_is_refused(tmp_path):
    base = {"size": 32, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    with pytest.raises(ModelError, match="m: do_flip_channel_order = True is not supported"):
        options_from_config({**base, "do_flip_channel_order": True}, name="m")
    with pytest.raises(ModelError, match="the size of the model's input is not fixed"):
        options_from_config({**base, "size": {"shortest_edge": 32}}, name="m")
    with pytest.raises(ModelError, match=r"has no preprocessor_config\.json"):
        ImagePreprocessor.from_model(tmp_path, column="i")
    with pytest.raises(ConfigError, match="mean must have 1 or 3 numbers, got 2"):
        ImagePreprocessor(column="i", size=(4, 4), mean=(0.0, 0.0))
