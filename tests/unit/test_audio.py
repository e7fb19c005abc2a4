"""Sounds that callers send: decoded from any container, checked, and written as one form."""

from __future__ import annotations

import io
import wave
from pathlib import Path

import av
import numpy as np
import pytest
from av.error import FFmpegError
from tests.unit.media_files import (
    SOUND_KINDS,
    TONE_HZ,
    audio_file,
    float_wav,
    is_opened,
    loudness_of,
    plain_wav,
    samples_of,
    tone,
)

from ltx_worker.errors import Cancelled, InputRejected
from ltx_worker.media.audio import Sound, read_sound, write_clip_sound, write_wav
from ltx_worker.stop import StopSignal

STOP = StopSignal(3600)
# Containers round to frames of up to 1,152 samples, or to milliseconds.
TOLERANCE_S = 0.03


@pytest.mark.parametrize("kind", SOUND_KINDS)
def test_every_container_is_read(kind: str) -> None:
    """The tone comes out of each container with its length, rate, pitch and loudness."""
    sound = read_sound(audio_file(kind), "audio", 10, STOP)
    assert sound.samples.dtype == np.float32
    assert sound.samples.shape[0] == 2
    assert sound.rate == 48_000
    assert sound.duration_s == pytest.approx(0.5, abs=TOLERANCE_S)
    assert loudness_of(sound.samples) == pytest.approx(0.5 / np.sqrt(2), rel=0.06)
    spectrum = np.abs(np.fft.rfft(sound.samples[0]))
    assert spectrum.argmax() / sound.duration_s == pytest.approx(TONE_HZ, abs=4)


@pytest.mark.parametrize(
    ("rate", "kept"),
    [(8_000, 48_000), (16_000, 16_000), (22_050, 22_050), (44_100, 44_100), (96_000, 48_000)],
)
def test_rates_that_models_know_are_kept(rate: int, kept: int) -> None:
    """A rate outside 16 to 48 kHz becomes 48 kHz, and no time is lost."""
    sound = read_sound(audio_file(rate=rate), "audio", 10, STOP)
    assert sound.rate == kept
    assert sound.duration_s == pytest.approx(0.5, abs=0.001)


def test_a_rate_that_would_unpack_to_gigabytes_is_refused() -> None:
    """A small file at one sample a second would last for hours."""
    with pytest.raises(InputRejected, match="audio has 1 samples a second; 4000 to 384000"):
        read_sound(float_wav(tone(0.5, 16_000), 1), "audio", 10, STOP)


def test_mono_is_as_loud_on_both_sides() -> None:
    """One channel becomes two equal ones without getting softer."""
    for data in (audio_file("flac", layout="mono"), plain_wav(1, 0.5)):
        sound = read_sound(data, "audio", 10, STOP)
        assert np.array_equal(sound.samples[0], sound.samples[1])
        assert loudness_of(sound.samples) == pytest.approx(0.5 / np.sqrt(2), rel=0.01)


@pytest.mark.parametrize(
    "data",
    [
        audio_file(layout="5.1", loudness=0.9),
        audio_file("m4a", layout="5.1", loudness=0.9),
        audio_file("mkv", layout="quad", loudness=0.9),
        plain_wav(6, 0.5),
    ],
    ids=["wav", "m4a", "quad", "plain"],
)
def test_surround_is_folded_without_clipping(data: bytes) -> None:
    """Loud channels that add up stay a sine: its crest is the square root of two."""
    sound = read_sound(data, "audio", 10, STOP)
    assert sound.samples.shape[0] == 2
    crest = np.abs(sound.samples[:, 4000:-4000]).max() / loudness_of(sound.samples)
    assert crest == pytest.approx(np.sqrt(2), rel=0.06)


def test_a_sound_that_changes_its_form_is_read_to_the_end() -> None:
    """Two songs in one mp3, mono then stereo and at another rate, are both heard."""
    data = audio_file("mp3", 1.0, 48_000, "mono") + audio_file("mp3", 1.0, 44_100, "stereo")
    assert read_sound(data, "audio", 10, STOP).duration_s == pytest.approx(2, abs=0.2)


