"""
Label tokens
============

A causal language model that answers a prompt with one of eight words: gamma as a bias of tokens, for any server.

Needs the extras finecal[demo,transformers], and no network. A minute: ``python examples/integrations/label_tokens.py``
"""

import gettext
import random
import sys

import pycountry
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    set_seed,
)

import finecal
from finecal.sequences import (
    label_token_ids,
    label_token_samples,
    logit_bias,
)

SEED = int(sys.argv[1]) if len(sys.argv) > 1 else 0
set_seed(SEED)

# %%
# Prompts
# -------
# A name, and the language that it is in. The model learns all eight languages by the names of currencies and scripts,
# and is then fine-tuned on names of countries in four of them.

LANGUAGES = {
    "pl": " Polish",
    "sk": " Slovak",
    "hr": " Croatian",
    "fi": " Finnish",
    "et": " Estonian",
    "es": " Spanish",
    "it": " Italian",
    "tr": " Turkish",
}
CHOICES = list(LANGUAGES.values())


def names_of(domain: str, entries: object) -> list[tuple[str, str]]:
    """Prompts with their answers: names in each language that are not the English ones."""
    pairs = []
    for code, answer in LANGUAGES.items():
        catalogue = gettext.translation(domain, pycountry.LOCALES_DIR, [code])
        for entry in entries:
            name = catalogue.gettext(entry.name)
            if name != entry.name and len(name) <= 32:
                pairs.append((f"{name}\nThis is", answer))
    return random.sample(pairs, len(pairs))


source = names_of("iso4217", pycountry.currencies)
source += names_of("iso15924", pycountry.scripts)
target = names_of("iso3166-1", pycountry.countries)
seen_names = random.sample(CHOICES, 4)
test, rest = target[: len(target) // 3], target[len(target) // 3 :]
seen_pairs = [pair for pair in rest if pair[1] in seen_names]
held_out, train = seen_pairs[:80], seen_pairs[80:]

# %%
# Model and tokenizer
# -------------------
# A token is a character, or one of the answers.

characters = sorted({letter for prompt, _ in source for letter in prompt})
vocabulary = {
    token: i for i, token in enumerate(["<pad>", "<unk>", *characters])
}
words = Tokenizer(models.WordLevel(vocabulary, "<unk>"))
words.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=words, pad_token="<pad>", unk_token="<unk>"
)
tokenizer.add_tokens(CHOICES)
model = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        **dict.fromkeys(("bos_token_id", "eos_token_id")),
        pad_token_id=0,
    )
)


def fit(pairs: list[tuple[str, str]], epochs: int, rate: float) -> None:
    """Train on the answers, as the last token of each text."""
    optimizer = torch.optim.AdamW(model.parameters(), rate)
    for _ in range(epochs):
        random.shuffle(pairs)
        for i in range(0, len(pairs), 32):
            texts = [prompt + answer for prompt, answer in pairs[i : i + 32]]
            inputs = tokenizer(
                texts, return_tensors="pt", padding=True, padding_side="left"
            )
            labels = inputs["input_ids"].clone()
            labels[:, :-1] = -100
            inputs.pop("token_type_ids", None)
            model(**inputs, labels=labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad()


fit(source, epochs=12, rate=2e-3)
fit(train, epochs=4, rate=1e-3)

# %%
# Gamma
# -----
# ``label_token_samples`` scores each prompt, and keeps the logits of the eight answers.


def samples_of(pairs: list[tuple[str, str]]) -> finecal.Samples:
    prompts, answers = zip(*pairs, strict=True)
    return label_token_samples(
        model, tokenizer, prompts, answers, choices=CHOICES, progress=False
    )


seen_mask = finecal.seen_mask_from_names(seen_names, CHOICES)
gamma = finecal.estimate_gamma(
    seen_mask, train=samples_of(train), held_out=samples_of(held_out)
)
print(gamma)
tested = samples_of(test)
oracle = finecal.search_gamma(tested, seen_mask)
for name, value in (
    ("fine-tuned", 0.0),
    ("gamma", gamma),
    ("oracle", oracle),
):
    report = finecal.evaluate(tested, seen_mask, value)
    print(
        f"{name:10}: seen {100 * report.acc_seen:.1f} %, absent {100 * report.acc_absent:.1f} %, "
        f"all {100 * report.acc_all:.1f} %"
    )

# %%
# Into the server
# ---------------
# vLLM and OpenAI-compatible servers take ``biases`` as ``logit_bias``. Here ``generate`` takes them: its answers are
# those of the calibrated logits.

token_ids = label_token_ids(tokenizer, CHOICES, prompt=test[0][0])
biases = logit_bias(
    finecal.AdditiveBias(seen_mask, gamma), token_ids, offset=50
)
print(biases)
model.generation_config.sequence_bias = [
    [[token], bias] for token, bias in biases.items()
]
model.eval()
expected = finecal.predict(tested.logits, seen_mask, gamma)
agreed = 0
for (prompt, _), index in zip(test, expected.tolist(), strict=True):
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    answer = model.generate(ids, max_new_tokens=1, do_sample=False)[0, -1]
    agreed += int(answer == token_ids[index])
print(f"generate agrees on {agreed} of {len(test)} prompts")
