"""Token classifiers of transformers: the callback, `calibrate_model`, folding, and the pipeline of what is saved."""

import subprocess
import sys
import warnings
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader
from transformers import (
    AutoConfig,
    AutoModelForTokenClassification,
    BertConfig,
    BertTokenizerFast,
    DataCollatorForTokenClassification,
    Trainer,
    TrainingArguments,
    pipeline,
)

import finecal
from finecal.integrations.transformers import CalibrationCallback
from finecal.sequences import entity_scores
from pages import blocks

TAGS = ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]
MASK = torch.tensor(finecal.seen_mask_from_names(["LOC"], TAGS))
POSITIONS = finecal.Positions(-1, ignore_index=-100, background=0)
WORDS = {"O": ["the", "of"], "LOC": ["rome", "oslo", "york"], "PER": ["anna", "otto", "carl"]}
pytestmark = [
    pytest.mark.filterwarnings("ignore:'pin_memory' argument"),
    pytest.mark.filterwarnings("ignore::finecal.FinecalWarning"),
]


def sentences(n, kinds, seed=0):
    """Between 4 and 9 words, each the B- or, after one of its type, the I- tag of its type."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda high: int(torch.randint(high, (1,), generator=generator))  # noqa: E731
    result = []
    for _ in range(n):
        words, tags, last = [], [], "O"
        for _ in range(4 + draw(6)):
            kind = ["O", *kinds][draw(1 + len(kinds))]
            words.append(WORDS[kind][draw(len(WORDS[kind]))])
            tags.append("O" if kind == "O" else f"{'I' if last == kind else 'B'}-{kind}")
            last = kind
        result.append((words, tags))
    return result


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS["O"], *WORDS["LOC"], *WORDS["PER"]])
    )
    return BertTokenizerFast(str(path), model_max_length=32)


def encoded(tokenizer, pairs):
    samples = []
    for words, tags in pairs:
        ids = tokenizer(words, is_split_into_words=True)
        samples.append({**ids, "labels": [-100, *map(TAGS.index, tags), -100]})
    return samples


def make_model(tokenizer):
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    names = {"id2label": dict(enumerate(TAGS)), "label2id": {tag: i for i, tag in enumerate(TAGS)}}
    config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=32, **size, **names)
    return AutoModelForTokenClassification.from_config(config)


@pytest.fixture
def make_trainer(tmp_path, tokenizer):
    def make(model, train, test, **settings):
        quiet = {"report_to": "none", "disable_tqdm": True, "save_strategy": "no", "logging_strategy": "no"}
        sizes = {"per_device_train_batch_size": 16, "per_device_eval_batch_size": 16}
        arguments = TrainingArguments(str(tmp_path), **quiet, **sizes, **settings)
        collator = DataCollatorForTokenClassification(tokenizer)
        data = {"train_dataset": encoded(tokenizer, train), "eval_dataset": encoded(tokenizer, test)}
        return Trainer(model, arguments, processing_class=tokenizer, data_collator=collator, **data)

    return make


@pytest.fixture
def fine_tuned(make_trainer, tokenizer):
    """Return a trainer whose model knows both types, but has lost one."""
    model, every = make_model(tokenizer), sentences(300, ["LOC", "PER"])
    make_trainer(model, every, [], num_train_epochs=4, learning_rate=1e-2).train()
    with torch.no_grad():
        model.classifier.bias[MASK] += 6.0
    data = sentences(200, ["LOC"], 1), sentences(60, ["LOC", "PER"], 2)
    return make_trainer(model, *data, num_train_epochs=1, learning_rate=1e-4)


def loader(trainer, dataset):
    return DataLoader(dataset, 16, collate_fn=trainer.data_collator)


def test_the_callback_finds_what_the_functions_find(fine_tuned):
    callback = CalibrationCallback(fine_tuned, MASK, positions=POSITIONS)
    fine_tuned.add_callback(callback)
    fine_tuned.train()
    model = fine_tuned.model
    train, test = (
        finecal.collect_logits(model, loader(fine_tuned, data), positions=POSITIONS, progress=False)
        for data in (fine_tuned.train_dataset, fine_tuned.eval_dataset)
    )
    assert callback.estimate.gamma == pytest.approx(finecal.estimate_gamma(MASK[1:], train=train).gamma, abs=1e-5)
    assert callback.estimate.n == len(train)
    for found, gamma in zip(callback.accuracies["eval"], (0.0, callback.estimate), strict=True):
        expected = finecal.evaluate(test, MASK[1:], gamma)
        assert (found.acc_seen, found.acc_absent, found.acc_all) == pytest.approx(
            (expected.acc_seen, expected.acc_absent, expected.acc_all)
        )
    before, after = callback.accuracies["eval"]
    assert after.acc_absent > before.acc_absent + 0.2
    calibrated = finecal.calibrate_model(
        model,
        loader(fine_tuned, fine_tuned.train_dataset),
        is_held_out=False,
        seen_mask=MASK,
        positions=POSITIONS,
        verbose=False,
    )
    assert calibrated.calibrator.estimate.gamma == pytest.approx(callback.estimate.gamma, abs=1e-5)
    assert isinstance(callback.calibrator, finecal.AdditiveBias)


@pytest.mark.parametrize("is_told", [False, True])
def test_words_that_gamma_takes_for_entities_are_told(fine_tuned, is_told):
    model = fine_tuned.model
    with torch.no_grad():
        model.classifier.bias[0] -= 5.0 * is_told
    callback = CalibrationCallback(fine_tuned, MASK, positions=POSITIONS)
    fine_tuned.add_callback(callback)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fine_tuned.train()
    data, every = loader(fine_tuned, fine_tuned.train_dataset), finecal.Positions(-1, ignore_index=-100)
    samples = finecal.collect_logits(model, data, positions=every, progress=False)
    outside = samples[samples.labels == 0].logits
    before, after = (
        100 * float((outside + gamma * ~MASK).argmax(1).eq(0).double().mean()) for gamma in (0, callback.estimate.gamma)
    )
    assert (before - after > 10) == is_told
    told = [str(each.message) for each in caught if "background" in str(each.message)]
    start = "CalibrationCallback: positions of the background are taken for absent classes with gamma: "
    assert [sentence.partition(" stay so")[0] for sentence in told] == is_told * [
        f"{start}{before:.1f} -> {after:.1f} %"
    ]


def test_some_tokens_of_each_sentence(fine_tuned):
    some = finecal.Positions(-1, ignore_index=-100, background=0, per_item=2)
    callback = CalibrationCallback(fine_tuned, MASK, positions=some, data="eval")
    fine_tuned.add_callback(callback)
    fine_tuned.train()
    groups = [min(2, sum(tag[2:] == "LOC" for tag in tags)) for _, tags in sentences(60, ["LOC", "PER"], 2)]
    assert 0 < callback.estimate.n <= 2 * len(groups)
    labels = [label for sample in fine_tuned.eval_dataset for label in sample["labels"]]
    report = callback.accuracies["eval"].after  # of all that count
    assert (report.n_seen, report.n_absent) == tuple(sum(label in of for label in labels) for of in ((1, 2), (3, 4)))


PIPELINE = """
import sys
from transformers import pipeline
tagger = pipeline("token-classification", model=sys.argv[1])
print([(part["word"], part["entity"]) for part in tagger("the anna of rome")])
assert "finecal" not in sys.modules
"""


def test_the_folded_model_is_an_ordinary_one(fine_tuned, tmp_path):
    callback = CalibrationCallback(fine_tuned, MASK, positions=POSITIONS, fold=True)
    fine_tuned.add_callback(callback)
    bias = fine_tuned.model.classifier.bias
    fine_tuned.train()
    fine_tuned.save_model(tmp_path / "calibrated")
    loaded = AutoModelForTokenClassification.from_pretrained(tmp_path / "calibrated")
    assert torch.equal(loaded.classifier.bias, bias)
    test = loader(fine_tuned, fine_tuned.eval_dataset)
    every = finecal.Positions(-1, ignore_index=-100)
    folded = finecal.collect_logits(loaded, test, positions=every, progress=False)
    plain = finecal.unfold_from_head(fine_tuned.model, callback.calibrator)
    logits = finecal.collect_logits(plain, test, positions=every, progress=False)
    report = entity_scores(logits, MASK, callback.estimate, class_names=plain.config.id2label)
    again = entity_scores(folded, MASK, class_names=loaded.config.id2label)
    assert again.correct == again.correct_at_zero == report.correct
    assert report.scores("absent")[2] > report.scores("absent", at_zero=True)[2] + 0.2
    tagger = pipeline("token-classification", model=loaded, tokenizer=fine_tuned.processing_class)
    expected = [(part["word"], part["entity"]) for part in tagger("the anna of rome")]
    assert expected == [("anna", "B-PER"), ("rome", "B-LOC")]
    command = [sys.executable, "-c", PIPELINE, str(tmp_path / "calibrated")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(expected)


def test_logits_of_tokens_need_positions(fine_tuned):
    fine_tuned.add_callback(CalibrationCallback(fine_tuned, MASK))
    with pytest.raises(ValueError, match=r"shape \(16, 11, 5\); .*positions=Positions"):
        fine_tuned.train()


def test_background_that_is_absent_is_refused(fine_tuned):
    with pytest.raises(ValueError, match="background"):
        CalibrationCallback(fine_tuned, ~MASK, positions=POSITIONS)
    with pytest.raises(TypeError, match="positions is a int"):
        CalibrationCallback(fine_tuned, MASK, positions=-1)


def test_the_guide(fine_tuned, make_trainer, tokenizer, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    training, without, measuring, folding, loading, _, unlabelled = blocks("docs/how-to/entities.md", "python")
    held_out, others = (sentences(40, kinds, seed) for kinds, seed in ((["LOC"], 5), (["LOC", "PER"], 6)))
    names = {
        "trainer": fine_tuned,
        "model": fine_tuned.model,
        "seen_types": ["LOC"],
        "train_loader": loader(fine_tuned, fine_tuned.train_dataset),
        "test_set": fine_tuned.eval_dataset,
        "held_out_loader": loader(fine_tuned, encoded(tokenizer, held_out)),
        "unlabelled_loader": loader(fine_tuned, encoded(tokenizer, others)),
    }
    for block in (training, without, measuring):
        exec(block, names)
    assert str(names["callback"].estimate) in capsys.readouterr().out
    assert names["calibrated"].calibrator.estimate.gamma == pytest.approx(names["callback"].estimate.gamma, abs=1e-5)
    exec(unlabelled, names)
    assert "unlabelled" in names["calibrated"].calibrator.estimate.data
    exec(folding, names)
    exec(loading, names)
    after = entity_scores(
        names["trainer"].predict(names["test_set"]).predictions,
        names["prediction"].label_ids,
        MASK,
        class_names=TAGS,
    )
    assert after.correct_at_zero == names["report"].correct


def test_the_guide_leaves_out_what_the_pretrained_model_takes_for_absent(make_trainer, tokenizer):
    model, every = make_model(tokenizer), sentences(300, ["LOC", "PER"])
    make_trainer(model, every, [], num_train_epochs=6, learning_rate=1e-2).train()
    truth = encoded(tokenizer, sentences(60, ["LOC", "PER"], 3))
    outside = [{**sample, "labels": [tag if tag < 3 else 0 for tag in sample["labels"]]} for sample in truth]
    names = {"pretrained": model.eval(), "train_set": outside, "seen_mask": MASK.numpy()}
    leaving_out = blocks("docs/how-to/entities.md", "python")[5]
    exec(leaving_out, names)
    true, kept = ([label for sample in data for label in sample["labels"]] for data in (truth, names["train_set"]))
    pairs = list(zip(true, kept, strict=True))
    absent = [found for true, found in pairs if true > 2]
    assert absent.count(-100) > 0.8 * len(absent)
    assert all(found in (true, -100) for true, found in pairs if true <= 2)
    assert sum(found == -100 != true for true, found in pairs if true <= 2) < 0.1 * len(pairs)


def test_the_lines_for_run_ner(fine_tuned, tokenizer, tmp_path):
    fine_tuned.save_model(tmp_path / "pretrained")
    keeping, adding = (
        block for block in blocks("docs/how-to/scripts.md", "{code-block} python") if "label_list" in block
    )
    names = {
        "AutoConfig": AutoConfig,
        "model_args": SimpleNamespace(model_name_or_path=tmp_path / "pretrained"),
        "raw_datasets": {"train": {"ner_tags": [tags for _, tags in sentences(200, ["LOC"], 1)]}},
        "label_column_name": "ner_tags",
        "trainer": fine_tuned,
    }
    exec(keeping, names)
    assert names["label_list"] == TAGS
    exec(adding, names)
    assert names["seen_mask"].tolist() == MASK.tolist()
    (callback,) = (each for each in fine_tuned.callback_handler.callbacks if isinstance(each, CalibrationCallback))
    fine_tuned.train()
    assert callback.estimate.gamma > 1
    assert callback.positions == POSITIONS