def test_what_is_no_number_is_silence_and_nothing_exceeds_one() -> None:
    """A float WAV with NaN, infinity and large values gives samples within -1 … 1."""
    samples = tone(0.5, 16_000)
    samples[:, 100:103] = np.array([np.nan, np.inf, -7.0])
    sound = read_sound(float_wav(samples, 16_000), "audio", 10, STOP)
    assert sound.samples[:, 100:103].tolist() == [[0, 1, -1]] * 2
    assert np.array_equal(sound.samples[:, 200:], samples[:, 200:])


@pytest.mark.parametrize("kind", ["wav", "mp3", "flac", "webm", "mkv"])
def test_half_a_file_gives_the_half_that_is_there(kind: str) -> None:
    """An upload that broke off is used as far as it can be decoded."""
    data = audio_file(kind, 2.0)
    sound = read_sound(data[: len(data) // 2], "audio", 10, STOP)
    assert 0.5 < sound.duration_s < 1.2


@pytest.mark.parametrize("kind", SOUND_KINDS)
def test_a_file_truncated_to_nothing_is_refused(kind: str) -> None:
    """What is left of a header is no sound."""
    with pytest.raises(InputRejected):
        read_sound(audio_file(kind)[:60], "audio", 10, STOP)


@pytest.mark.parametrize("kind", ["m4a", "mp4"])
def test_a_file_without_its_index_is_refused(kind: str) -> None:
    """Half an mp4 has no index, and nothing can be decoded."""
    data = audio_file(kind)
    with pytest.raises(InputRejected, match="audio cannot be read"):
        read_sound(data[: len(data) // 2], "audio", 10, STOP)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a sound at all" * 100,
        b"\x89PNG\r\n\x1a\n" + bytes(500),
        b"file:///etc/passwd",
        b"#!AMR\n" + bytes(500),
        b"GIF89a" + bytes(500),
    ],
)
def test_what_is_no_sound_is_refused(data: bytes) -> None:
    """Only the containers of the list are read, by content; the message names them."""
    with pytest.raises(InputRejected, match="audio cannot be read; send a whole wav, mp3"):
        read_sound(data, "audio", 10, STOP)


@pytest.mark.parametrize("seconds", [0, 0.01, 0.09])
def test_a_sound_that_is_too_short_is_refused(seconds: float) -> None:
    """The audio VAE cannot encode less than a tenth of a second."""
    with pytest.raises(InputRejected, match=r"audio has less than 0\.1 s of sound"):
        read_sound(plain_wav(2, seconds), "audio", 10, STOP)


def test_a_tenth_of_a_second_is_enough() -> None:
    """The shortest sound that the audio VAE encodes is accepted."""
    assert read_sound(audio_file(seconds=0.1), "audio", 10, STOP).duration_s == 0.1


def test_a_sound_that_is_too_long_is_refused_with_both_lengths() -> None:
    """The message says how long the sound is and how long it may be."""
    with pytest.raises(InputRejected, match=r"audio lasts 3\.0 s; at most 1\.5 s are possible"):
        read_sound(audio_file(seconds=3), "audio", 1.5, STOP)


def test_a_sound_of_exactly_the_limit_is_read() -> None:
    """The limit itself is allowed."""
    assert read_sound(audio_file(seconds=1.5), "audio", 1.5, STOP).duration_s == 1.5


def test_a_header_that_understates_the_length_does_not_pass() -> None:
    """The limit holds for what is decoded, whatever the file says of itself."""
    data = bytearray(audio_file("mp3", 3.0))
    info = data.find(b"Info")
    data[info : info + 4] = bytes(4)
    with pytest.raises(InputRejected, match=r"audio lasts .*; at most 1 s are possible"):
        read_sound(bytes(data), "audio", 1, STOP)


def test_a_sound_that_ends_in_noise_is_read_up_to_it() -> None:
    """Damaged packets are left out, as players do."""
    data = bytearray(audio_file("mp3", 2.0))
    data[len(data) // 2 :] = np.random.default_rng(0).bytes(len(data) - len(data) // 2)
    assert 0.5 < read_sound(bytes(data), "audio", 10, STOP).duration_s < 2


@pytest.mark.parametrize(
    ("playlist", "demuxer", "options"),
    [
        ("ffconcat version 1.0\nfile {path}\n", "concat", {"safe": "0"}),
        (
            "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{path}\n#EXT-X-ENDLIST\n",
            "hls",
            {"allowed_extensions": "ALL", "extension_picky": "0"},
        ),
    ],
)
def test_a_playlist_is_refused_and_its_file_not_opened(
    playlist: str, demuxer: str, options: dict[str, str], tmp_path: Path
) -> None:
    """The same bytes do open the local file where FFmpeg is not kept to the list."""
    path = tmp_path / "private.mp3"
    path.write_bytes(audio_file("mp3"))
    data = playlist.format(path=path).encode()

    def unguarded() -> None:
        with av.open(io.BytesIO(data), "r", format=demuxer, container_options=options):
            pass

    def guarded() -> None:
        with pytest.raises(InputRejected) as failure:
            read_sound(data, "audio", 10, STOP)
        assert isinstance(failure.value.__cause__, FFmpegError)
        assert "private" not in failure.value.to_json()

    assert is_opened(path, unguarded)
    assert not is_opened(path, guarded)


def test_a_written_sound_is_cut_or_filled_with_silence(tmp_path: Path) -> None:
    """A file has exactly the samples of the time asked for, over many blocks too."""
    sound, path = Sound(tone(4.0, 16_000), 16_000), tmp_path / "audio.wav"
    write_wav(sound, path, 0.25)
    assert np.allclose(samples_of(path), sound.samples[:, :4000], atol=1e-4)
    write_wav(sound, path, 241 / 24)
    longer = samples_of(path)
    assert longer.shape == (2, round(241 / 24 * 16_000))
    assert np.allclose(longer[:, :64_000], sound.samples, atol=1e-4)
    assert not longer[:, 64_000:].any()


def test_a_written_sound_is_16_bit_stereo(tmp_path: Path) -> None:
    """The file is plain PCM, and reads back as it was to within half a step."""
    sound = Sound(tone(0.5, 44_100, loudness=1.0), 44_100)
    write_wav(sound, tmp_path / "audio.wav", 0.5)
    with wave.open(str(tmp_path / "audio.wav")) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (2, 2, 44_100)
        assert file.getnframes() == 22_050
    assert np.abs(samples_of(tmp_path / "audio.wav") - sound.samples).max() < 1e-4


def test_the_sound_of_a_clip_starts_with_its_picture(tmp_path: Path) -> None:
    """A picture that begins later than the sound cuts it; one that begins earlier adds silence."""
    data, path = audio_file(seconds=1.0), tmp_path / "audio.wav"
    assert write_clip_sound(data, "video", path, 0.25, 0.5, STOP)
    assert np.allclose(samples_of(path), tone(1.0, 48_000)[:, 12_000:36_000], atol=1e-3)
    assert write_clip_sound(data, "video", path, -0.25, 0.5, STOP)
    assert not samples_of(path)[:, :12_000].any()
    assert np.allclose(samples_of(path)[:, 12_000:], tone(1.0, 48_000)[:, :12_000], atol=1e-3)


def test_the_sound_of_a_clip_is_as_long_as_its_picture(tmp_path: Path) -> None:
    """Sound that ends early is followed by silence."""
    path = tmp_path / "audio.wav"
    assert write_clip_sound(audio_file(seconds=0.5), "video", path, 0, 2.5, STOP)
    assert samples_of(path).shape == (2, 120_000)
    assert not samples_of(path)[:, 24_000:].any()


@pytest.mark.parametrize(("seconds", "start_s"), [(0.05, 0), (1.0, 100), (1.0, 1e9)])
def test_a_clip_whose_sound_is_of_no_use_has_none(
    seconds: float, start_s: float, tmp_path: Path
) -> None:
    """Sound that is too short, or far from the picture, does not spoil the clip."""
    path = tmp_path / "audio.wav"
    data = audio_file(seconds=seconds)
    assert not write_clip_sound(data, "video", path, start_s, 5, STOP)
    assert not path.exists()


def test_a_job_that_is_cancelled_stops_reading_sound() -> None:
    """The stop signal is asked at every packet."""
    stop = StopSignal(60)
    stop.cancel()
    with pytest.raises(Cancelled):
        read_sound(audio_file(), "audio", 10, stop)
