"""Gamma for next tokens: a character model that was fine-tuned on English names, and has to write others again.

`python tests/benchmarks/next_tokens.py [SEED]` trains a small Llama on names of scripts, currencies and countries in 20
languages, fine-tunes it on English ones, in which most letters with accents never occur, and prints the accuracy for
the next character on names of all languages that were held out: at gamma = 0, at the default share, at the true one,
and at the best gamma. A minute on one core.
"""

import random
import sys

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaConfig, LlamaForCausalLM, set_seed

import finecal
from finecal._demo.names import _translations

LANGUAGES = ("bs cs pl sk lt lv et fi hu tr", "az eu es fr it pt ro sv da is")


def fit(model, rows, epochs, rate):
    optimizer = torch.optim.AdamW(model.parameters(), rate)
    for _ in range(epochs):
        random.shuffle(rows)
        for start in range(0, len(rows), 64):
            inputs = batch_of(rows[start : start + 64])
            model(**inputs).loss.backward()
            optimizer.step()
            optimizer.zero_grad()


def batch_of(rows):
    """Labels are the inputs, as Hugging Face's models take them; 0 pads, and -100 is its label."""
    ids = pad_sequence(rows, batch_first=True)
    return {"input_ids": ids, "labels": ids.masked_fill(ids == 0, -100)}


def batches(rows):
    return [batch_of(rows[start : start + 64]) for start in range(0, len(rows), 64)]


def main(seed):
    set_seed(seed)
    english = sorted({name for _, name in _translations("en")})
    others = sorted({name for code in " ".join(LANGUAGES).split() for _, name in _translations(code)} - set(english))
    others = random.sample([name for name in others if len(name) < 30], 3000)
    letters = sorted(set("".join([*english, *others])))
    ids = {letter: i + 2 for i, letter in enumerate(letters)}
    rows = [torch.tensor([1, *(ids[letter] for letter in name)]) for name in others]
    own = [torch.tensor([1, *(ids[letter] for letter in name)]) for name in english if len(name) < 30]
    random.shuffle(own)
    size = {"hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4}
    tokens = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(letters) + 2, **size, **tokens))
    fit(model, [*rows[1000:], *own], 8, 2e-3)
    train, held_out, test = own[150:], own[:150], rows[:1000]
    fit(model, train, 8, 1e-3)
    occurs = torch.cat(own).unique()
    seen = torch.zeros(len(letters) + 2, dtype=torch.bool)
    seen[occurs] = seen[:2] = True
    options = {"is_held_out": True, "seen_mask": seen, "verbose": False}
    plain, shifted = finecal.Positions(-1, ignore_index=-100), finecal.Positions(-1, ignore_index=-100, shift=1)
    try:
        finecal.calibrate_model(model, batches(held_out), positions=plain, **options)
    except ValueError as error:
        print(f"without shift: {error}")
    tested = finecal.collect_logits(model, batches(test), positions=shifted, progress=False)
    share = float(seen[tested.labels].float().mean())
    print(f"{int(seen.sum())} of {len(seen)} tokens seen, {100 * share:.1f} % of those in test")
    gammas = {"0": 0.0}
    for name, given in (("default share", None), ("true share", share)):
        found = finecal.calibrate_model(model, batches(held_out), positions=shifted, seen_share=given, **options)
        gammas[name] = found.calibrator.estimate
    gammas["best"] = finecal.search_gamma(tested, seen)
    for name, gamma in gammas.items():
        report = finecal.evaluate(tested, seen, gamma)
        accuracies = " ".join(
            f"{group} {100 * value:5.1f}"
            for group, value in (
                ("seen", report.acc_seen),
                ("absent", report.acc_absent),
                ("all", report.acc_all),
            )
        )
        print(f"{name:13} gamma {float(gamma):6.2f}  {accuracies}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
