"""Sounds: mel bands against transformers, pitch kept, the share that masks hide, and spoken digits learned and predicted."""

from __future__ import annotations

import io
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from toy import recipe, stage
from transformers.audio_utils import mel_filter_bank
from transformers.audio_utils import spectrogram as reference

from regraft.config.recipe import recipe_from_tree
from regraft.core import compile
from regraft.data.sounds import SoundPreprocessor, mel_filters
from regraft.data.sources import Examples
from regraft.data.wav import read_wave, resampled
from regraft.errors import ConfigError, Conflict, DataError
from regraft.phases.augment_check import _parts as parts_of_source
from regraft.techniques.augment.sound import SpecAugment, TimeStretch, stretched

RATE = 8000


def tone(hertz: float, seconds: float = 0.5) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * RATE)) / RATE)).astype(np.float32)


def wav(samples: np.ndarray, *, width: int = 2, channels: int = 1, rate: int = RATE) -> bytes:
    whole = (np.repeat(samples, channels).astype(np.float64) * ((1 << (8 * width - 1)) - 1)).round().astype(np.int64)
    if width == 1:
        raw = (whole + 128).astype(np.uint8).tobytes()
    else:
        raw = b"".join(int(one).to_bytes(width, "little", signed=True) for one in whole)
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(raw)
    return out.getvalue()


def pitch(samples: torch.Tensor) -> float:
    """Frequency of the strongest bin of the middle, in hertz."""
    middle = samples[len(samples) // 4 : 3 * len(samples) // 4]
    power = torch.fft.rfft(middle * torch.hann_window(len(middle)), n=1 << 16).abs()
    return float(power.argmax()) * RATE / (1 << 16)


@pytest.mark.parametrize("width", [1, 2, 3, 4])
@pytest.mark.parametrize("channels", [1, 2])
def test_pcm_of_every_width_is_read(width, channels):
    samples, rate = read_wave(wav(tone(300), width=width, channels=channels))
    assert rate == RATE
    np.testing.assert_allclose(samples, tone(300), atol=1.1 / (1 << (8 * min(width, 3) - 1)))


def test_what_is_no_sound_is_refused_by_name():
    whole = wav(tone(300))
    for data, said in (
        (b"", "there is no sound file"),
        (None, "there is no sound file"),
        (b"RIFF" + bytes(40), "cannot be read as a PCM WAV file"),
        (whole[:-100], "is cut off"),
        (whole[:30], r"cannot be read as a PCM WAV file \(it is cut off\)"),
        (whole[:34] + (40).to_bytes(2, "little") + whole[36:], "must be PCM of 8, 16, 24 or 32 bits, got 40"),
        (whole[:34] + (64).to_bytes(2, "little") + whole[36:], "must be PCM of 8, 16, 24 or 32 bits, got 64"),
        (wav(np.zeros(0, np.float32)), "must last from one sample"),
        (wav(tone(300), rate=300), "must last from one sample"),
    ):
        with pytest.raises(DataError, match=rf"^three\.wav: .*{said}"):
            read_wave(data, name="three.wav")


def test_of_a_sound_however_short_something_is_left():
    for length in (1, 2, 3, 600):
        for speed in (0.25, 1.0, 4.0):
            out = stretched(torch.ones(length), speed)
            assert len(out) == max(1, round(length / speed))
            assert out.isfinite().all()


def test_resampling_keeps_the_tone():
    assert pitch(torch.from_numpy(resampled(tone(440, 1.0), 8000, 16000))) == pytest.approx(220, abs=1)


def test_mel_filters_and_the_log_mel_spectrogram_are_those_of_transformers():
    ours = mel_filters(129, 40, RATE)
    theirs = mel_filter_bank(129, 40, 0.0, RATE / 2, RATE, norm=None, mel_scale="htk")
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-9)
    how = SoundPreprocessor(column="file", rate=RATE, seconds=0.5)
    got = how.log_mel([torch.from_numpy(tone(700))])[0, 0].double().numpy()
    window = np.hanning(257)[:-1]
    wanted = reference(
        tone(700).astype(np.float64), window, 256, 80, power=2.0, pad_mode="constant", mel_filters=theirs, mel_floor=1e-6,
        log_mel="log",
    )  # fmt: skip
    np.testing.assert_allclose(got, wanted, atol=2e-3)


