"""Real data for the demo: names of countries, currencies and scripts in many languages."""

from __future__ import annotations

import gettext
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..inputs.numbers import check_share

__all__ = ["NamesSplit", "NamesTask", "load_names"]

# By the names of pycountry's catalogues. English and the Romance languages, with French-based Haitian ...
SOURCE_LANGUAGES = "en an ast ca es fr frp fur gl ht it oc pt pt_BR ro ro_MD sc wa"
# ... against Slavic, Baltic, Finnic and Hungarian, Turkic, Austronesian, African, and some that stand alone.
TARGET_LANGUAGES = (
    "bs cs csb hr pl sk sl sr@latin "
    "lt lv "
    "et fi hu "
    "az crh tk tr tt@iqtelif uz "
    "fil id mi ms tl "
    "ach ff ha kab rw so son sw wo yo zu "
    "eu kmr mt sq vi"
)
MIN_SOURCE_SPELLINGS = 7
MIN_TARGET_SPELLINGS = 9
# ISO codes that stand for no country, currency or script; script numbers from 900 are "reserved" or "unwritten".
NAMELESS_CURRENCIES = ("XTS", "XXX")
FIRST_NAMELESS_SCRIPT = 900

Names = dict[str, list[str]]  # English name: spellings
Spellings = dict[str, dict[str, str]]  # English name: what a spelling is compared by: the spelling


@dataclass(frozen=True)
class NamesSplit:
    """Names with their class indices: `labels` is ``(N,)`` int64 and belongs to `names` one to one."""

    names: tuple[str, ...]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.names)

    def of_classes(self, mask: Tensor) -> NamesSplit:
        """Return the names whose classes are True in `mask`, ``(C,)`` bool, in their order."""
        chosen = mask[self.labels]
        names = (name for name, is_chosen in zip(self.names, chosen.tolist(), strict=True) if is_chosen)
        return NamesSplit(tuple(names), self.labels[chosen])


@dataclass(frozen=True)
class NamesTask:
    """A fine-tuning task: tell which country, currency or script a name stands for.

    Attributes
    ----------
    class_names : tuple of str
        English name of each of the C classes; all different.
    seen_mask : Tensor
        ``(C,)`` bool, True for the classes in the fine-tuning data.
    source : NamesSplit
        All classes in English and the Romance languages, for pre-training.
    train, held_out : NamesSplit
        Seen classes only, in the other languages: the fine-tuning data, and a part of them kept aside.
    test : NamesSplit
        All classes in the other languages.
    """

    class_names: tuple[str, ...]
    seen_mask: Tensor
    source: NamesSplit
    train: NamesSplit
    held_out: NamesSplit
    test: NamesSplit


def load_names(seed: int = 0, seen_fraction: float = 0.5) -> NamesTask:
    """Names of countries, currencies and scripts, split for fine-tuning on half of the classes, or on another part.

    The names are the translations of ISO 3166-1, ISO 4217 and ISO 15924 that come with the package `pycountry`. A class
    is an English name; brackets are cut off: "Cyrillic (Old Church Slavonic variant)" belongs to "Cyrillic". Spellings
    that differ in upper and lower case only are one spelling. A spelling of two classes ("Armeenia", in Estonian the
    country and the script) is left out altogether, and one that occurs in the source languages is left out of the
    target languages, so that no spelling occurs twice. Classes with fewer than 7 source or 9 target spellings are left
    out.

    A quarter of the target spellings of each class are for testing. If the class is seen, a seventh of the others are
    held out and the rest are for training; if it is absent, nobody gets them.

    Parameters
    ----------
    seed : int
        Chooses the seen classes and the splits. The global random state is neither used nor changed.
    seen_fraction : float in (0, 1)
        Share of the classes that are seen, rounded down to a whole class, but at least one. With the same `seed`, a
        larger share adds classes to those of a smaller one, and `source` and `test` stay the same.

    Returns
    -------
    NamesTask
        C is about 290: it depends on the version of `pycountry`, as do the names.

    Raises
    ------
    ValueError
        If `seen_fraction` is not in (0, 1).
    ImportError
        If `pycountry` is not installed.
    """
    check_share(seen_fraction, "seen_fraction")
    source, target = _source_and_target()
    class_names = tuple(
        english
        for english in sorted(source.keys() & target.keys())
        if len(source[english]) >= MIN_SOURCE_SPELLINGS and len(target[english]) >= MIN_TARGET_SPELLINGS
    )
    generator = torch.Generator().manual_seed(seed)
    seen_mask = torch.zeros(len(class_names), dtype=torch.bool)
    num_seen = max(1, int(seen_fraction * len(class_names)))
    seen_mask[torch.randperm(len(class_names), generator=generator)[:num_seen]] = True

    train: list[tuple[str, int]] = []
    held_out: list[tuple[str, int]] = []
    test: list[tuple[str, int]] = []
    for label, english in enumerate(class_names):
        samples = _shuffled([(name, label) for name in target[english]], generator)
        n_test = round(len(samples) / 4)
        n_held_out = round((len(samples) - n_test) / 7)
        test += samples[:n_test]
        if seen_mask[label]:
            held_out += samples[n_test : n_test + n_held_out]
            train += samples[n_test + n_held_out :]
    return NamesTask(
        class_names,
        seen_mask,
        source=_split([(name, label) for label, english in enumerate(class_names) for name in source[english]]),
        train=_split(train),
        held_out=_split(held_out),
        test=_split(_shuffled(test, generator)),
    )


