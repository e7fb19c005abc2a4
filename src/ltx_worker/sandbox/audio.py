"""Nodes of the sandbox that load, cut, join, encode and decode sound."""

from __future__ import annotations

from typing import Any

import numpy as np

from ltx_worker.sandbox import latents as la
from ltx_worker.sandbox import values as v
from ltx_worker.sandbox.context import Context, Inputs, get
from ltx_worker.sandbox.sound import Sound, file_sound, melody, resampled, with_channels

# Measured on ComfyUI 0.27: the encoder takes sound at 44.1 kHz, drops what is beyond a multiple of
# 4096 samples, half at each end, makes spectra at 16 kHz, one each 10 ms, and four of them are one
# latent. Decoded, the last latent has only one.
_ENCODER_HZ = 44_100
_ENCODED_SAMPLES = 4096
_SPECTRUM_SOURCE_HZ = 16_000
_SPECTRA_PER_S = 100
_SPECTRA_PER_LATENT = 4


def load(inputs: Inputs, context: Context) -> tuple[Any, ...]:
    """LoadAudio: the first sound of an audio or video file.

    Raises ValueError for a file without sound.
    """
    sound = file_sound(context.folders.source(get(inputs, "audio", str)))
    if sound is None:
        raise ValueError("No audio stream found in the file.")
    return (sound,)


def silence(inputs: Inputs, _context: Context) -> tuple[Any, ...]:
    """EmptyAudio."""
    rate = get(inputs, "sample_rate", int)
    length = round(get(inputs, "duration", float) * rate)
    return (Sound.of(np.zeros((get(inputs, "channels", int), length), dtype=np.float32), rate),)


def trim(inputs: Inputs, _context: Context) -> tuple[Any, ...]:
    """TrimAudioDuration; None stays None.

    Raises ValueError when nothing is left: the start is at the end, or beyond it.
    """
    if inputs["audio"] is None:
        return (None,)
    sound = get(inputs, "audio", Sound)
    if not sound.length:
        return (sound,)
    start = round(get(inputs, "start_index", float) * sound.sample_rate)
    start = max(0, min(start + sound.length if start < 0 else start, sound.length))
    length = round(get(inputs, "duration", float) * sound.sample_rate)
    samples = sound.samples[:, start : start + length]
    if not samples.shape[1]:
        raise ValueError(
            "TrimAudioDuration: Start time must be less than end time and be within the audio "
            "length."
        )
    return (Sound.of(samples, sound.sample_rate),)


def concatenate(inputs: Inputs, _context: Context) -> tuple[Any, ...]:
    """AudioConcat, at the higher of two rates and in stereo; None stays out of it.

    Raises RuntimeError for sounds whose channels do not match.
    """
    sounds = [get(inputs, name, Sound) for name in ("audio1", "audio2") if inputs[name] is not None]
    if len(sounds) < 2:
        return (sounds[0] if sounds else None,)
    rate = max(sound.sample_rate for sound in sounds)
    parts = [
        resampled(
            with_channels(sound.samples, 2) if sound.channels == 1 else sound.samples,
            sound.sample_rate,
            rate,
        )
        for sound in sounds
    ]
    first, second = (part.shape[0] for part in parts)
    if first != second:
        raise RuntimeError(
            f"Sizes of tensors must match except in dimension 2. Expected size {first} but got "
            f"size {second} for tensor number 1 in the list."
        )
    if inputs["direction"] == "before":
        parts.reverse()
    return (Sound.of(np.concatenate(parts, axis=1), rate),)


def encode(inputs: Inputs, _context: Context) -> tuple[Any, ...]:
    """LTXVAudioVAEEncode: the sound in stereo, without up to 46 ms at each end.

    Raises ValueError for None, and RuntimeError for less than 93 ms.
    """
    get(inputs, "audio_vae", v.AudioVae)
    if inputs["audio"] is None:
        raise ValueError(
            "VAEEncodeAudio: input audio is None (source video may have no audio track)."
        )
    sound = get(inputs, "audio", Sound)
    samples = resampled(with_channels(sound.samples, 2), sound.sample_rate, _ENCODER_HZ)
    beyond = samples.shape[1] % _ENCODED_SAMPLES
    length = samples.shape[1] - beyond
    if not length:
        raise RuntimeError(
            "cannot reshape tensor of 0 elements into shape [-1, 0] because the unspecified "
            "dimension size -1 can be any value and is ambiguous"
        )
    samples = samples[:, beyond // 2 : beyond // 2 + length]
    source_length = -(-length * _SPECTRUM_SOURCE_HZ // _ENCODER_HZ)
    spectra = source_length * _SPECTRA_PER_S // _SPECTRUM_SOURCE_HZ + 1
    count = -(-spectra // _SPECTRA_PER_LATENT)
    return (la.AudioLatent(count, Sound.of(samples, _ENCODER_HZ)),)


def decode(inputs: Inputs, _context: Context) -> tuple[Any, ...]:
    """LTXVAudioVAEDecode, which takes the sound out of a joint latent.

    What was held sounds as it was encoded, what was free is a melody.
    """
    rate = get(inputs, "audio_vae", v.AudioVae).sample_rate
    latent = inputs["samples"]
    if isinstance(latent, la.AVLatent):
        latent = latent.audio
    else:
        latent = get(inputs, "samples", la.AudioLatent)
    spectra = latent.length * _SPECTRA_PER_LATENT - (_SPECTRA_PER_LATENT - 1)
    length = max(0, spectra) * rate // _SPECTRA_PER_S
    held = np.zeros((2, length), dtype=np.float32)
    if latent.source:
        source = resampled(latent.source.samples, latent.source.sample_rate, rate)[:, :length]
        held[:, : source.shape[1]] = source
    seed = v.seed_of(tuple(run for run, _ in latent.passes))
    free = np.repeat(
        [latent.is_free(index) for index in range(latent.length)],
        _SPECTRA_PER_LATENT * rate // _SPECTRA_PER_S,
    )[:length]
    return (Sound.of(np.where(free, melody(seed, length, rate), held), rate),)
