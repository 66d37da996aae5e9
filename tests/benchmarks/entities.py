"""Token classification: F1 of entities where absent ones are missing from the fine-tuning, labelled O, or left out.

The task is that of examples/integrations/ner.py; each seed has other seen types. Prints the tables of
docs/how-to/entities.md, in ten minutes on one core.

``--write FOLDER`` writes the pre-trained model and the data of the first seed in the form that run_ner.py of
transformers takes; ``--score FOLDER MODEL...`` prints scores of what run_ner.py has saved, on the test
data there.
"""

import argparse
import copy
import json
import random
import sys
import tempfile
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from transformers import AutoModelForTokenClassification, AutoTokenizer, DataCollatorForTokenClassification, set_seed

import finecal
from finecal._core.results import format_table
from finecal.sequences import entity_scores

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "integrations"))
import name_sentences

SEEN = ["CITY", "LANGUAGE", "SCRIPT"]
"""Seen types of the first seed; those of the others are drawn."""
ENTITIES, TOKENS = (finecal.Positions(-1, ignore_index=-100, background=of) for of in (0, None))
GRID = [step / 10 for step in range(-20, 121)]
"""The oracle is the gamma with the best F1 of all types on the test."""
GROUPS = ("seen", "absent", "all")


class Task:
    """Sentences of one seed, and the model that is pre-trained on prose."""

    def __init__(self, seed):
        set_seed(seed)
        names = name_sentences.load_names()
        types = sorted(names)
        self.seen = SEEN if seed == 0 else sorted(random.Random(seed).sample(types, 3))
        self.mask = torch.tensor(finecal.seen_mask_from_names(self.seen, name_sentences.TAGS))
        prose = name_sentences.write_sentences(names, 4000, "prose", seed)
        self.tokenizer = name_sentences.make_tokenizer(prose)
        self.collator = DataCollatorForTokenClassification(self.tokenizer)
        self.model = name_sentences.make_model(self.tokenizer)
        self.train(self.model, self.encode(prose), num_train_epochs=5, learning_rate=3e-3)
        known, new = ({kind: of[start::2] for kind, of in names.items()} for start in (1, 0))
        known_seen, new_seen = ({kind: of[kind] for kind in self.seen} for of in (known, new))

        def chat(names, count, offset):
            return name_sentences.write_sentences(names, count, "chat", seed + offset)

        self.only_seen, self.held_out_seen = chat(known_seen, 2000, 1), chat(new_seen, 500, 301)
        self.every, self.held_out = chat(known, 2000, 101), chat(new, 500, 401)
        self.test, self.others = chat(new, 1000, 2), chat(new, 500, 201)

    def encode(self, sentences):
        return name_sentences.encode(sentences, self.tokenizer)

    def train(self, model, samples, **settings):
        with tempfile.TemporaryDirectory() as folder:
            name_sentences.make_trainer(model, folder, self.tokenizer, samples, **settings).train()

    def collect(self, model, samples, positions=TOKENS):
        loader = DataLoader(samples, 256, collate_fn=self.collator)
        return finecal.collect_logits(model, loader, positions=positions, progress=False)

    def as_outside(self, sentences):
        """Label entities of absent types O."""
        return [(words, [tag if tag[2:] in self.seen else "O" for tag in tags]) for words, tags in sentences]

    def left_out(self, samples):
        """Leave out the tokens labelled O for which the pre-trained model predicts a tag of an absent type."""
        predicted = iter(self.collect(self.model, samples).logits.argmax(1).tolist())
        return [
            {
                **sample,
                "labels": [self._label(label, next(predicted) if label >= 0 else 0) for label in sample["labels"]],
            }
            for sample in samples
        ]

    def _label(self, label, predicted):
        return -100 if label == 0 and not self.mask[predicted] else label

    def truly_left_out(self, samples):
        """Leave out all tokens of absent types; their labels are in `samples`."""
        return [
            {**sample, "labels": [label if label < 0 or self.mask[label] else -100 for label in sample["labels"]]}
            for sample in samples
        ]


def conditions(task):
    """Yield what fine-tuning sentences are like, these, and held-out ones that are labelled in the same way."""
    every, held_out = (task.encode(of) for of in (task.every, task.held_out))
    outside, held_out_outside = (task.encode(task.as_outside(of)) for of in (task.every, task.held_out))
    yield "no absent entities", task.encode(task.only_seen), task.encode(task.held_out_seen)
    yield "absent ones labelled O", outside, held_out_outside
    yield "left out by the pre-trained model", task.left_out(outside), task.left_out(held_out_outside)
    yield "left out where they are", task.truly_left_out(every), task.truly_left_out(held_out)


