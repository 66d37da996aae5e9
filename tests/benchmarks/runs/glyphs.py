"""Characters, drawn by fonts for reading (source) and by brush, script, display and blackletter fonts (target)."""

import functools
import string
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from fine_tuning import Domains, Samples
from fontTools.ttLib import TTFont
from packages import unpacked
from PIL import Image, ImageDraw, ImageFont

from models import ImageEncoder

SIZE = 32

LATIN_PRINT = (
    "fonts-freefont-ttf fonts-dejavu-core fonts-liberation fonts-lato fonts-open-sans fonts-cantarell fonts-ebgaramond "
    "fonts-linuxlibertine fonts-cabin fonts-crosextra-caladea fonts-crosextra-carlito fonts-vollkorn fonts-oldstandard "
    "fonts-quattrocento fonts-sil-charis fonts-sil-gentium fonts-roboto-slab fonts-courier-prime fonts-hack "
    "fonts-adf-baskervald fonts-adf-berenis fonts-adf-gillius fonts-adf-romande fonts-adf-universalis fonts-averia-gwf"
)
LATIN_SCRIPT = (
    "fonts-dancingscript fonts-kaushanscript fonts-kristi fonts-lobster fonts-lobstertwo fonts-isabella fonts-chomsky "
    "fonts-gotico-antiqua fonts-rufscript fonts-dkg-handwriting fonts-femkeklaver fonts-blankenburg fonts-dustin "
    "fonts-comic-neue fonts-ecolier-court fonts-humor-sans fonts-cabinsketch fonts-tomsontalks fonts-essays1743 "
    "fonts-sjfonts fonts-breip fonts-beteckna fonts-johnsmith-induni fonts-joscelyn fonts-staypuft fonts-opendyslexic "
    "fonts-levien-typoscript fonts-tt2020 fonts-leckerli-one fonts-bajaderka fonts-klaudia-berenika fonts-ottilie"
)
HAN_PRINT = (
    "fonts-ipafont-gothic fonts-ipafont-mincho fonts-vlgothic fonts-arphic-uming fonts-wqy-zenhei fonts-wqy-microhei "
    "fonts-migmix fonts-mplus fonts-morisawa-bizud-gothic fonts-morisawa-bizud-mincho fonts-sawarabi-gothic "
    "fonts-sawarabi-mincho fonts-motoya-l-cedar fonts-motoya-l-maruberi fonts-umeplus fonts-hanazono fonts-konatu"
)
HAN_BRUSH = (
    "fonts-aoyagi-kouzan-t fonts-aoyagi-soseki fonts-kouzan-mouhitsu fonts-yusei-magic fonts-klee fonts-kiloji "
    "fonts-seto fonts-yozvox-yozfont fonts-yozvox-yozfont-antique fonts-yozvox-yozfont-cute fonts-dejima-mincho "
    "fonts-lxgw-wenkai fonts-oradano-mincho-gsrr fonts-reggae fonts-stick fonts-rampart fonts-rocknroll "
    "fonts-dotgothic16 fonts-cherrybomb fonts-arphic-ukai"
)
HANGUL_PRINT = (
    "fonts-nanum fonts-baekmuk fonts-unfonts-core fonts-lexi-gulim fonts-lexi-saebom fonts-naver-d2coding "
    "fonts-nanum-eco fonts-pretendard"
)
HANGUL_BRUSH = "fonts-nanum-extra fonts-unfonts-extra fonts-alee fonts-woowa-bm"
"""Packages of fonts."""


def letters() -> str:
    """Return the Latin letters with and without accents, the digits, and signs."""
    accented = "".join(c for c in map(chr, range(0xC0, 0x180)) if unicodedata.category(c) in ("Lu", "Ll"))
    return string.ascii_letters + string.digits + "!?&%$@#+=/()[]{}" + accented[:62]


def kanji(num: int, seed: int) -> str:
    """Return `num` of the 2965 kanji of level 1 of JIS X 0208."""
    rows, cells = range(16, 47), range(1, 95)
    codes = (bytes((0xA0 + row, 0xA0 + cell)).decode("euc_jp", "ignore") for row in rows for cell in cells)
    return _some("".join(codes), num, seed)


def hangul(num: int, seed: int) -> str:
    """Return `num` of the 2350 syllables of KS X 1001."""
    codes = (bytes((0xA0 + row, 0xA0 + cell)).decode("euc_kr") for row in range(16, 41) for cell in range(1, 95))
    return _some("".join(codes), num, seed)


