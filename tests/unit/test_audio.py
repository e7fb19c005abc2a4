"""Sounds that callers send: decoded from any container, checked, and written as one form."""

from __future__ import annotations

import ctypes
import io
import os
import struct
import wave
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.error import FFmpegError

from ltx_worker.errors import InputRejected
from ltx_worker.media.audio import Samples, Sound, read_clip_sound, read_sound, write_wav

KINDS = {
    "wav": ("wav", "pcm_s16le"),
    "mp3": ("mp3", "libmp3lame"),
    "flac": ("flac", "flac"),
    "ogg": ("ogg", "libopus"),
    "m4a": ("ipod", "aac"),
    "mp4": ("mp4", "aac"),
    "webm": ("webm", "libopus"),
    "mkv": ("matroska", "flac"),
}
TONE_HZ = 440
IN_OPEN = 0x20
# Containers round to frames of up to 1,152 samples, or to milliseconds.
TOLERANCE_S = 0.03


def tone(seconds: float, rate: int, channels: int = 2, loudness: float = 0.5) -> Samples:
    wave_form = loudness * np.sin(2 * np.pi * TONE_HZ * np.arange(round(seconds * rate)) / rate)
    return np.tile(wave_form.astype(np.float32), (channels, 1))


def audio_file(
    kind: str = "wav",
    seconds: float = 0.5,
    rate: int = 48_000,
    layout: str = "stereo",
    loudness: float = 0.5,
) -> bytes:
    container_format, codec = KINDS[kind]
    channels = av.AudioLayout(layout).nb_channels
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container_format) as output:
        stream = output.add_stream(codec, rate=rate, layout=layout)
        if seconds:
            samples = tone(seconds, rate, channels, loudness)
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=layout)
            frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return buffer.getvalue()