def gammas(task, model, train, held_out):
    """Yield each way to find gamma; with unlabelled sentences "O" counts as a seen class, since it has no mark."""
    yield "fine-tuned", 0.0
    yield "training sentences", finecal.estimate_gamma(task.mask[1:], train=task.collect(model, train, ENTITIES))
    others = task.collect(model, task.encode(task.others))
    unlabelled = finecal.Samples(others.logits, groups=others.groups)
    labelled = task.collect(model, held_out)
    yield "held-out and unlabelled", finecal.estimate_gamma(task.mask, held_out=labelled, unlabelled=unlabelled)
    few = task.collect(model, task.encode(task.others[:50]))
    yield "50 labelled sentences", finecal.search_gamma(few, task.mask)


def run(seed):
    task = Task(seed)
    test = task.encode(task.test)
    rows = [[str(seed), "pre-trained", "", "", *scores(task.collect(task.model, test), task.mask, 0.0)]]
    for name, train, held_out in conditions(task):
        model = copy.deepcopy(task.model)
        task.train(model, train, num_train_epochs=4, learning_rate=1e-3)
        logits = task.collect(model, test)
        found = dict(gammas(task, model, train, held_out))
        found["oracle"] = max(GRID, key=lambda gamma: entity_f1(logits, task.mask, gamma)[-1])
        for way, gamma in found.items():
            rows.append([str(seed), name, way, f"{float(gamma):.2f}", *scores(logits, task.mask, gamma)])
        print(format_table(["seed", "absent entities", "gamma from", "gamma", *GROUPS], rows), flush=True)
    return rows


def entity_f1(logits, mask, gamma):
    report = entity_scores(logits, mask, gamma, class_names=name_sentences.TAGS)
    return [100 * report.scores(group)[2] for group in GROUPS]


def scores(logits, mask, gamma):
    return [f"{value:.1f}" for value in entity_f1(logits, mask, gamma)]


def means(tables):
    """Return the means of several tables of `run`."""
    for rows in zip(*tables, strict=True):
        columns = list(zip(*rows, strict=True))
        numbers = ["" if "" in of else f"{sum(map(float, of)) / len(of):.2f}" for of in columns[3:4]]
        numbers += [f"{sum(map(float, of)) / len(of):.1f}" for of in columns[4:]]
        yield ["mean", *rows[0][1:3], *numbers]


def write(folder):
    """Write what run_ner.py takes."""
    task = Task(0)
    task.model.save_pretrained(folder / "pretrained")
    task.tokenizer.save_pretrained(folder / "pretrained")
    data = {
        "only_seen": task.only_seen,
        "as_outside": task.as_outside(task.every),
        "test": task.test,
    }
    for name, sentences in data.items():
        lines = [json.dumps({"tokens": words, "ner_tags": tags}) for words, tags in sentences]
        (folder / f"{name}.json").write_text("\n".join(lines), encoding="utf-8")


def score(folder, models):
    """Print the scores of saved models on the test data."""
    lines = (folder / "test.json").read_text(encoding="utf-8").splitlines()
    test = [(line["tokens"], line["ner_tags"]) for line in map(json.loads, lines)]
    for path in models:
        model, tokenizer = AutoModelForTokenClassification.from_pretrained(path), AutoTokenizer.from_pretrained(path)
        loader = DataLoader(
            name_sentences.encode(test, tokenizer), 256, collate_fn=DataCollatorForTokenClassification(tokenizer)
        )
        logits = finecal.collect_logits(model, loader, positions=TOKENS, progress=False)
        mask = torch.tensor(finecal.seen_mask_from_names(SEEN, model.config.id2label))
        results = Path(path) / "finecal_results.json"
        gamma = json.loads(results.read_text())["gamma"] if results.is_file() else 0.0
        without = finecal.calibrate_logits(logits.logits, mask, -gamma)  # it is in the bias of the head
        samples = finecal.Samples(without, logits.labels, groups=logits.groups)
        print(path, entity_scores(samples, mask, gamma, class_names=model.config.id2label), sep="\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--write", type=Path)
    parser.add_argument("--score", type=Path)
    parser.add_argument("models", nargs="*")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the same figures on every machine
    if arguments.write:
        write(arguments.write)
    elif arguments.score:
        score(arguments.score, arguments.models)
    else:
        tables = [run(seed) for seed in arguments.seeds]
        print(format_table(["", "absent entities", "gamma from", "gamma", *GROUPS], list(means(tables))))
