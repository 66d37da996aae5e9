"""Ten classes: scanned digits, upright (source) and turned (target); signals with little noise and with more."""

import functools
from pathlib import Path

import numpy as np
import torch
from fine_tuning import Domains, Samples
from mnist1d.data import get_dataset_args, make_dataset
from scipy import ndimage
from sklearn.datasets import load_digits

from models import PixelEncoder


def digits(cache: Path, *, angle: float = 25) -> Domains:
    """Tell digits, of 8 x 8 pixels: scikit-learn's, and the same ones turned by about so many degrees, and moved."""
    rng = np.random.default_rng(0)
    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8)
    turned = np.stack([_turned(image, rng.normal(angle, 8), rng) for image in images])
    scale = 255 / 16

    def samples(found: np.ndarray) -> Samples:
        return Samples(torch.from_numpy((scale * found).clip(0, 255).astype(np.uint8)), torch.from_numpy(labels).long())

    return Domains(samples(images), samples(turned), 10, functools.partial(PixelEncoder, 64))


def _turned(image: np.ndarray, angle: float, rng: np.random.Generator) -> np.ndarray:
    return ndimage.shift(ndimage.rotate(image, angle, reshape=False, order=1), rng.uniform(-1, 1, 2), order=1)


def signals(cache: Path) -> Domains:
    """Tell the shapes of digits in signals of 40 values (Greydanus, "Scaling down Deep Learning", ICML 2024)."""

    def samples(num: int, seed: int, **options: float) -> Samples:
        arguments = get_dataset_args()
        arguments.num_samples, arguments.seed, arguments.train_split = num, seed, 1.0
        for name, value in options.items():
            setattr(arguments, name, value)
        found = make_dataset(arguments)
        values = (128 + 32 * found["x"]).clip(0, 255).astype(np.uint8)
        return Samples(torch.from_numpy(values), torch.from_numpy(found["y"]).long())

    source = samples(4000, 0, max_translation=1, corr_noise_scale=0.1, scale_coeff=0.2)
    target = samples(2500, 1, max_translation=3, corr_noise_scale=0.25, scale_coeff=0.5)
    return Domains(source, target, 10, functools.partial(PixelEncoder, 40))
