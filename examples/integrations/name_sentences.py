"""
Sentences with names, and a tagger
==================================

What the example of token classification fine-tunes: a small BERT that finds cities, countries, currencies, languages,
regions and scripts in sentences.

Needs the extras finecal[demo,transformers], and no network.
"""

import random
import re
import zoneinfo
from collections import defaultdict

import pycountry
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForTokenClassification,
    BertConfig,
    DataCollatorForTokenClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)

# %%
# Names
# -----
# They come from pycountry and, for cities, from the names of time zones.

CATALOGUES = {
    "COUNTRY": pycountry.countries,
    "CURRENCY": pycountry.currencies,
    "LANGUAGE": pycountry.languages,
    "REGION": pycountry.subdivisions,
    "SCRIPT": pycountry.scripts,
}
CONTINENTS = ("Africa", "America", "Asia", "Europe", "Pacific")
TYPES = sorted(["CITY", *CATALOGUES])
TAGS = ["O", *(f"{prefix}-{kind}" for kind in TYPES for prefix in "BI")]
Names = dict[str, list[str]]
Sentence = tuple[list[str], list[str]]


def load_names() -> Names:
    """At most 600 names of each type, in a fixed random order; none is of two types."""
    names = {
        kind: [dict(entry)["name"] for entry in entries]
        for kind, entries in CATALOGUES.items()
    }
    names["CITY"] = [
        zone.split("/")[-1].replace("_", " ")
        for zone in zoneinfo.available_timezones()
        if zone.startswith(CONTINENTS)
    ]
    kinds = defaultdict(set)
    for kind, spellings in names.items():
        for spelling in spellings:
            kinds[re.sub(r"[\[(,;].*", "", spelling).strip()].add(kind)
    usable = [
        (name, of.pop())
        for name, of in sorted(kinds.items())
        if len(of) == 1 and name.isascii() and 0 < len(name.split()) <= 4
    ]
    random.Random(0).shuffle(usable)
    return {
        kind: [name for name, of in usable if of == kind][:600]
        for kind in TYPES
    }


# %%
# Sentences
# ---------
# Pre-training is on edited prose, fine-tuning and test are on chat: lower
# case, typing mistakes, other words. Every fourth clause fits all types.

CLAUSES = {
    "prose": {
        "CITY": """the mayor of {} resigned|the airport of {} was closed
            they took a train to {}|a hotel in {} burned down""",
        "COUNTRY": """the government of {} resigned|the army of {} withdrew
            the border with {} was closed|they flew to {}""",
        "CURRENCY": """the price was paid in {}|the bank exchanged {}
            the {} lost its value|he owed them 400 {}""",
        "LANGUAGE": """few people speak {}|she learned {} at school
            the novel was translated into {}|the verbs of {} are irregular""",
        "REGION": """the governor of {} resigned|the province of {} was flooded
            farmers in {} lost their harvest|they hiked in {}""",
        "SCRIPT": """the inscription was written in {}|the scribe used {}
            the letters of {} are round|the font lacks {}""",
        "ANY": """a report on {} was published|nothing is known about {}
            the professor spoke about {}|{} was mentioned again""",
        "FILLER": """yesterday|according to the newspaper|in the meantime
            as was announced|nevertheless""",
    },
    "chat": {
        "CITY": """anyone been to {} lately|my train to {} is late
            cheap hotel in {} pls|the mayor of {} again""",
        "COUNTRY": """who won {} or us|the army of {} again
            moving to {} next year|is the border to {} open""",
        "CURRENCY": """how much is that in {}|i only have {} left
            the {} crashed again|can i pay with {}""",
        "LANGUAGE": """who can speak {} here|translated into {} by a bot
            my {} is bad|learned some {} at school""",
        "REGION": """farmers in {} again|stuck in {} since monday
            the governor of {} lol|snow all over {}""",
        "SCRIPT": """cant read {} sorry|my font lacks {}
            the letters of {} look cool|tattoo in {} letters""",
        "ANY": """what about {}|never heard of {}|{} again
            why is everyone talking about {}""",
        "FILLER": "lol|omg|tbh|guys|idk|so|anyway",
    },
}


