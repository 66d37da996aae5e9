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

from .._core.arrays import check_share

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
# ISO codes without a currency or script; script numbers from 900 are "reserved" or "unwritten".
NAMELESS_CURRENCIES = ("XTS", "XXX")
FIRST_NAMELESS_SCRIPT = 900

Names = dict[str, list[str]]  # English name: spellings
Spellings = dict[str, dict[str, str]]  # English name: casefolded spelling: spelling


@dataclass(frozen=True)
class NamesSplit:
    """N names with their class indices, ``(N,)`` int64."""

    names: tuple[str, ...]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.names)

    def of_classes(self, mask: Tensor) -> NamesSplit:
        """Return the names of the classes in `mask`, ``(C,)`` bool, in their order."""
        chosen = mask[self.labels]
        names = (name for name, is_chosen in zip(self.names, chosen.tolist(), strict=True) if is_chosen)
        return NamesSplit(tuple(names), self.labels[chosen])


@dataclass(frozen=True)
class NamesTask:
    """A fine-tuning task: classify names of countries, currencies and scripts.

    `source` has all classes in English and the Romance languages, for pre-training. The others are in other languages:
    `train` and `held_out` have the seen classes only, `test` has all.
    """

    class_names: tuple[str, ...]
    """English name of each of the C classes; all different."""
    seen_mask: Tensor
    """``(C,)`` bool, True for the classes in `train`."""
    source: NamesSplit
    train: NamesSplit
    held_out: NamesSplit
    test: NamesSplit


def load_names(seed: int = 0, seen_fraction: float = 0.5) -> NamesTask:
    """Return names of countries, currencies and scripts, split for fine-tuning on a share of the classes.

    The names are the translations of ISO 3166-1, ISO 4217 and ISO 15924 in `pycountry`. A class is an English name
    without its brackets: "Cyrillic (Old Church Slavonic variant)" belongs to "Cyrillic". No spelling occurs twice:
    upper and lower case are equal, a spelling of two classes is dropped, and so is a target spelling that occurs in a
    source language. Classes with fewer than 7 source or 9 target spellings are dropped. A quarter of the target
    spellings of each class are for testing; of the others of a seen class, a seventh are held out and the rest are for
    training.

    Parameters
    ----------
    seed : int
        Seed of the seen classes and the splits; the global random state is neither used nor changed.
    seen_fraction : float in (0, 1)
        Share of seen classes, rounded down, but at least one class. With the same `seed`, a larger share adds classes
        to those of a smaller one, and `source` and `test` stay the same.

    Returns
    -------
    NamesTask
        With about 290 classes, depending on the version of `pycountry`.

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
        samples = _shuffle([(name, label) for name in target[english]], generator)
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
        test=_split(_shuffle(test, generator)),
    )


def _split(samples: list[tuple[str, int]]) -> NamesSplit:
    return NamesSplit(tuple(name for name, _ in samples), torch.tensor([label for _, label in samples]))


def _shuffle(samples: list[tuple[str, int]], generator: torch.Generator) -> list[tuple[str, int]]:
    return [samples[i] for i in torch.randperm(len(samples), generator=generator).tolist()]


def _source_and_target() -> tuple[Names, Names]:
    """Return sorted source and target spellings by class: unambiguous ones, and targets that are no source spelling."""
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
    """Yield (English name, name in the language); a missing translation is the English name."""
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
            # Some versions of pycountry warn about missing attributes; a dict does not.
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
