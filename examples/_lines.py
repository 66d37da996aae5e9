"""Lines of text in several alphabets, drawn with fonts that matplotlib brings, and a small network that reads them.

The words are from names of countries, regions and languages in pycountry's translations.
"""

import gettext
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import pycountry
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn
from torch.nn import functional as F

ALPHABETS = {
    "Latin": (("de", "es", "fr", "pl"), "a-zà-öø-ÿąćęłńśźż"),
    "Cyrillic": (("ru",), "\u0430-\u044fё"),
    "Greek": (("el",), "ΐά-ώ"),
    "Georgian": (("ka",), "ა-ჰ"),
}
"""The languages of an alphabet, and its small letters."""
CATALOGUES = ("iso3166-1", "iso3166-2", "iso639-3", "iso15924", "iso4217")
FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
HEIGHT, WIDTH = 20, 152
BLANK = 0


def words_of(alphabet: str) -> list[str]:
    """All words of two to seven letters, in small letters."""
    languages, letters = ALPHABETS[alphabet]
    words: set[str] = set()
    for language in languages:
        folder = Path(pycountry.LOCALES_DIR) / language / "LC_MESSAGES"
        for name in CATALOGUES:
            with open(folder / f"{name}.mo", "rb") as file:
                names = gettext.GNUTranslations(file)._catalog.values()
            texts = " ".join(text for text in names if isinstance(text, str))
            words.update(re.findall(r"[^\W\d_]+", texts.lower()))
    return sorted(
        word for word in words if re.fullmatch(f"[{letters}]{{2,7}}", word)
    )


class Lines(NamedTuple):
    """Pictures `(B, 1, HEIGHT, WIDTH)`, and their texts as class indices `(B, S)`, padded with the blank."""

    pictures: Tensor
    targets: Tensor

    @property
    def texts(self) -> list[list[int]]:
        return [
            [c for c in text if c != BLANK] for text in self.targets.tolist()
        ]

    def batches(self) -> list[tuple[Tensor, Tensor]]:
        return list(
            zip(self.pictures.split(100), self.targets.split(100), strict=True)
        )


class Writer:
    """Draws lines of two words, in turn of each alphabet."""

    def __init__(self, *alphabets: str) -> None:
        self.words = {alphabet: words_of(alphabet) for alphabet in alphabets}
        self.absent: set[str] = set()
        for words in self.words.values():
            by_frequency = [
                letter for letter, _ in Counter("".join(words)).most_common()
            ]
            self.absent.update(by_frequency[1::2])
        letters = sorted(
            set(
                "".join(word for words in self.words.values() for word in words)
            )
        )
        self.class_names = ["blank", " ", *letters]
        self.seen_mask = torch.tensor(
            [name not in self.absent for name in self.class_names]
        )

    def draw(
        self,
        count: int,
        fonts: Sequence[str],
        *,
        seed: int,
        noise: float = 0.03,
        only_seen: bool = False,
    ) -> Lines:
        """Draw lines; with `only_seen`, of words without an absent letter."""
        rng = np.random.default_rng(seed)
        left_out = self.absent if only_seen else set()
        pools = [
            [word for word in words if left_out.isdisjoint(word)]
            for words in self.words.values()
        ]
        texts = [
            " ".join(rng.choice(pools[i % len(pools)], 2)) for i in range(count)
        ]
        index = {name: i for i, name in enumerate(self.class_names)}
        targets = torch.full((count, max(map(len, texts))), BLANK)
        for row, text in zip(targets, texts, strict=True):
            row[: len(text)] = torch.tensor([index[letter] for letter in text])
        return Lines(_draw(texts, fonts, noise, rng), targets)


def _draw(
    texts: Sequence[str],
    fonts: Sequence[str],
    noise: float,
    rng: np.random.Generator,
) -> Tensor:
    loaded = [
        ImageFont.truetype(str(FONTS / f"{name}.ttf"), size)
        for name in fonts
        for size in (12, 13)
    ]
    pictures = np.empty((len(texts), HEIGHT, WIDTH), dtype=np.float32)
    for picture, text in zip(pictures, texts, strict=True):
        page = Image.new("L", (WIDTH, HEIGHT))
        place = (3 + rng.integers(3), 1 + rng.integers(4))
        ImageDraw.Draw(page).text(
            place, text, 255, loaded[rng.integers(len(loaded))]
        )
        picture[:] = np.asarray(page, dtype=np.float32) / 255
    ink = rng.uniform(1 - 5 * noise, 1, (len(texts), 1, 1)).astype(np.float32)
    pictures = ink * pictures + noise * rng.standard_normal(
        pictures.shape, dtype=np.float32
    )
    return torch.from_numpy(pictures)[:, None]


class Reader(nn.Module):
    """Three convolutions and a recurrent layer: log-probabilities `(T, B, C)`, as `torch.nn.CTCLoss` takes them."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            _block(1, 32, 2), _block(32, 48, (2, 1)), _block(48, 64, (2, 1))
        )
        self.recurrent = nn.GRU(64 * 3, 64, bidirectional=True)
        self.head = nn.Linear(128, num_classes)

    def forward(self, pictures: Tensor) -> Tensor:
        columns = self.convolutions(pictures).flatten(1, 2).permute(2, 0, 1)
        return self.head(self.recurrent(columns)[0]).log_softmax(2)


def _block(
    n_in: int, n_out: int, stride: int | tuple[int, int]
) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(n_out),
        nn.ReLU(),
    )


def train(
    model: nn.Module, lines: Lines, epochs: int, learning_rate: float
) -> None:
    optimiser = torch.optim.AdamW(model.parameters(), learning_rate)
    batches = [
        batch
        for _ in range(epochs)
        for batch in torch.randperm(len(lines.pictures)).split(16)
    ]
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, learning_rate, total_steps=len(batches)
    )
    model.train()
    for batch in batches:
        log_probabilities, targets = (
            model(lines.pictures[batch]),
            lines.targets[batch],
        )
        frames = torch.full((len(batch),), len(log_probabilities))
        loss = F.ctc_loss(
            log_probabilities, targets, frames, (targets != BLANK).sum(1)
        )
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimiser.step()
        schedule.step()