def plain_wav(channels: int, seconds: float) -> bytes:
    """A WAV that says how many channels it has, but not which."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(48_000)
        file.writeframes((tone(seconds, 48_000, channels).T * 32767).astype("<i2").tobytes())
    return buffer.getvalue()


def float_wav(samples: Samples, rate: int) -> bytes:
    """A WAV of 32-bit floats, in which any number can stand, and a title in Latin-1."""
    data = samples.T.astype("<f4").tobytes()
    form = struct.pack("<HHIIHH", 3, 2, rate, rate * 8, 8, 32)
    title = b"LIST" + struct.pack("<I", 16) + b"INFOINAM" + struct.pack("<I", 4) + b"caf\xe9"
    body = b"WAVEfmt " + struct.pack("<I", 16) + form + title
    body += b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


def loudness_of(samples: Samples) -> float:
    """Root mean square of what lies well inside a sound."""
    inner = samples[:, samples.shape[1] // 4 : -samples.shape[1] // 4]
    return float(np.sqrt(np.mean(inner**2)))


def is_opened(path: Path, act: Callable[[], object]) -> bool:
    """Whether the file at `path` is opened while `act` runs (by inotify)."""
    libc = ctypes.CDLL(None, use_errno=True)
    watch = libc.inotify_init1(os.O_NONBLOCK)
    assert libc.inotify_add_watch(watch, os.fsencode(path), IN_OPEN) > 0
    try:
        act()
        return bool(os.read(watch, 4096))
    except BlockingIOError:
        return False
    finally:
        os.close(watch)


@pytest.mark.parametrize("kind", KINDS)
def test_every_container_is_read(kind: str) -> None:
    """The tone comes out of each container with its length, rate, pitch and loudness."""
    sound = read_sound(audio_file(kind), "audio", 10)
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
    sound = read_sound(audio_file(rate=rate), "audio", 10)
    assert sound.rate == kept
    assert sound.duration_s == pytest.approx(0.5, abs=0.001)


def test_a_rate_that_would_unpack_to_gigabytes_is_refused() -> None:
    """A small file at one sample a second would last for hours."""
    with pytest.raises(InputRejected, match="audio has 1 samples a second; at least 4000"):
        read_sound(float_wav(tone(0.5, 16_000), 1), "audio", 10)


def test_mono_is_as_loud_on_both_sides() -> None:
    """One channel becomes two equal ones without getting softer."""
    for data in (audio_file("flac", layout="mono"), plain_wav(1, 0.5)):
        sound = read_sound(data, "audio", 10)
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
    sound = read_sound(data, "audio", 10)
    assert sound.samples.shape[0] == 2
    crest = np.abs(sound.samples[:, 4000:-4000]).max() / loudness_of(sound.samples)
    assert crest == pytest.approx(np.sqrt(2), rel=0.06)


def test_a_sound_that_changes_its_form_is_read_to_the_end() -> None:
    """Two songs in one mp3, mono then stereo and at another rate, are both heard."""
    data = audio_file("mp3", 1.0, 48_000, "mono") + audio_file("mp3", 1.0, 44_100, "stereo")
    assert read_sound(data, "audio", 10).duration_s == pytest.approx(2, abs=0.2)


def test_what_is_no_number_is_silence_and_nothing_exceeds_one() -> None:
    """A float WAV with NaN, infinity and large values gives samples within -1 … 1."""
    samples = tone(0.5, 16_000)
    samples[:, 100:103] = np.array([np.nan, np.inf, -7.0])
    sound = read_sound(float_wav(samples, 16_000), "audio", 10)
    assert sound.samples[:, 100:103].tolist() == [[0, 1, -1]] * 2
    assert np.array_equal(sound.samples[:, 200:], samples[:, 200:])


@pytest.mark.parametrize("kind", ["wav", "mp3", "flac", "webm", "mkv"])
def test_half_a_file_gives_the_half_that_is_there(kind: str) -> None:
    """An upload that broke off is used as far as it can be decoded."""
    data = audio_file(kind, 2.0)
    sound = read_sound(data[: len(data) // 2], "audio", 10)
    assert 0.5 < sound.duration_s < 1.2


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_truncated_to_nothing_is_refused(kind: str) -> None:
    """What is left of a header is no sound."""
    with pytest.raises(InputRejected):
        read_sound(audio_file(kind)[:60], "audio", 10)


@pytest.mark.parametrize("kind", ["m4a", "mp4"])
def test_a_file_without_its_index_is_refused(kind: str) -> None:
    """Half an mp4 has no index, and nothing can be decoded."""
    data = audio_file(kind)
    with pytest.raises(InputRejected, match="audio cannot be read"):
        read_sound(data[: len(data) // 2], "audio", 10)


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
        read_sound(data, "audio", 10)


@pytest.mark.parametrize("seconds", [0, 0.01, 0.09])
def test_a_sound_that_is_too_short_is_refused(seconds: float) -> None:
    """The audio VAE cannot encode less than a tenth of a second."""
    with pytest.raises(InputRejected, match=r"audio has less than 0\.1 s of sound"):
        read_sound(plain_wav(2, seconds), "audio", 10)


def test_a_tenth_of_a_second_is_enough() -> None:
    """The shortest sound that the audio VAE encodes is accepted."""
    assert read_sound(audio_file(seconds=0.1), "audio", 10).duration_s == 0.1


def test_a_sound_that_is_too_long_is_refused_with_both_lengths() -> None:
    """The message says how long the sound is and how long it may be."""
    with pytest.raises(InputRejected, match=r"audio lasts 3\.0 s; at most 1\.5 s are possible"):
        read_sound(audio_file(seconds=3), "audio", 1.5)


def test_a_sound_of_exactly_the_limit_is_read() -> None:
    """The limit itself is allowed."""
    assert read_sound(audio_file(seconds=1.5), "audio", 1.5).duration_s == 1.5


def test_a_header_that_understates_the_length_does_not_pass() -> None:
    """The limit holds for what is decoded, whatever the file says of itself."""
    data = bytearray(audio_file("mp3", 3.0))
    info = data.find(b"Info")
    data[info : info + 4] = bytes(4)
    with pytest.raises(InputRejected, match=r"audio lasts .*; at most 1 s are possible"):
        read_sound(bytes(data), "audio", 1)


def test_a_sound_that_ends_in_noise_is_read_up_to_it() -> None:
    """Damaged packets are left out, as players do."""
    data = bytearray(audio_file("mp3", 2.0))
    data[len(data) // 2 :] = np.random.default_rng(0).bytes(len(data) - len(data) // 2)
    assert 0.5 < read_sound(bytes(data), "audio", 10).duration_s < 2


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
            read_sound(data, "audio", 10)
        assert isinstance(failure.value.__cause__, FFmpegError)
        assert "private" not in failure.value.to_json()

    assert is_opened(path, unguarded)
    assert not is_opened(path, guarded)


def test_fitting_cuts_or_fills_with_silence() -> None:
    """A fitted sound has exactly the samples of the time asked for."""
    sound = Sound(tone(1.0, 16_000), 16_000)
    assert np.array_equal(sound.fitted(0.25).samples, sound.samples[:, :4000])
    longer = sound.fitted(121 / 24)
    assert longer.samples.shape == (2, round(121 / 24 * 16_000))
    assert np.array_equal(longer.samples[:, :16_000], sound.samples)
    assert not longer.samples[:, 16_000:].any()


def test_a_section_ends_where_the_sound_does() -> None:
    """Times outside the sound give what lies inside."""
    sound = Sound(tone(1.0, 16_000), 16_000)
    assert np.array_equal(sound.section(0.5, 0.75).samples, sound.samples[:, 8000:12_000])
    assert sound.section(-1, 0.5).duration_s == 0.5
    assert sound.section(0.5, 9).duration_s == 0.5
    assert sound.section(2, 3).duration_s == 0


def test_a_written_sound_is_16_bit_stereo(tmp_path: Path) -> None:
    """The file is plain PCM, and reads back as it was to within half a step."""
    sound = Sound(tone(0.5, 44_100, loudness=1.0), 44_100)
    write_wav(sound, tmp_path / "audio.wav")
    with wave.open(str(tmp_path / "audio.wav")) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (2, 2, 44_100)
        assert file.getnframes() == 22_050
    again = read_sound((tmp_path / "audio.wav").read_bytes(), "audio", 10)
    assert np.abs(again.samples - sound.samples).max() < 1e-4


def test_the_sound_of_a_clip_starts_with_its_picture() -> None:
    """A picture that begins later than the sound cuts it; one that begins earlier adds silence."""
    data = audio_file(seconds=1.0)
    later = read_clip_sound(data, "video", 0.25, 0.5)
    earlier = read_clip_sound(data, "video", -0.25, 0.5)
    assert later is not None
    assert earlier is not None
    assert np.allclose(later.samples, tone(1.0, 48_000)[:, 12_000:36_000], atol=1e-3)
    assert not earlier.samples[:, :12_000].any()
    assert np.allclose(earlier.samples[:, 12_000:], tone(1.0, 48_000)[:, :12_000], atol=1e-3)


def test_a_clip_whose_sound_is_of_no_use_has_none() -> None:
    """Sound that is too short, or far from the picture, does not spoil the clip."""
    assert read_clip_sound(audio_file(seconds=0.05), "video", 0, 5) is None
    assert read_clip_sound(audio_file(seconds=1.0), "video", 100, 5) is None