def _split(samples: list[tuple[str, int]]) -> NamesSplit:
    return NamesSplit(tuple(name for name, _ in samples), torch.tensor([label for _, label in samples]))


def _shuffled(samples: list[tuple[str, int]], generator: torch.Generator) -> list[tuple[str, int]]:
    return [samples[i] for i in torch.randperm(len(samples), generator=generator).tolist()]


def _source_and_target() -> tuple[Names, Names]:
    """Return the sorted spellings by class: source ones of one class only, and target ones that are new besides."""
    source, target = _collect(SOURCE_LANGUAGES.split()), _collect(TARGET_LANGUAGES.split())
    classes: defaultdict[str, set[str]] = defaultdict(set)
    for spellings in (source, target):
        for english, by_key in spellings.items():
            for key in by_key:
                classes[key].add(english)
    known = {key for by_key in source.values() for key in by_key}

    def unambiguous(spellings: Spellings, without: set[str]) -> Names:
        return {
            english: sorted(name for key, name in by_key.items() if len(classes[key]) == 1 and key not in without)
            for english, by_key in spellings.items()
        }

    return unambiguous(source, set()), unambiguous(target, known)


def _collect(languages: Iterable[str]) -> Spellings:
    spellings: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for language in languages:
        for english, name in _translations(language):
            if _is_latin(name):
                spellings[english].setdefault(name.casefold(), name)
    return spellings


def _translations(language: str) -> Iterator[tuple[str, str]]:
    """Every (English name, name in the language); where a translation is missing, gettext gives the English one."""
    try:
        import pycountry
    except ImportError as error:
        raise ImportError("the names come from pycountry: pip install 'finecal[demo]'") from error
    domains = {
        "iso3166-1": list(pycountry.countries),
        "iso4217": [c for c in pycountry.currencies if c.alpha_3 not in NAMELESS_CURRENCIES],
        "iso15924": [s for s in pycountry.scripts if int(s.numeric) < FIRST_NAMELESS_SCRIPT],
    }
    for domain, entries in domains.items():
        catalogue = gettext.translation(domain, Path(pycountry.LOCALES_DIR), [language], fallback=True)
        for entry in entries:
            # dict(), because some versions of pycountry warn when an attribute is missing.
            fields = dict(entry)
            names = [fields[field] for field in ("common_name", "name") if field in fields]
            for name in names:
                yield _clean(names[0]), _clean(catalogue.gettext(name))


def _clean(name: str) -> str:
    without_brackets = re.sub(r"\([^)]*\)", " ", unicodedata.normalize("NFC", name))
    return " ".join(without_brackets.replace("_", " ").split())


def _is_latin(name: str) -> bool:
    letters = [c for c in name if c.isalpha() and unicodedata.category(c) != "Lm"]
    return bool(letters) and all(unicodedata.name(c).startswith("LATIN") for c in letters)