def write_sentences(
    names: Names, count: int, style: str, seed: int
) -> list[Sentence]:
    """Sentences of one to three clauses, each with a name: words and IOB2 tags."""
    draw = random.Random(seed)

    def clause_for(kind: str) -> str:
        return draw.choice(re.split(r"\||\n\s*", CLAUSES[style][kind]))

    sentences = []
    for _ in range(count):
        words, tags = [], []
        for kind in draw.choices(sorted(names), k=draw.randint(1, 3)):
            clause = clause_for("ANY" if draw.random() < 1 / 4 else kind)
            if draw.random() < 0.4:
                clause = f"{clause_for('FILLER')} {clause}"
            for word in clause.split():
                name = draw.choice(names[kind]).split() if word == "{}" else []
                words += name or [word]
                tags += [f"B-{kind}", *[f"I-{kind}"] * 3][: len(name)] or ["O"]
            words.append("," if style == "prose" else "...")
            tags.append("O")
        if style == "chat":
            words = [misspell(word.lower(), draw) for word in words]
        elif draw.random() < 0.3:
            words = [word.lower() for word in words]
        else:
            words[0], words[-1] = words[0][0].upper() + words[0][1:], "."
        sentences.append((words, tags))
    return sentences


def misspell(word: str, draw: random.Random) -> str:
    """The word, or in one case of twenty with two letters exchanged."""
    if len(word) < 4 or draw.random() > 0.05:
        return word
    i = draw.randrange(1, len(word) - 2)
    return word[:i] + word[i + 1] + word[i] + word[i + 2 :]


# %%
# Tokens
# ------
# The first token of a word has the word's tag. The others have the label
# -100: they do not count, nor does padding.

Encoded = list[dict[str, list[int]]]


def make_tokenizer(sentences: list[Sentence]) -> PreTrainedTokenizerFast:
    texts = [" ".join(words) for words, _ in sentences]
    texts += [text.lower() for text in texts]
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]"}
    # Letters inside words come first, so that ties between pieces end alike
    # in every run.
    letters = [f"##{letter}" for letter in sorted({*"".join(texts)} - {" "})]
    trainer = trainers.WordPieceTrainer(
        vocab_size=1000,
        special_tokens=[*special.values(), *letters],
        show_progress=False,
    )
    trained = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    trained.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trained.train_from_iterator(texts, trainer)
    pieces = trained.get_vocab()
    tokenizer = Tokenizer(models.WordPiece(pieces, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=128, **special
    )


def encode(
    sentences: list[Sentence], tokenizer: PreTrainedTokenizerFast
) -> Encoded:
    samples = []
    for words, tags in sentences:
        tokens = tokenizer(words, is_split_into_words=True, truncation=True)
        of_word = tokens.word_ids()
        is_first = [
            a != b for a, b in zip(of_word, [None, *of_word[:-1]], strict=True)
        ]
        labels = [
            TAGS.index(tags[word]) if first else -100
            for word, first in zip(of_word, is_first, strict=True)
        ]
        samples.append({**tokens, "labels": labels})
    return samples


# %%
# The model and its Trainer
# -------------------------
# Two layers, from random weights, with a row for every tag.


def make_model(tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        initializer_range=0.05,
        id2label=dict(enumerate(TAGS)),
        label2id={tag: index for index, tag in enumerate(TAGS)},
    )
    return AutoModelForTokenClassification.from_config(config)


def make_trainer(
    model: PreTrainedModel,
    folder: str,
    tokenizer: PreTrainedTokenizerFast,
    train: Encoded,
    test: Encoded | None = None,
    **settings: float,
) -> Trainer:
    quiet = {"save_strategy": "no", "report_to": "none", "disable_tqdm": True}
    arguments = TrainingArguments(
        folder,
        per_device_train_batch_size=64,
        per_device_eval_batch_size=256,
        dataloader_pin_memory=torch.cuda.is_available(),
        train_sampling_strategy="group_by_length",
        **quiet,
        **settings,
    )
    return Trainer(
        model,
        arguments,
        train_dataset=train,
        eval_dataset=test,
        processing_class=tokenizer,
        data_collator=DataCollatorForTokenClassification(tokenizer),
    )
