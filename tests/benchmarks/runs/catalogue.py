"""The named runs: what differs from one to the next is the data, the seen classes, and how they are fine-tuned."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import glyphs
import small
import speech
import texts
from fine_tuning import Domains, Recipe, Setting

Loader = Callable[[Path], Domains]


@dataclass(frozen=True)
class Run:
    """One task file; runs with the same loader, head, epochs and seed share their pre-trained model.

    The first part of the name, up to an underscore, is the family.
    """

    name: str
    load: Loader
    recipe: Recipe = field(default_factory=Recipe)
    setting: Setting = field(default_factory=Setting)
    head: str = "linear"
    pretraining_epochs: int = 12
    seed: int = 0


LETTERS = partial(
    glyphs.load,
    characters=glyphs.letters(),
    source=glyphs.LATIN_PRINT,
    target=glyphs.LATIN_SCRIPT,
    most=(36, 30),
)
LETTERS_NORM = partial(LETTERS, layer_norm=True)
KANJI = partial(
    glyphs.load,
    characters=glyphs.kanji(300, 0),
    source=glyphs.HAN_PRINT,
    target=glyphs.HAN_BRUSH,
)
HANGUL = partial(
    glyphs.load,
    characters=glyphs.hangul(200, 0),
    source=glyphs.HANGUL_PRINT,
    target=glyphs.HANGUL_BRUSH,
)
HANGUL_NORM = partial(HANGUL, layer_norm=True)
KANA = partial(
    glyphs.load,
    characters=glyphs.kana(),
    source=glyphs.HAN_PRINT,
    target=glyphs.HAN_BRUSH,
)

NAMES = partial(texts.names, domains="iso_3166-1 iso_4217 iso_15924")
NAMES_TRANSFORMER = partial(NAMES, encoder="transformer")
TONGUES = partial(texts.names, domains="iso_639-3")
TONGUES_TRANSFORMER = partial(TONGUES, encoder="transformer")
LANGUAGES = partial(texts.languages)
LATIN_LANGUAGES = partial(texts.languages, script="LATIN", encoder="transformer")
SECTIONS_DE = partial(texts.sections, language="de")
SECTIONS_IT = partial(texts.sections, language="it")
CITIES = partial(texts.cities)
DIGITS_BACK = partial(small.digits, angle=-30)

CATALOGUE = [
    Run("letters_sgd", LETTERS, Recipe("sgd", 0.005, 15)),
    Run("letters_adam_frac30", LETTERS, Recipe("adam", 0.001, 12), Setting(0.3)),
    Run("letters_lowrank_frac45", LETTERS, Recipe("adam", 0.002, 15, "low-rank"), Setting(0.45)),
    Run("letters_head", LETTERS, Recipe("adamw", 0.001, 15, "head")),
    Run("letters_nogap", LETTERS, Recipe("sgd", 0.005, 15), Setting(control=True)),
    Run("letters_norm_adam_smooth", LETTERS_NORM, Recipe("adam", 0.001, 15, label_smoothing=0.1)),
    Run("letters_norm_longtail", LETTERS_NORM, Recipe("adamw", 0.001, 20), Setting(0.4, long_tail=True)),
    Run("kana_sgd", KANA, Recipe("sgd", 0.005, 15)),
    Run("kana_adamw_frac25", KANA, Recipe("adamw", 0.0005, 15), Setting(0.25)),
    Run("kana_cosine", KANA, Recipe("adam", 0.001, 15), head="cosine"),
    Run("kana_smooth_frac60", KANA, Recipe("rmsprop", 0.001, 15, label_smoothing=0.1), Setting(0.6)),
    Run("kana_few_frac75", KANA, Recipe("adamw", 0.001, 20), Setting(0.75, train_per_class=3)),
    Run("kanji_sgd", KANJI, Recipe("sgd", 0.005, 12)),
    Run("kanji_few_frac40", KANJI, Recipe("adam", 0.001, 20), Setting(0.4, train_per_class=4)),
    Run("kanji_rmsprop_frac80", KANJI, Recipe("rmsprop", 0.0005, 12), Setting(0.8)),
    Run("kanji_smooth", KANJI, Recipe("adamw", 0.001, 15, label_smoothing=0.1)),
    Run("hangul_sgd", HANGUL, Recipe("sgd", 0.005, 12)),
    Run("hangul_rmsprop_frac10", HANGUL, Recipe("rmsprop", 0.0005, 12), Setting(0.1)),
    Run("hangul_longtail", HANGUL, Recipe("adam", 0.001, 15), Setting(0.6, long_tail=True)),
    Run("hangul_nogap", HANGUL, Recipe("adam", 0.001, 12), Setting(control=True)),
    Run("hangul_norm_lowrank_frac30", HANGUL_NORM, Recipe("adamw", 0.003, 15, "low-rank"), Setting(0.3)),
    Run("names_sgd", NAMES, Recipe("sgd", 0.05, 15)),
    Run("names_smooth_frac60", NAMES, Recipe("adam", 0.002, 10, label_smoothing=0.1), Setting(0.6)),
    Run("names_few", NAMES, Recipe("adamw", 0.002, 20), Setting(train_per_class=3)),
    Run("names_nogap", NAMES, Recipe("adam", 0.002, 12), Setting(control=True)),
    Run("names_cosine_adamw_frac30", NAMES, Recipe("adamw", 0.002, 12), Setting(0.3), head="cosine"),
    Run("names_transformer", NAMES_TRANSFORMER, Recipe("adam", 0.0005, 10)),
    Run("tongues_adam_frac70", TONGUES, Recipe("adam", 0.001, 12), Setting(0.7)),
    Run("tongues_head", TONGUES, Recipe("adamw", 0.005, 15, "head")),
    Run("tongues_sgd_frac40", TONGUES, Recipe("sgd", 0.02, 20), Setting(0.4)),
    Run("tongues_transformer_lowrank", TONGUES_TRANSFORMER, Recipe("adamw", 0.002, 15, "low-rank")),
    Run("tongues_cosine_frac20", TONGUES, Recipe("rmsprop", 0.001, 12), Setting(0.2), head="cosine"),
    Run("languages_sgd", LANGUAGES, Recipe("sgd", 0.02, 10)),
    Run("languages_sgd_smooth_frac30", LANGUAGES, Recipe("sgd", 0.05, 15, label_smoothing=0.05), Setting(0.3)),
    Run("languages_longtail", LANGUAGES, Recipe("rmsprop", 0.001, 15), Setting(0.5, long_tail=True)),
    Run("languages_nogap", LANGUAGES, Recipe("adam", 0.001, 8), Setting(control=True)),
    Run("languages_latin_transformer_frac40", LATIN_LANGUAGES, Recipe("adamw", 0.0005, 8), Setting(0.4)),
    Run("sections_de_frac40", SECTIONS_DE, Recipe("adam", 0.001, 10), Setting(0.4), pretraining_epochs=6),
    Run(
        "sections_de_lowrank_frac30",
        SECTIONS_DE,
        Recipe("adamw", 0.003, 15, "low-rank"),
        Setting(0.3),
        pretraining_epochs=6,
    ),
    Run("sections_it_frac20", SECTIONS_IT, Recipe("adam", 0.001, 10), Setting(0.2), pretraining_epochs=6),
    Run("sections_it_sgd_frac30", SECTIONS_IT, Recipe("sgd", 0.02, 15), Setting(0.3), pretraining_epochs=6),
    Run(
        "sections_it_smooth_frac30",
        SECTIONS_IT,
        Recipe("adamw", 0.001, 12, label_smoothing=0.1),
        Setting(0.3),
        pretraining_epochs=6,
    ),
    Run(
        "sections_it_longtail",
        SECTIONS_IT,
        Recipe("adam", 0.001, 15),
        Setting(0.4, long_tail=True),
        pretraining_epochs=6,
    ),
    Run("digits_sgd", small.digits, Recipe("sgd", 0.01, 15), pretraining_epochs=20),
    Run("digits_adam_frac40", small.digits, Recipe("adam", 0.001, 15), Setting(0.4), pretraining_epochs=20),
    Run("digits_nogap", small.digits, Recipe("sgd", 0.01, 15), Setting(control=True), pretraining_epochs=20),
    Run("digits_back_head_frac60", DIGITS_BACK, Recipe("adamw", 0.002, 15, "head"), Setting(0.6), "linear", 20, 1),
    Run("signals_sgd_frac60", small.signals, Recipe("sgd", 0.005, 15), Setting(0.6), pretraining_epochs=30),
    Run("signals_adam_frac40", small.signals, Recipe("adam", 0.0005, 15), Setting(0.4), pretraining_epochs=30),
    Run("signals_nogap", small.signals, Recipe("adam", 0.001, 15), Setting(control=True), pretraining_epochs=30),
    Run("signals_lowrank_frac70", small.signals, Recipe("adamw", 0.003, 15, "low-rank"), Setting(0.7), "linear", 30, 1),
    Run("speech_sgd", speech.load, Recipe("sgd", 0.005, 12)),
    Run("speech_adam_frac30", speech.load, Recipe("adam", 0.001, 12), Setting(0.3)),
    Run("speech_lowrank_frac40", speech.load, Recipe("adamw", 0.002, 12, "low-rank"), Setting(0.4)),
    Run("speech_few", speech.load, Recipe("rmsprop", 0.0005, 20), Setting(train_per_class=3)),
    Run("speech_nogap", speech.load, Recipe("sgd", 0.005, 12), Setting(control=True)),
    Run("speech_smooth_frac40", speech.load, Recipe("adamw", 0.001, 15, label_smoothing=0.1), Setting(0.4)),
    Run("speech_cosine_frac50", speech.load, Recipe("adam", 0.001, 15), head="cosine"),
    Run("speech_cosine_frac90", speech.load, Recipe("adam", 0.001, 15), Setting(0.9), head="cosine"),
]

# Made last, with another seed: to see whether what was chosen on those above carries over.
CATALOGUE += [
    Run(
        "letters_rmsprop_smooth_frac60",
        LETTERS,
        Recipe("rmsprop", 0.0005, 15, label_smoothing=0.1),
        Setting(0.6),
        seed=2,
    ),
    Run(
        "letters_cosine_nogap_frac30", LETTERS, Recipe("adam", 0.001, 15), Setting(0.3, control=True), "cosine", seed=2
    ),
    Run("kana_adam_frac40", KANA, Recipe("adam", 0.001, 12), Setting(0.4), seed=2),
    Run("kana_nogap", KANA, Recipe("adamw", 0.0005, 15), Setting(control=True), seed=2),
    Run("kana_head_nogap", KANA, Recipe("adam", 0.001, 15, "head"), Setting(control=True), seed=2),
    Run("kanji_adam_lowrank_frac30", KANJI, Recipe("adam", 0.002, 12, "low-rank"), Setting(0.3), seed=2),
    Run("kanji_nogap_frac70", KANJI, Recipe("rmsprop", 0.0005, 12), Setting(0.7, control=True), seed=2),
    Run("hangul_cosine_frac40", HANGUL, Recipe("adamw", 0.001, 12), Setting(0.4), "cosine", seed=2),
    Run("hangul_smooth_nogap", HANGUL, Recipe("sgd", 0.005, 12, label_smoothing=0.1), Setting(control=True), seed=2),
    Run("names_adam_frac60", NAMES, Recipe("adam", 0.002, 12), Setting(0.6), seed=2),
    Run("names_transformer_nogap", NAMES_TRANSFORMER, Recipe("adamw", 0.0005, 10), Setting(control=True), seed=2),
    Run("tongues_rmsprop", TONGUES, Recipe("rmsprop", 0.001, 12), seed=2),
    Run("tongues_nogap_frac20", TONGUES, Recipe("adam", 0.001, 12), Setting(0.2, control=True), seed=2),
    Run("languages_adam_frac60", LANGUAGES, Recipe("adam", 0.001, 8), Setting(0.6), seed=2),
    Run("languages_sgd_nogap", LANGUAGES, Recipe("sgd", 0.02, 10), Setting(control=True), seed=2),
    Run("sections_de_sgd", SECTIONS_DE, Recipe("sgd", 0.02, 15), pretraining_epochs=6, seed=2),
    Run(
        "sections_it_nogap", SECTIONS_IT, Recipe("adam", 0.001, 10), Setting(control=True), pretraining_epochs=6, seed=2
    ),
    Run("digits_rmsprop_frac60", small.digits, Recipe("rmsprop", 0.0005, 15), Setting(0.6), "linear", 20, 2),
    Run("digits_adam_nogap", small.digits, Recipe("adam", 0.001, 15), Setting(control=True), "linear", 20, 2),
    Run("signals_rmsprop", small.signals, Recipe("rmsprop", 0.0005, 15), Setting(), "linear", 30, 2),
    Run("signals_sgd_nogap", small.signals, Recipe("sgd", 0.005, 15), Setting(control=True), "linear", 30, 2),
    Run("speech_rmsprop_frac60", speech.load, Recipe("rmsprop", 0.0005, 12), Setting(0.6), seed=2),
    Run("speech_adam_nogap", speech.load, Recipe("adam", 0.001, 12), Setting(control=True), seed=2),
]

# Damaged models, weakly pre-trained ones, masked losses, small data; and one family of another kind of data.
CATALOGUE += [
    Run("letters_hot", LETTERS, Recipe("sgd", 0.15, 15), seed=3),
    Run("letters_adam_hot_frac80", LETTERS, Recipe("adam", 0.01, 12), Setting(0.8), seed=3),
    Run("letters_masked", LETTERS, Recipe("sgd", 0.005, 15, masked_loss=True), seed=3),
    Run("letters_weak", LETTERS, Recipe("adam", 0.003, 15), pretraining_epochs=1, seed=3),
    Run("kana_hot_frac20", KANA, Recipe("adam", 0.006, 15), Setting(0.2), seed=3),
    Run("kana_masked_frac30", KANA, Recipe("adam", 0.001, 15, masked_loss=True), Setting(0.3), seed=3),
    Run("kanji_hot", KANJI, Recipe("adam", 0.006, 12), seed=3),
    Run("kanji_weak_frac80", KANJI, Recipe("adam", 0.002, 12), Setting(0.8), pretraining_epochs=2, seed=3),
    Run("hangul_hot_frac70", HANGUL, Recipe("sgd", 0.15, 12), Setting(0.7), seed=3),
    Run("names_hot", NAMES, Recipe("adam", 0.02, 12), seed=3),
    Run("names_weak_frac80", NAMES, Recipe("adam", 0.004, 12), Setting(0.8), pretraining_epochs=2, seed=3),
    Run("tongues_hot_frac20", TONGUES, Recipe("adam", 0.02, 12), Setting(0.2), seed=3),
    Run("tongues_weak", TONGUES, Recipe("sgd", 0.1, 20), pretraining_epochs=2, seed=3),
    Run("languages_hot", LANGUAGES, Recipe("adam", 0.02, 10), seed=3),
    Run("languages_smooth_frac80", LANGUAGES, Recipe("adam", 0.001, 8, label_smoothing=0.1), Setting(0.8), seed=3),
    Run("sections_de_hot", SECTIONS_DE, Recipe("adam", 0.01, 15), pretraining_epochs=6, seed=3),
    Run("sections_it_weak", SECTIONS_IT, Recipe("adam", 0.003, 15), pretraining_epochs=1, seed=3),
    Run("digits_hot", small.digits, Recipe("sgd", 0.1, 30), Setting(), "linear", 20, 3),
    Run("digits_few", small.digits, Recipe("adam", 0.001, 60), Setting(train_per_class=30), "linear", 3, 3),
    Run(
        "digits_few_head", small.digits, Recipe("adam", 0.003, 60, "head"), Setting(train_per_class=30), "linear", 5, 3
    ),
    Run("digits_masked", small.digits, Recipe("adam", 0.001, 15, masked_loss=True), Setting(), "linear", 20, 3),
    Run("digits_short_frac40", small.digits, Recipe("adam", 0.0005, 3), Setting(0.4), "linear", 5, 3),
    Run("signals_hot", small.signals, Recipe("adam", 0.01, 30), Setting(), "linear", 30, 3),
    Run("signals_weak_frac80", small.signals, Recipe("sgd", 0.05, 30), Setting(0.8), "linear", 3, 3),
    Run("speech_hot", speech.load, Recipe("adam", 0.01, 12), seed=3),
    Run("speech_weak_frac80", speech.load, Recipe("adam", 0.002, 12), Setting(0.8), pretraining_epochs=2, seed=3),
    Run("speech_masked", speech.load, Recipe("sgd", 0.005, 12, masked_loss=True), seed=3),
    Run("cities_sgd", CITIES, Recipe("sgd", 0.02, 10)),
    Run("cities_adam_frac30", CITIES, Recipe("adam", 0.001, 10), Setting(0.3)),
    Run("cities_adamw_smooth_frac70", CITIES, Recipe("adamw", 0.001, 10, label_smoothing=0.1), Setting(0.7)),
    Run("cities_lowrank", CITIES, Recipe("adam", 0.002, 10, "low-rank")),
    Run("cities_cosine", CITIES, Recipe("adam", 0.001, 10), head="cosine"),
    Run("cities_hot", CITIES, Recipe("adam", 0.02, 10)),
    Run("cities_weak_frac80", CITIES, Recipe("adam", 0.004, 10), Setting(0.8), pretraining_epochs=1),
    Run("cities_hot_frac10", CITIES, Recipe("sgd", 0.3, 10), Setting(0.1)),
    Run("cities_masked", CITIES, Recipe("adam", 0.001, 10, masked_loss=True)),
    Run("cities_nogap", CITIES, Recipe("adam", 0.001, 10), Setting(control=True)),
]