@pytest.mark.inventory("audio-time-stretch", by="technique TimeStretch")
@pytest.mark.parametrize("speed", [0.6, 0.8, 1.0, 1.25, 1.8])
def test_a_stretched_tone_has_another_length_and_the_same_pitch(speed):
    samples = torch.from_numpy(tone(440, 1.0))
    out = stretched(samples, speed)
    assert len(out) == round(len(samples) / speed)
    assert pitch(out) == pytest.approx(440, abs=1.0)
    middle = out[len(out) // 4 : 3 * len(out) // 4]
    assert float(middle.square().mean()) == pytest.approx(0.125, rel=0.3), "as loud, up to 1.5 dB"
    if speed == 1.0:
        torch.testing.assert_close(out[600:-600], samples[600:-600], atol=1e-3, rtol=0)


def sounds(n: int = 24) -> Examples:
    how = SoundPreprocessor(column="file", rate=RATE, seconds=0.5)
    files = [wav(tone(200 + 20 * i, 0.4 + 0.01 * i)) for i in range(n)]
    return Examples(how.encode({"file": files}), torch.arange(n) % 4, batch_size=8, seed=0)


def drawn(*techniques, steps: int = 4, start: int = 0):
    made = compile(recipe(stage(source=sounds(), model=torch.nn.Linear(1, 1))), techniques).stages[0]
    batches = made.source.batches(made.model, start)
    return [next(batches) for _ in range(steps)]


@pytest.mark.inventory("audio-time-stretch", by="technique TimeStretch")
def test_speeds_are_drawn_within_the_range_as_a_function_of_seed_step_and_example():
    seen: list[float] = []
    source = sounds()
    technique = TimeStretch(most=0.5)
    made = compile(recipe(stage(source=source, model=torch.nn.Linear(1, 1))), [technique]).stages[0].source

    def lengths(rows, change):
        before = [torch.ones(8000) for _ in rows]
        seen.extend(8000 / len(one) for one in change(before))
        return {"x": torch.zeros(len(rows), 1, 1, 1)}

    made.sounds = type("Spy", (), {"collate_waves": staticmethod(lengths)})()
    batches = made.batches(torch.nn.Linear(1, 1), 0)
    for _ in range(30):
        next(batches)
    assert 1 / 1.5 - 1e-3 <= min(seen) < 0.72
    assert 1.4 < max(seen) <= 1.5 + 1e-3
    assert np.mean(np.log(seen)) == pytest.approx(0, abs=0.06)
    whole = drawn(technique)
    assert torch.equal(drawn(technique, steps=1, start=3)[0]["x"], whole[3]["x"])
    assert not torch.equal(drawn(steps=1)[0]["x"], whole[0]["x"])


@pytest.mark.inventory("specaugment", by="technique SpecAugment")
def test_the_masked_share_is_the_one_that_the_widths_give():
    bands = times = 0.0
    spec = SpecAugment(frequency_masks=1, frequency_width=0.3, time_masks=1, time_width=0.4)
    plain, changed = drawn(steps=60), drawn(spec, steps=60)
    for before, after in zip(plain, changed, strict=True):
        assert torch.equal(before["y"], after["y"])
        hidden = (after["x"] == before["x"].mean((1, 2, 3), keepdim=True))[:, 0]
        assert torch.equal(after["x"][:, 0][~hidden], before["x"][:, 0][~hidden])
        rows, columns = hidden.all(2), hidden.all(1)
        assert torch.equal(hidden, rows[:, :, None] | columns[:, None, :]), "whole bands and whole moments"
        assert int(rows.sum(1).max()) <= 12
        assert int(columns.sum(1).max()) <= int(0.4 * 51)
        bands, times = bands + float(rows.float().mean()), times + float(columns.float().mean())
    # widths are drawn evenly from 0 to the largest, so half of it is masked on average: 6 of 40 bands, 10 of 51 moments
    assert bands / 60 == pytest.approx(6 / 40, abs=0.02)
    assert times / 60 == pytest.approx(10 / 51, abs=0.025)
    late = drawn(spec, steps=1, start=3)[0]
    assert torch.equal(late["x"], changed[3]["x"])


def test_stretching_comes_before_masking_in_either_order():
    for order in ((SpecAugment(), TimeStretch()), (TimeStretch(), SpecAugment())):
        batch = drawn(*order, steps=1)[0]
        constant = (batch["x"][:, 0].diff(dim=2).abs().amax(2) == 0).any(1)
        assert bool(constant.any()), "a masked band is left as it is"
    with pytest.raises(Conflict, match="comes from none; drop TimeStretch"):
        compile(recipe(stage()), [TimeStretch()])


def table(shared_data, folder: Path) -> Path:
    """Spoken digits of one speaker as a csv with paths, in training and test rows."""
    for split, count in (("train", 6), ("test", 2)):
        files = sorted((shared_data("fsdd") / split).glob("[0-3]_jackson_*.wav"))
        chosen = [file for digit in "0123" for file in [f for f in files if f.name[0] == digit][:count]]
        lines = [f"{file},{['zero', 'one', 'two', 'three'][int(file.name[0])]}" for file in chosen]
        (folder / f"{split}.csv").write_text("\n".join(["file,word", *lines]) + "\n")
    return folder


@pytest.mark.inventory("audio-time-stretch", "specaugment", by="regraft train, data.main.audio")
def test_spoken_digits_are_trained_on_with_both_and_new_files_are_predicted(shared_data, tmp_path):
    from regraft.phases.predict import load
    from regraft.phases.train import train_job

    (tmp_path / "data").mkdir()
    data = table(shared_data, tmp_path / "data")
    tree = {
        "data": {"main": {"path": str(data), "audio": "file", "label": "word", "valid": 0.2}},
        "models": {"main": {"network": {"ConvNet": {"width": 8}}}},
        "train": {"batch_size": 8, "optimizer": {"AdamW": {"lr": 3e-3}}},
        "stages": [{"name": "fit", "steps": 40}],
        "techniques": ["TimeStretch", {"SpecAugment": {"time_width": 0.1, "frequency_width": 0.1}}],
    }
    run = train_job(recipe_from_tree(tree), tmp_path / "run")
    predictor = load(run.path)
    files = [line.split(",") for line in (data / "train.csv").read_text().splitlines()[1:]]
    found = predictor.predict([file for file, _ in files])
    right = sum(one.label == word for one, (_, word) in zip(found, files, strict=True))
    assert right > 0.6 * len(files), "more than twice the share of guessing"
    rows = [one for part in predictor.predict_file(data / "test.csv") for one in part]
    assert len(rows) == 8
    assert {one.label for one in rows} <= {"zero", "one", "two", "three"}
    with pytest.raises(DataError, match="the sound cannot be read"):
        predictor.predict(["nowhere.wav"])


def test_the_main_job_and_a_pretrained_model_are_refused_in_a_sentence(shared_data, tmp_path):
    from regraft.phases.build import assemble
    from regraft.phases.opening import open_data
    from regraft.phases.progress import Silent

    data = table(shared_data, tmp_path)
    tree = {
        "data": {"main": {"path": str(data), "audio": "file", "label": "word"}},
        "models": {"main": {"name": "minilm"}},
        "stages": [{"name": "fit", "steps": 1}],
    }
    with pytest.raises(ConfigError, match="no pretrained model for sounds"):
        open_data(recipe_from_tree(tree), Silent())
    with pytest.raises(Exception, match="sounds are heard by a network"):
        assemble(recipe_from_tree(tree))
    with pytest.raises(DataError, match="name the column that holds the paths of WAV files"):
        open_data(recipe_from_tree(tree | {"data": {"main": {"path": str(data), "modality": "audio"}}}), Silent())


def test_check_augment_asks_about_stretching_and_masking_each_by_itself():
    made = compile(recipe(stage(source=sounds(), model=torch.nn.Linear(1, 1))), [TimeStretch(), SpecAugment()])
    plain, changes = parts_of_source(made.stages[0])
    assert [name for name, _ in changes] == ["TimeStretch", "SpecAugment"]
    for _, source in changes:
        assert isinstance(source.base, Examples)
        assert source.base is not plain
