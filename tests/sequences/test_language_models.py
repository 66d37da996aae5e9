import json

import numpy as np
import pytest
import torch
from torch import nn

import finecal
from finecal.sequences import label_token_ids, label_token_samples, logit_bias

WORDS = ["<s>", "<unk>", "Q:", "A:", "red", "green", "blue", "one", "two", " yes", " no", " maybe"]
CHOICES = [" yes", " no", " maybe"]
MASK = torch.tensor([True, True, False])


def tokenizer(texts):
    """A token is a word with the space before it, if such is known; a text begins with <s>."""
    if isinstance(texts, str):
        return {"input_ids": [0, *map(token, words(texts))]}
    return {"input_ids": [tokenizer(text)["input_ids"] for text in texts]}


def words(text):
    parts = []
    for word in text.split(" "):
        spaced = f" {word}"
        parts.append(spaced if parts and spaced in WORDS else word)
    return [part for part in parts if part]


def token(word):
    return WORDS.index(word) if word in WORDS else 1


class Recurrent(nn.Module):
    """A causal language model whose logits depend on all tokens before."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.tokens, self.rnn = nn.Embedding(len(WORDS), 8), nn.GRU(8, 16, batch_first=True)
        self.head = nn.Linear(16, len(WORDS))
        self.batches = []

    def forward(self, input_ids, logits_to_keep=0):
        self.batches.append(tuple(input_ids.shape))
        hidden, _ = self.rnn(self.tokens(input_ids))
        return {"logits": self.head(hidden)[:, -logits_to_keep:]}


PROMPTS = ["Q: red A:", "Q: one two green A:", "Q: blue A:", "Q: two red A:", "Q: green green A:"]
ANSWERS = [" yes", " no", " maybe", " no", " yes"]
IDS = (9, 10, 11)


def test_the_logits_are_those_of_each_prompt_alone():
    model = Recurrent()
    samples = label_token_samples(model, tokenizer, PROMPTS, ANSWERS, choices=CHOICES, batch_size=2, progress=False)
    rows = [model(torch.tensor([tokenizer(prompt)["input_ids"]]))["logits"][0, -1, list(IDS)] for prompt in PROMPTS]
    torch.testing.assert_close(samples.logits, torch.stack(rows).detach())
    assert samples.labels.tolist() == [0, 1, 2, 1, 0]
    assert model.training
    unlabelled = label_token_samples(model, tokenizer, PROMPTS, choices=CHOICES, progress=False)
    assert unlabelled.labels is None
    torch.testing.assert_close(unlabelled.logits, samples.logits)
    turned = label_token_samples(model, tokenizer, PROMPTS, ANSWERS, choices=CHOICES[::-1], progress=False)
    torch.testing.assert_close(turned.logits, samples.logits.flip(1))
    assert turned.labels.tolist() == [2, 1, 0, 1, 2]


def test_batches_have_one_length_and_are_small_enough():
    model = Recurrent()
    label_token_samples(model, tokenizer, PROMPTS * 4, choices=CHOICES, batch_size=3, progress=False)
    assert model.batches == [(3, 4), (3, 4), (2, 4), (3, 5), (3, 5), (2, 5), (3, 6), (1, 6)]


def test_tokens_of_the_choices():
    assert label_token_ids(tokenizer, CHOICES, prompt="Q: red A:") == IDS
    with pytest.raises(ValueError, match=r"choices have 'no', which is not one token behind.*' no'"):
        label_token_ids(tokenizer, ["no"], prompt="Q: red A:")
    with pytest.raises(ValueError, match="choices have ' yes one', which is not one token"):
        label_token_ids(tokenizer, [" yes one"], prompt="Q:")
    with pytest.raises(ValueError, match="two are the same"):
        label_token_ids(tokenizer, [" other", " unknown"], prompt="Q:")
    with pytest.raises(TypeError, match="choices is a str; pass a list of texts"):
        label_token_ids(tokenizer, "yes")

    def ending(texts):
        found = tokenizer(texts)["input_ids"]
        return {"input_ids": [*found, 0] if isinstance(texts, str) else [[*row, 0] for row in found]}

    with pytest.raises(ValueError, match="not one token behind the prompt"):
        label_token_ids(ending, CHOICES, prompt="Q:")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompts": "Q:"}, "prompts is a str"),
        ({"prompts": []}, "prompts is empty"),
        ({"answers": ANSWERS[:2]}, "answers are 2 for 5 prompts"),
        ({"answers": [*ANSWERS[:4], "yes"]}, r"answers have \['yes'\], which are none of the choices"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"choices": [*CHOICES, ""]}, "choices have '', which is not one token"),
        ({"choices": []}, "choices is empty"),
        ({"tokenizer": 3}, "tokenizer is of type int, and tokenizer"),
        ({"model": len}, "model is a builtin"),
    ],
)
def test_errors_name_the_argument(change, message):
    arguments = {"model": Recurrent(), "tokenizer": tokenizer, "prompts": PROMPTS, "answers": ANSWERS}
    with pytest.raises((TypeError, ValueError), match=message):
        label_token_samples(**{**arguments, "choices": CHOICES, "progress": False, **change})


def test_a_prompt_has_a_token():
    def letters(texts):
        ids = [[ord(letter) for letter in text] for text in texts]
        return {"input_ids": ids if isinstance(texts, list) else [token for row in ids for token in row]}

    with pytest.raises(ValueError, match="prompts have '', of which the tokenizer makes no token"):
        label_token_samples(Recurrent(), letters, ["1", ""], choices=["2", "3"], progress=False)


def test_a_choice_has_to_be_the_same_token_behind_every_prompt():
    def merging(texts):
        if isinstance(texts, str):
            return tokenizer(texts.replace("green A: yes", "green A: maybe"))
        return {"input_ids": [merging(text)["input_ids"] for text in texts]}

    with pytest.raises(ValueError, match="' yes', which is the token 9 behind .*let all prompts end alike"):
        label_token_samples(Recurrent(), merging, PROMPTS, choices=CHOICES, progress=False)


def test_biases_of_tokens():
    calibrator = finecal.AdditiveBias(MASK, 1.5)
    assert logit_bias(calibrator, IDS) == {11: 1.5}
    assert logit_bias(calibrator, np.array(IDS), offset=50) == {9: 50.0, 10: 50.0, 11: 51.5}
    both = nn.Sequential(calibrator, finecal.calibrators.ClassBias([0.0, -2.0, 0.25]))
    assert logit_bias(both, torch.tensor(IDS)) == {10: -2.0, 11: 1.75}
    assert logit_bias(calibrator, range(3)) == {2: 1.5}
    assert json.loads(json.dumps(logit_bias(calibrator, IDS))) == {"11": 1.5}


@pytest.mark.parametrize(
    ("calibrator", "token_ids", "message"),
    [
        (finecal.AdditiveBias(MASK, 1.5), [9, 10], "token_ids are 2, but calibrator is for 3 classes"),
        (finecal.AdditiveBias(MASK, 1.5), [9, 10, 10], "negative or repeated"),
        (finecal.AdditiveBias(MASK, 1.5), [9, 10, -1], "negative or repeated"),
        (finecal.AdditiveBias(MASK, 1.5), [], "one token for each class"),
        (finecal.AdditiveBias(MASK, 1.5), [[9, 10, 11]], "one token for each class"),
        (finecal.AdditiveBias(MASK, 1.5), [9.0, 10.0, 11.0], "token_ids"),
        (finecal.Temperature(2.0), IDS, "only AdditiveBias and ClassBias"),
        (None, IDS, "calibrator is a NoneType"),
    ],
)
def test_biases_that_cannot_be(calibrator, token_ids, message):
    with pytest.raises((TypeError, ValueError), match=message):
        logit_bias(calibrator, token_ids)


@pytest.mark.parametrize("seed", range(5))
def test_argmax_with_the_biases_is_that_of_calibrated_logits(seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(200, 50, generator=generator)
    ids = torch.randperm(50, generator=generator)[:3]
    calibrator = finecal.AdditiveBias(MASK, 0.7)
    biased = logits.clone()
    for one, bias in logit_bias(calibrator, ids, offset=100).items():
        biased[:, one] += bias
    assert torch.equal(biased.argmax(1), ids[calibrator(logits[:, ids]).argmax(1)])
