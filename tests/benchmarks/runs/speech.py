"""Words, spoken by the voices of eSpeak NG (source) and by those of Flite (target), as pictures of their sound."""

import functools
import itertools
import os
import subprocess
import tempfile
import wave
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from fine_tuning import Domains, Samples
from packages import library_path, unpacked
from PIL import Image

from models import ImageEncoder

WORDS = (
    "alpha bravo charlie delta echo foxtrot golf hotel india juliet kilo lima mike november oscar papa quebec romeo "
    "sierra tango uniform victor whiskey yankee zulu zero one two three four five six seven eight nine ten eleven "
    "twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy "
    "eighty ninety hundred thousand million monday tuesday wednesday thursday friday saturday sunday january february "
    "march april may june july august september october december red green blue yellow black white brown orange"
)
ESPEAK_VOICES = [
    f"{accent}+{variant}"
    for accent in ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp")
    for variant in ("m1", "m3", "m7", "f1", "f2", "f4")
]
FLITE_VOICES = [
    (voice, pitch, stretch)
    for voice in ("slt", "rms", "awb", "kal16")
    for pitch, stretch in ((90, 1.0), (110, 1.2), (130, 0.8), (150, 1.2), (190, 1.0), (230, 0.9))
]
SIZE = 32
LOWEST, HIGHEST = 120.0, 6000.0
"""Hertz."""


def load(cache: Path) -> Domains:
    """Let every voice say every word."""
    packages = "espeak-ng", "espeak-ng-data", "flite"
    folders = {package: unpacked(package, cache).absolute() / "usr" for package in packages}
    (data,) = folders["espeak-ng-data"].glob("lib/*/espeak-ng-data")
    libraries = library_path(packages, cache)
    espeak = folders["espeak-ng"] / "bin/espeak-ng", f"--path={data.parent}", "-D", "-s", "150"
    flite = folders["flite"] / "bin/flite"
    end = "-t", "{word}", "-o", "{file}"
    say_source = [(*espeak, "-v", voice, "-w", "{file}", "{word}") for voice in ESPEAK_VOICES]
    say_target = [
        (flite, "-voice", voice, "--setf", f"int_f0_target_mean={pitch}", "--setf", f"duration_stretch={stretch}", *end)
        for voice, pitch, stretch in FLITE_VOICES
    ]
    domains = [
        _samples(list(_said(commands, libraries)), seed) for seed, commands in enumerate((say_source, say_target))
    ]
    return Domains(*domains, len(WORDS.split()), functools.partial(ImageEncoder, 1))


def _said(commands: Sequence[Sequence[object]], libraries: str) -> Iterator[tuple[np.ndarray, float]]:
    """Yield the sound and the sampling rate of each command, for each word in turn."""
    environment = os.environ | {"LD_LIBRARY_PATH": libraries}
    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/said.wav"
        for word in WORDS.split():
            for command in commands:
                call = [str(part).format(file=file, word=word) for part in command]
                subprocess.run(call, env=environment, check=True, capture_output=True)
                with wave.open(file) as sound:
                    yield np.frombuffer(sound.readframes(sound.getnframes()), np.int16) / 32768, sound.getframerate()


def _samples(sounds: Sequence[tuple[np.ndarray, float]], seed: int) -> Samples:
    rng = np.random.default_rng(seed)
    images = np.stack([_picture(sound, rate, rng) for sound, rate in sounds])
    labels = torch.arange(len(WORDS.split())).repeat_interleave(len(sounds) // len(WORDS.split()))
    return Samples(torch.from_numpy(images).unsqueeze(1), labels)


def _picture(sound: np.ndarray, rate: float, rng: np.random.Generator) -> np.ndarray:
    """Return loudness by pitch, on a logarithmic scale, and time; every pitch is as loud as the others on average."""
    loud = np.flatnonzero(np.abs(sound) > 0.02)
    sound = sound[loud[0] : loud[-1] + 1]
    sound = sound / sound.std() + rng.uniform(0.02, 0.1) * rng.standard_normal(len(sound))
    window, hop = int(0.03 * rate), int(0.01 * rate)
    frames = np.lib.stride_tricks.sliding_window_view(sound, window)[::hop] * np.hanning(window)
    power = np.abs(np.fft.rfft(frames)) ** 2
    edges = np.geomspace(LOWEST, HIGHEST, SIZE + 1) * window / rate
    bands = [power[:, int(low) : max(int(high), int(low) + 1)].mean(1) for low, high in itertools.pairwise(edges)]
    decibel = 10 * np.log10(np.stack(bands) + 1e-9)
    decibel -= decibel.mean(1, keepdims=True)
    grey = np.interp(decibel / decibel.std(), (-3, 3), (0, 255)).astype(np.uint8)
    return np.asarray(Image.fromarray(grey).resize((SIZE, SIZE), Image.Resampling.BILINEAR))