def kana() -> str:
    """Return the hiragana and katakana."""
    return "".join(map(chr, [*range(0x3042, 0x3094), *range(0x30A2, 0x30F5)]))


def _some(characters: str, num: int, seed: int) -> str:
    return "".join(sorted(np.random.default_rng(seed).permutation(list(characters))[:num]))


def load(
    cache: Path,
    characters: str,
    source: str,
    target: str,
    *,
    most: tuple[int, int] = (24, 24),
    width: int = 128,
    layer_norm: bool = False,
) -> Domains:
    """Draw each character by at most so many fonts of the source's and of the target's packages."""
    drawn = [
        draw(characters, font_files(packages.split(), cache, characters, num), seed)
        for seed, (packages, num) in enumerate(zip((source, target), most, strict=True))
    ]
    encoder = functools.partial(ImageEncoder, 1, width, layer_norm)
    return Domains(drawn[0], drawn[1], len(characters), encoder)


def font_files(packages: Sequence[str], cache: Path, characters: str, most: int) -> list[Path]:
    """Return `most` fonts that have nine tenths of the characters, spread over the packages."""
    by_package = []
    for package in packages:
        files = sorted(
            path for path in unpacked(package, cache).rglob("*") if path.suffix.lower() in (".ttf", ".otf", ".ttc")
        )
        by_package.append([path for path in files if path.is_file() and not path.is_symlink()])
    usable: list[Path] = []
    for rank in range(max(map(len, by_package))):
        for files in by_package:
            if (
                rank < len(files)
                and len(usable) < most
                and len(covered(files[rank], characters)) >= 0.9 * len(characters)
            ):
                usable.append(files[rank])
    return usable


def covered(path: Path, characters: str) -> set[str]:
    """Return those of the characters that the font has."""
    codes = _codes(path)
    return {character for character in characters if ord(character) in codes}


@functools.cache
def _codes(path: Path) -> frozenset[int]:
    with TTFont(path, fontNumber=0, lazy=True) as font:
        return frozenset(font.getBestCmap() or {})


def draw(characters: str, fonts: Sequence[Path], seed: int) -> Samples:
    """Draw every character with every font that has it, a little moved, turned, and larger or smaller."""
    rng = np.random.default_rng(seed)
    images, labels = [], []
    for path in fonts:
        font = ImageFont.truetype(str(path), 48)
        present = covered(path, characters)
        heights = [font.getbbox(character, anchor="ls") for character in sorted(present)]
        top, bottom = (
            np.quantile([box[1] for box in heights], 0.05),
            np.quantile([box[3] for box in heights], 0.95),
        )
        for label, character in enumerate(characters):
            if character in present:
                image = _drawn(character, font, (top + bottom) / 2, max(bottom - top, 24), rng)
                if image.max() > 64:
                    images.append(image)
                    labels.append(label)
    return Samples(torch.from_numpy(np.stack(images)).unsqueeze(1), torch.tensor(labels))


def _drawn(
    character: str,
    font: ImageFont.FreeTypeFont,
    middle: float,
    height: float,
    rng: np.random.Generator,
) -> np.ndarray:
    canvas = Image.new("L", (128, 128))
    left, _, right, _ = font.getbbox(character, anchor="ls")
    ImageDraw.Draw(canvas).text((64 - (left + right) / 2, 64 - middle), character, 255, font=font, anchor="ls")
    scale = max(height, right - left) / (0.85 * SIZE) * rng.uniform(0.92, 1.12)
    angle, (dx, dy) = np.radians(rng.normal(0, 4)), rng.uniform(-2, 2, 2)
    cosine, sine = scale * np.cos(angle), scale * np.sin(angle)
    # The affine map from a pixel of the small image to one of the canvas, both seen from their centres.
    x = (cosine, -sine, 64 + dx - (cosine - sine) * SIZE / 2)
    y = (sine, cosine, 64 + dy - (sine + cosine) * SIZE / 2)
    # Drawn at twice the size first, and averaged down.
    twice = (x[0] / 2, x[1] / 2, x[2], y[0] / 2, y[1] / 2, y[2])
    image = canvas.transform((2 * SIZE, 2 * SIZE), Image.Transform.AFFINE, twice, Image.Resampling.BILINEAR)
    return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BOX))
