"""``finecal fold``: saved models of transformers, PEFT and timm, and what is refused."""

import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    BertForTokenClassification,
    BertTokenizerFast,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    pipeline,
)

import finecal
import saved_models as made
from finecal._cli.arguments import main
from finecal.integrations import _saved_model, _saved_transformers
from pages import blocks

MASK, NAMES = made.MASK, made.NAMES
pytestmark = [
    pytest.mark.filterwarnings("ignore::finecal.FinecalWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]


def makes(function, **settings):
    @pytest.fixture(scope="module")
    def folder(tmp_path_factory):
        path = tmp_path_factory.mktemp(function.__name__)
        function(path, **settings)
        return path

    return folder


texts = makes(made.save_text_model)
images = makes(made.save_image_model)
adapter = makes(made.save_adapter, task_type="SEQ_CLS", modules_to_save=["pre_classifier", "classifier"])
frozen = makes(made.save_adapter)
checkpoint = makes(made.save_timm_checkpoint)
tagger = makes(made.save_tagger)


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(capsys):
    def run(line):
        assert main(f"fold {line} --no-progress".split()) == 0
        return capsys.readouterr().out

    return run


@pytest.fixture
def run_json(run):
    return lambda line: json.loads(run(f"{line} --json"))


@pytest.fixture
def refuses(capsys, work):
    """Run a call that fails: a sentence that starts like this, exit status 2, and nothing written."""

    def refuses(line, start):
        before = sorted(work.rglob("*"))
        with pytest.raises(SystemExit) as caught:
            main(f"fold {line} --no-progress".split())
        out, err = capsys.readouterr()
        assert (caught.value.code, out) == (2, "")
        error = err.splitlines()[-1]
        assert error.startswith(f"finecal fold: error: {start}"), error
        assert sorted(work.rglob("*")) == before
        return error

    return refuses


def text_logits(model, sentences):
    with torch.no_grad():
        return model.eval()(**made.encoded(sentences)).logits.float()


def pixels_of(files):
    """As ViT takes them: from [0, 255] to [-1, 1], with nothing to resize."""
    arrays = [torch.tensor(list(Image.open(file).convert("RGB").tobytes())).reshape(16, 16, 3) for file in files]
    return torch.stack(arrays).permute(0, 3, 1, 2) / 127.5 - 1


def check_pipeline(results, logits, gamma):
    """The scores of a pipeline with `top_k=None` are those of the logits with gamma added to the absent classes."""
    expected = (logits + gamma * (~MASK).float()).softmax(1)
    for scores, row in zip(results, expected, strict=True):
        found = {entry["label"]: entry["score"] for entry in scores}
        assert [found[name] for name in NAMES] == pytest.approx(row.tolist(), abs=2e-5)
    labels = [max(scores, key=lambda entry: entry["score"])["label"] for scores in results]
    assert labels == [NAMES[index] for index in expected.argmax(1)]


# --- texts ------------------------------------------------------------------------------------------------------------


def test_text_model(texts, work, run_json):
    model = AutoModelForSequenceClassification.from_pretrained(texts / "text-model")
    sentences, labels = made.sentences(150, made.SEEN, seed=2)
    record = run_json(f"{texts}/text-model --train {texts}/train.csv --out new")
    train = text_logits(model, sentences), torch.tensor(labels)
    assert record["gamma"] == pytest.approx(finecal.estimate_gamma(MASK, train=train).gamma, abs=1e-4)
    assert record["seen_classes"] == list(made.SEEN)
    assert record["load"] == 'transformers.pipeline("text-classification", model="new")'

    others, _ = made.sentences(60, range(6), seed=7)
    logits = text_logits(model, others)
    before = pipeline("text-classification", model=str(texts / "text-model"), top_k=None)(others)
    after = pipeline("text-classification", model="new", top_k=None)(others)
    check_pipeline(before, logits, 0.0)
    check_pipeline(after, logits, record["gamma"])
    assert before != after


def test_held_out_samples_show_what_it_buys(texts, work, run, run_json):
    line = f"{texts}/text-model --train {texts}/train.csv --held-out {texts}/held_out.csv"
    record = run_json(f"{line} --out new")
    model = AutoModelForSequenceClassification.from_pretrained(texts / "text-model")
    sentences, labels = made.sentences(150, made.SEEN, seed=2)
    others, classes = made.sentences(180, range(6), seed=3)
    logits, classes = text_logits(model, others), torch.tensor(classes)
    is_seen = MASK[classes]
    train = text_logits(model, sentences), torch.tensor(labels)
    estimate = finecal.estimate_gamma(MASK, train=train, held_out=(logits[is_seen], classes[is_seen]))
    assert record["gamma"] == pytest.approx(estimate.gamma, abs=1e-4)
    for name, gamma in {"before": 0.0, "after": record["gamma"]}.items():
        report = finecal.evaluate(logits, classes, MASK, gamma)
        assert record[name]["acc_absent"] == report.acc_absent
        assert record[name]["acc_all"] == report.acc_all
    assert record["after"]["acc_absent"] > record["before"]["acc_absent"] + 0.2

    out = run(f"{line} --out again")
    assert re.search(r"\| absent, 90 samples +\| +\d+\.\d \| +\d+\.\d \| +\+\d+\.\d \|", out)
    assert out.endswith(
        'wrote again, which needs no finecal: transformers.pipeline("text-classification", model="again")\n'
    )


def test_a_limit_on_what_the_seen_classes_lose(texts, work, run, run_json):
    line = f"{texts}/text-model --train {texts}/train.csv --held-out {texts}/held_out.csv --seen-share 0.02"
    free = run_json(f"{line} --out free")
    model = AutoModelForSequenceClassification.from_pretrained(texts / "text-model")
    others, classes = made.sentences(180, range(6), seed=3)
    logits, classes = text_logits(model, others), torch.tensor(classes)
    is_seen = MASK[classes]
    limit = finecal.estimators.seen_budget_gamma(logits[is_seen], classes[is_seen], MASK, max_seen_drop=0.04)
    assert 0 < limit.gamma < free["gamma"]
    held = run_json(f"{line} --out held --max-seen-drop 0.04")
    assert held["gamma"] == pytest.approx(limit.gamma, abs=1e-4)
    assert held["gamma_without_limit"] == pytest.approx(free["gamma"])
    assert "gamma_without_limit" not in free
    out = run(f"{line} --out printed --max-seen-drop 0.04")
    assert "falls by at most 4 points, with 95 % confidence" in out
    assert run_json(f"{line} --out loose --max-seen-drop 0.9")["gamma"] == free["gamma"]


def test_unlabelled_samples_and_their_share(texts, work, run_json):
    lines = ["sentence,id", *(f"{text},1" for text in made.sentences(120, range(6), seed=5)[0])]
    Path("met.csv").write_text("\n".join(lines), encoding="utf-8")
    model = AutoModelForSequenceClassification.from_pretrained(texts / "text-model")
    sentences, labels = made.sentences(150, made.SEEN, seed=2)
    met = text_logits(model, made.sentences(120, range(6), seed=5)[0])
    train = text_logits(model, sentences), torch.tensor(labels)
    record = run_json(f"{texts}/text-model --train {texts}/train.csv --unlabelled met.csv --seen-share 0.3 --out new")
    expected = finecal.estimate_gamma(MASK, train=train, unlabelled=met, seen_share=0.3)
    assert record["gamma"] == pytest.approx(expected.gamma, abs=1e-3)


def test_nothing_but_the_bias_changes(texts, work, run):
    source = work / "model"
    shutil.copytree(texts / "text-model", source)
    (source / "README.md").write_text("---\nlicense: mit\n---\n\n# My model\n\nWords.\n", encoding="utf-8")
    (source / "notes").mkdir()
    (source / "notes" / "a.txt").write_text("a")
    (source / "training_args.bin").write_bytes(b"whatever")
    (source / "checkpoint-7").mkdir()
    (source / ".git").mkdir()
    for name in ("pytorch_model.bin", "checkpoint-7/model.safetensors", "finecal.safetensors"):
        (source / name).write_bytes(b"old")
    out = run(f"model --train {texts}/train.csv --out new")
    assert "without gamma: .git/, checkpoint-7/, finecal.safetensors, pytorch_model.bin\n" in out

    same = {"tokenizer.json", "tokenizer_config.json", "notes/a.txt", "training_args.bin"}
    files = {str(path.relative_to("new")) for path in Path("new").rglob("*") if path.is_file()}
    assert files == same | {"README.md", "config.json", "model.safetensors"}
    assert all((source / name).read_bytes() == Path("new", name).read_bytes() for name in same)
    old, new = load_file(source / "model.safetensors"), load_file("new/model.safetensors")
    assert old.keys() == new.keys()
    assert [name for name in old if not torch.equal(old[name], new[name])] == ["classifier.bias"]
    change = new["classifier.bias"] - old["classifier.bias"]
    assert torch.equal(change[MASK], torch.zeros(3))

    config = json.loads(Path("new/config.json").read_text())
    folded = config.pop("finecal_folded")
    assert config == json.loads((source / "config.json").read_text())
    assert change[~MASK].tolist() == pytest.approx([folded["estimate"]["gamma"]] * 3, rel=1e-5)
    card = Path("new/README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlicense: mit\n---\n\n# My model\n\nWords.\n\n## Calibrated for classes without ")
    assert f"| {folded['estimate']['gamma']:.6g} " in card
    assert "3 of its 6 classes" in card
    assert card.endswith("Classes of the fine-tuning data: ant, cat, elk.\n")


WITHOUT_FINECAL = """
import sys
sys.modules.update(dict.fromkeys(["finecal", "peft"]))
from transformers import pipeline
print([found["label"] for found in pipeline("text-classification", model="new")(sys.argv[1:])])
"""


def check_without_finecal(sentences):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_FINECAL, *sentences], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{[found['label'] for found in pipeline('text-classification', model='new')(sentences)]}\n"


def test_needs_no_finecal(texts, work, run):
    run(f"{texts}/text-model --train {texts}/train.csv --out new")
    check_without_finecal(made.sentences(8, range(6), seed=7)[0])


def test_weights_in_several_files(texts, work, run):
    model = AutoModelForSequenceClassification.from_pretrained(texts / "text-model")
    model.save_pretrained("model", max_shard_size="8KB")
    made.make_tokenizer().save_pretrained("model")
    files = sorted(path.name for path in Path("model").glob("*.safetensors"))
    assert len(files) > 2
    run(f"model --train {texts}/train.csv --out new")
    changed = [name for name in files if Path("model", name).read_bytes() != Path("new", name).read_bytes()]
    place = json.loads(Path("model/model.safetensors.index.json").read_text())["weight_map"]["classifier.bias"]
    assert changed == [place]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays(texts, work, run_json, dtype):
    model = AutoModelForSequenceClassification.from_pretrained(texts / "text-model").to(dtype)
    model.save_pretrained("model")
    made.make_tokenizer().save_pretrained("model")
    gamma = run_json(f"model --train {texts}/train.csv --out new")["gamma"]
    new = load_file("new/model.safetensors")["classifier.bias"]
    old = load_file("model/model.safetensors")["classifier.bias"]
    assert new.dtype == dtype
    assert torch.equal(new, (old.float() + gamma * (~MASK)).to(dtype))


def test_classes_without_names(texts, work, run_json, refuses):
    shutil.copytree(texts / "text-model", "model")
    config = json.loads(Path("model/config.json").read_text())
    del config["id2label"], config["label2id"]
    config["num_labels"] = 6
    Path("model/config.json").write_text(json.dumps(config))
    refuses(
        f"model --train {texts}/train.csv --out new",
        f"{texts}/train.csv: labels 'ant', 'cat', 'elk' (3 of 3) are not among the 6 classes of the model, which have "
        "no names but 'LABEL_0', 'LABEL_1', 'LABEL_2', ...; label by indices from 0 to 5, or give the names by ",
    )
    Path("classes.txt").write_text("\n".join(NAMES))
    named = run_json(f"model --train {texts}/train.csv --class-names classes.txt --out named")
    rows = [json.dumps({"sentence": t, "labels": y}) for t, y in zip(*made.sentences(150, made.SEEN, 2), strict=True)]
    Path("train.jsonl").write_text("\n".join(rows))
    by_index = run_json("model --train train.jsonl --out indexed")
    assert by_index["gamma"] == named["gamma"]
    assert by_index["seen_classes"] == named["seen_classes"] == list(made.SEEN)


def test_a_part_of_the_data(texts, work, run_json, refuses):
    lines = (texts / "train.csv").read_text().splitlines()
    Path("few.csv").write_text("\n".join(lines[:32]))
    Path("seen.txt").write_text("ant\ncat\nelk\nbee")
    record = run_json(f"{texts}/text-model --train few.csv --seen seen.txt --out new")
    assert record["seen_classes"] == [0, 1, 2, 4]
    record = run_json(f"{texts}/text-model --train {texts}/train.csv --max-samples 40 --out fewer")
    assert record["n"] == 40
    Path("once.csv").write_text("\n".join([*lines, "bee bee bee,bee"]))
    refuses(
        f"{texts}/text-model --train once.csv --out no", "once.csv: seen classes from 'labels': labels have a single"
    )


# --- adapters ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["adapter", "frozen"])
def test_adapters_are_merged(kind, work, run_json, refuses, request):
    from peft import PeftModel

    folder = request.getfixturevalue(kind)
    (folder / "adapter" / "notes.txt").write_text("a")
    record = run_json(f"{folder}/adapter --train {folder}/train.csv --out new")
    base = AutoModelForSequenceClassification.from_pretrained(folder / "pretrained")
    others, _ = made.sentences(40, range(6), seed=7)
    logits = text_logits(PeftModel.from_pretrained(base, str(folder / "adapter")), others)
    check_pipeline(pipeline("text-classification", model="new", top_k=None)(others), logits, record["gamma"])
    assert not list(Path("new").glob("adapter*"))
    assert Path("new/notes.txt").read_text() == "a"
    card = Path("new/README.md").read_text(encoding="utf-8")
    assert "library_name: transformers\n" in card
    assert "library_name: peft" not in card
    assert "## Calibrated for classes" in card
    refuses(f"new --train {folder}/train.csv --out again", "new has gamma in its head already")
    check_without_finecal(others[:6])


def test_the_base_of_an_adapter(adapter, work, run_json, refuses):
    shutil.copytree(adapter / "adapter", "adapter")
    config = json.loads(Path("adapter/adapter_config.json").read_text())
    for name, start in {
        "/no/such/folder": "adapter is an adapter of /no/such/folder, which is no directory here; give that of its",
        "someone/model": "the base model someone/model is no directory, and cannot be had from the Hub now; ",
        None: "adapter/adapter_config.json does not say which model the adapter is for; give its directory as --base",
    }.items():
        Path("adapter/adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": name}))
        refuses(f"adapter --train {adapter}/train.csv --out new", start)
    run_json(f"adapter --base {adapter}/pretrained --train {adapter}/train.csv --out new")
    line = f"{adapter}/pretrained --base {adapter}/pretrained --train {adapter}/train.csv"
    refuses(f"{line} --out no", f"--base {adapter}/pretrained is for adapters, and {adapter}/pretrained is a whole ")


def test_an_adapter_with_gamma(adapter, work, refuses):
    from peft import PeftModel

    base = AutoModelForSequenceClassification.from_pretrained(adapter / "pretrained")
    model = PeftModel.from_pretrained(base, str(adapter / "adapter"))
    finecal.fold_into_head(model, finecal.AdditiveBias(MASK, 3.0))
    model.save_pretrained("folded")
    refuses(f"folded --train {adapter}/train.csv --out new", "folded has gamma in its head already")


# --- words ------------------------------------------------------------------------------------------------------------


def samples_of_words(model, name, count, kinds, seed, background=0):
    """What `finecal fold` has to find in a file of sentences, from pieces of words that are counted here."""
    tokenizer = BertTokenizerFast.from_pretrained(name, model_max_length=32)
    batch = made.encoded_words(made.tagged_sentences(count, kinds, seed), tokenizer)
    positions = finecal.Positions(-1, ignore_index=-100, background=background)
    return finecal.collect_logits(model, [batch], positions=positions, progress=False)


def test_tagger(tagger, work, run_json):
    name = f"{tagger}/tagger"
    record = run_json(f"{name} --train {tagger}/train.json --held-out {tagger}/held_out.json --out new")
    model = BertForTokenClassification.from_pretrained(name)
    train, held_out = (samples_of_words(model, name, 150, *of) for of in ((["LOC"], 2), (["LOC", "PER"], 3)))
    entities = made.TAG_MASK[1:]
    seen = held_out[entities[held_out.labels]]
    expected = finecal.estimate_gamma(entities, train=train, held_out=seen)
    assert record["gamma"] == pytest.approx(expected.gamma, abs=1e-3)
    assert (record["n"], record["acc_seen_at_gamma"]) == (expected.n, pytest.approx(expected.acc_seen_at_gamma))
    assert record["seen_classes"] == [0, 1, 2]
    every = samples_of_words(model, name, 150, ["LOC", "PER"], 3, background=None)
    for when, gamma in (("before", 0.0), ("after", record["gamma"])):
        report = finecal.evaluate(every, made.TAG_MASK, gamma)
        found = [record[when][key] for key in ("acc_seen", "acc_absent", "n_seen", "n_absent")]
        assert found == pytest.approx([report.acc_seen, report.acc_absent, report.n_seen, report.n_absent])
    own = every[every.labels == 0]
    kept = [float((finecal.predict(own.logits, made.TAG_MASK, g) == 0).float().mean()) for g in (0, record["gamma"])]
    assert record["outside"] == pytest.approx(kept)
    assert not any('"O"' in sentence for sentence in record["warnings"])
    assert record["load"] == 'transformers.pipeline("token-classification", model="new")'
    text = "the anna of york"
    folded = BertForTokenClassification.from_pretrained("new")
    inputs = BertTokenizerFast.from_pretrained("new")(text, return_tensors="pt")
    with torch.no_grad():
        logits = [each(**inputs).logits[0] for each in (model, folded)]
    assert torch.allclose(logits[1], logits[0] + record["gamma"] * ~made.TAG_MASK, atol=1e-5)
    tags = [made.TAGS[index] for index in logits[1][1:-1].argmax(1)]
    entities = [(part["word"], part["entity"]) for part in pipeline("token-classification", model="new")(text)]
    assert [tag for _, tag in entities] == [tag for tag in tags if tag != "O"]


def test_words_outside_of_entities_count_as_seen_where_it_matters(tagger, work, run, run_json):
    start = f"{tagger}/tagger --train {tagger}/train.json"
    name = f"{tagger}/tagger"
    model = BertForTokenClassification.from_pretrained(name)
    record = run_json(f"{start} --unlabelled {tagger}/others.json --seen-share 0.6 --out with-others")
    train, others = (
        samples_of_words(model, name, 150, *of, background=None) for of in ((["LOC"], 2), (["LOC", "PER"], 4))
    )
    expected = finecal.estimate_gamma(made.TAG_MASK, train=train, unlabelled=others, seen_share=0.6)
    assert record["gamma"] == pytest.approx(expected.gamma, abs=1e-3)
    assert "outside" not in record
    with torch.no_grad():
        model.classifier.bias[0] -= 4.0
    shutil.copytree(name, "unsure")
    model.save_pretrained("unsure")
    start = f"unsure --train {tagger}/train.json --held-out {tagger}/held_out.json"
    record = run_json(f"{start} --out lost")
    before, after = record["outside"]
    assert after < before - 0.1
    (warning,) = [sentence for sentence in record["warnings"] if '"O"' in sentence]
    assert f"{100 * before:.1f} -> {100 * after:.1f} %" in warning
    record = run_json(f"{start} --max-seen-drop 0.03 --out limited")
    assert record["gamma"] < record["gamma_without_limit"]
    assert record["before"]["acc_seen"] - record["after"]["acc_seen"] <= 0.03
    before, after = record["outside"]
    assert after > before - 0.1
    assert not any('"O"' in sentence for sentence in record["warnings"])
    printed = run(f"{start} --max-seen-drop 0.03 --out again")
    shown = f"{100 * before:.1f} -> {100 * after:.1f} %"
    assert re.search(rf'words labelled "O" that stay so, held-out samples +\| {shown} ', printed)


def test_types_are_seen_or_absent_as_a_whole(tagger, work, run_json, refuses):
    start = f"{tagger}/tagger --train"
    of_two_words, *others = made.tagged_sentences(50, ["LOC"], 1)
    assert of_two_words[1].count("I-LOC") == 1
    short = [of_two_words, *((words, [tag.replace("I-", "B-") for tag in tags]) for words, tags in others)]
    made.write_sentences(work / "short.json", short)
    assert run_json(f"{start} short.json --out new")["seen_classes"] == [0, 1, 2]
    made.write_sentences(work / "indices.jsonl", [(words, list(map(made.TAGS.index, tags))) for words, tags in short])
    assert run_json(f"{start} indices.jsonl --out other")["seen_classes"] == [0, 1, 2]
    (work / "seen.txt").write_text("LOC\n")
    assert run_json(f"{start} {tagger}/train.json --seen seen.txt --out third")["seen_classes"] == [0, 1, 2]
    made.write_sentences(work / "outside.json", [(words, ["O"] * len(words)) for words, _ in short])
    refuses(f"{start} outside.json --out x", "outside.json: there is no entity, so no type is seen; give sentences")
    refuses(f"{start} {tagger}/held_out.json --out x", f"{tagger}/held_out.json: seen_mask has no absent class")
    refuses(
        f"{start} {tagger}/train.json --held-out outside.json --out x", "outside.json has no sample of a seen class"
    )


def test_taggers_without_types(tagger, work, run_json):
    """Parts of speech have no class that is neither seen nor absent."""
    shutil.copytree(tagger / "tagger", "model")
    config = json.loads(Path("model/config.json").read_text())
    names = ["DET", "NOUN", "NUM", "VERB", "ADJ"]
    config |= {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
    Path("model/config.json").write_text(json.dumps(config))
    rename = dict(zip(made.TAGS, names, strict=True))
    sentences = made.tagged_sentences(150, ["LOC"], 2)
    made.write_sentences(work / "train.json", [(words, [rename[tag] for tag in tags]) for words, tags in sentences])
    record = run_json("model --train train.json --out new")
    model = BertForTokenClassification.from_pretrained("model")
    samples = samples_of_words(model, "model", 150, ["LOC"], 2, background=None)
    expected = finecal.estimate_gamma(made.TAG_MASK, train=samples)
    assert record["gamma"] == pytest.approx(expected.gamma, abs=1e-3)
    assert "outside" not in record


def test_words_are_refused_where_texts_belong(tagger, texts, work, refuses, monkeypatch):
    refuses(f"{tagger}/tagger --train {texts}/train.csv --out new", f"{tagger}/tagger takes words; give a .jsonl with")
    refuses(
        f"{texts}/text-model --train {tagger}/train.json --out new", f"{texts}/text-model takes texts; give a table"
    )
    refuses(
        f"{tagger}/tagger --train {tagger}/train.json --held-out {texts}/held_out.csv --out new",
        f"{texts}/held_out.csv has texts, {tagger}/train.json has words; give data of one kind",
    )
    monkeypatch.setattr(PreTrainedTokenizerFast, "is_fast", False)
    refuses(
        f"{tagger}/tagger --train {tagger}/train.json --out new", f"{tagger}/tagger has a tokenizer in Python, which"
    )


# --- images -----------------------------------------------------------------------------------------------------------


def test_image_model(images, work, run_json):
    line = f"{images}/image-model --train {images}/train --held-out {images}/held-out --batch-size 50"
    record = run_json(f"{line} --out new")
    model = AutoModelForImageClassification.from_pretrained(images / "image-model").eval()
    files = sorted((images / "held-out").rglob("*.png"))
    labels = torch.tensor([NAMES.index(file.parent.name) for file in files])
    with torch.no_grad():
        logits = model(pixels_of(files)).logits
    for name, gamma in {"before": 0.0, "after": record["gamma"]}.items():
        assert record[name]["acc_all"] == pytest.approx(finecal.evaluate(logits, labels, MASK, gamma).acc_all, abs=0.02)
    assert record["after"]["acc_absent"] > record["before"]["acc_absent"] + 0.15
    few = files[::9]
    for path, gamma in ((str(images / "image-model"), 0.0), ("new", record["gamma"])):
        results = pipeline("image-classification", model=path, top_k=6)(list(map(str, few)))
        check_pipeline(results, logits[::9], gamma)
    assert (
        Path("new/preprocessor_config.json").read_bytes()
        == (images / "image-model" / "preprocessor_config.json").read_bytes()
    )


def test_images_that_cannot_be_read(images, work, refuses):
    shutil.copytree(images / "train", "train")
    Path("train/ant/broken.png").write_bytes(b"no image")
    refuses(f"{images}/image-model --train train --out new", "train/ant/broken.png is no image that can be read (")
    Path("train/ant/broken.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    refuses(f"{images}/image-model --train train --out new", "train/ant/broken.png is no image that can be read (")
    refuses(
        f"{images}/image-model --train {work}/train.csv --out new", f"{work}/train.csv does not exist; check the name"
    )


def test_the_other_kind_of_data(images, texts, work, refuses):
    refuses(
        f"{images}/image-model --train {texts}/train.csv --out new",
        f"{images}/image-model takes images; give a folder of images as --train",
    )
    refuses(
        f"{texts}/text-model --train {images}/train --out new",
        f"{texts}/text-model takes texts; give a table of texts, .csv or .jsonl as --train",
    )


# --- timm -------------------------------------------------------------------------------------------------------------


def timm_logits(model, files):
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    with torch.no_grad():
        return model.eval()(torch.stack([transform(Image.open(file).convert("RGB")) for file in files]))


def test_timm(checkpoint, work, run, run_json):
    line = f"--timm {made.TIMM_NAME} --checkpoint {checkpoint}/checkpoint.safetensors --train {checkpoint}/train"
    line += f" --class-map {checkpoint}/classes.txt --held-out {checkpoint}/held-out"
    gamma = run_json(f"{line} --out new")["gamma"]
    out = run(f"{line} --out new.safetensors")
    assert f'timm.create_model("{made.TIMM_NAME}", num_classes=6, checkpoint_path="new.safetensors")\n' in out
    path = checkpoint / "checkpoint.safetensors"
    model = timm.create_model(made.TIMM_NAME, num_classes=6)
    model.load_state_dict(load_file(path))
    files = sorted((checkpoint / "held-out").rglob("*.png"))[::4]
    expected = timm_logits(model, files) + gamma * (~MASK)
    by_file = timm.create_model(made.TIMM_NAME, num_classes=6, checkpoint_path="new.safetensors")
    by_folder = timm.create_model("local-dir:new", pretrained=True)
    for loaded in (by_file, by_folder):
        assert torch.allclose(timm_logits(loaded, files), expected, atol=1e-4)
    results = pipeline("image-classification", model="new", top_k=6)(list(map(str, files)))
    check_pipeline(results, expected, 0.0)
    card = Path("new/README.md").read_text(encoding="utf-8")
    assert card.startswith(f"# {made.TIMM_NAME}\n\n## Calibrated for classes")
    changed = load_file("new.safetensors")
    assert [name for name, tensor in load_file(path).items() if not torch.equal(tensor, changed[name])] == ["fc.bias"]


def test_a_directory_that_timm_has_saved(checkpoint, work, run_json):
    model = timm.create_model(made.TIMM_NAME, num_classes=6)
    model.load_state_dict(load_file(checkpoint / "checkpoint.safetensors"))
    timm.models.save_for_hf(model, "saved", {"label_names": list(NAMES)}, safe_serialization=True)
    gamma = run_json(f"saved --train {checkpoint}/train --out new")["gamma"]
    files = sorted((checkpoint / "held-out").rglob("*.png"))[::6]
    expected = timm_logits(model, files) + gamma * (~MASK)
    by_timm = timm.create_model("local-dir:new", pretrained=True)
    assert torch.allclose(timm_logits(by_timm, files), expected, atol=1e-4)
    check_pipeline(pipeline("image-classification", model="new", top_k=6)(list(map(str, files))), expected, 0.0)


def test_timm_refuses(checkpoint, work, refuses, run):
    rest = f"--train {checkpoint}/train --class-map {checkpoint}/classes.txt --out new"
    path = f"{checkpoint}/checkpoint.safetensors"
    model = timm.create_model(made.TIMM_NAME, num_classes=6)
    torch.save({"state_dict": model.state_dict()}, "best.pth.tar")
    error = refuses(f"--timm {made.TIMM_NAME} --checkpoint best.pth.tar {rest}", "best.pth.tar is no .safetensors")
    command = re.search(r'python -c "(.*)"$', error)[1]
    subprocess.run([sys.executable, "-c", command], check=True)
    assert load_file("best.safetensors").keys() == model.state_dict().keys()

    refuses(f"--timm resnet_of_mine --checkpoint {path} {rest}", "--timm resnet_of_mine: timm ")
    refuses(f"--timm hf-hub:some/model --checkpoint {path} {rest}", "--timm hf-hub:some/model: timm ")
    refuses(f"--timm test_vit --checkpoint {path} {rest}", f"{path}: the weights of test_vit cannot be loaded (")
    refuses(
        f"--timm {made.TIMM_NAME} --checkpoint {path} --train {checkpoint}/train --out new",
        f"{checkpoint}/train: labels 'ant', 'cat', 'elk' are no indices from 0 to 5, and the names of the 6 ",
    )
    Path("five.txt").write_text("\n".join(NAMES[:5]))
    refuses(
        f"--timm {made.TIMM_NAME} --checkpoint {path} --train {checkpoint}/train --class-map five.txt --out new",
        "five.txt: there are 5 class names",
    )
    run(f"--timm {made.TIMM_NAME} --checkpoint {path} {rest}")
    folded = "new/model.safetensors"
    refuses(
        f"--timm {made.TIMM_NAME} --checkpoint {folded} {rest.replace('--out new', '--out again')}",
        f"{folded} has gamma in its head already",
    )


# --- what is refused --------------------------------------------------------------------------------------------------


def test_bad_data_leave_nothing(texts, work, refuses):
    line = f"{texts}/text-model --out new --train"
    Path("bad.csv").write_text("text,label\nant ant,ant\ncat cat,cta\n")
    refuses(
        f"{line} bad.csv", "bad.csv: labels 'cta' (1 of 2) are not among the 6 classes of the model, 'ant', 'bee', "
    )
    Path("column.csv").write_text("review,label\nant ant,ant\n")
    refuses(f"{line} column.csv", "column.csv has no column called 'text' or 'sentence' (it has 'review', 'label'); ")
    refuses(
        f"{line} {texts}/held_out.csv",
        f"{texts}/held_out.csv: seen classes from 'labels': seen_mask has no absent class: all 6 are seen",
    )
    Path("absent.csv").write_text("text,label\ndog dog,dog\n")
    refuses(
        f"{line} {texts}/train.csv --held-out absent.csv",
        "absent.csv has no sample of a seen class, which gamma is estimated from; give such samples too",
    )


def test_a_second_gamma(texts, work, run, refuses):
    run(f"{texts}/text-model --train {texts}/train.csv --out new")
    refuses(
        f"new --train {texts}/train.csv --out again",
        "new has gamma in its head already, as its configuration records; use it as it is, or start from the directory "
        "that it was made from",
    )
    refuses(f"{texts}/text-model --train {texts}/train.csv --out new", "new exists already, and is not replaced; ")


def test_models_that_cannot_be_folded(texts, work, refuses):
    rest = f"--train {texts}/train.csv --out new"
    shutil.copytree(texts / "text-model", "model")
    config = json.loads(Path("model/config.json").read_text())

    def change(**entries):
        Path("model/config.json").write_text(json.dumps({**config, **entries}))

    change(problem_type="multi_label_classification")
    refuses(f"model {rest}", "model is for multi_label_classification; gamma is for classifiers that give each sample ")
    change(architectures=["DistilBertForMaskedLM"])
    refuses(
        f"model {rest}", "model holds DistilBertForMaskedLM, which is no classifier of texts, words or images with a "
    )
    change(attn_implementation="someone/kernel")
    refuses(f"model {rest}", "model asks for the kernel someone/kernel of the Hub, which is code, and none was run; ")
    Path("model/config.json").write_text("{")
    refuses(f"model {rest}", "model/config.json is no JSON (")
    change()

    weights = load_file("model/model.safetensors")
    Path("model/model.safetensors").unlink()
    refuses(f"model {rest}", "model has no model.safetensors; give a directory of a saved model")
    marker = work / "unpickled"

    class Bomb:
        def __reduce__(self):
            return open, (str(marker), "w")

    torch.save({**weights, "bomb": Bomb()}, "model/pytorch_model.bin")
    refuses(f"model {rest}", "model has its weights in pytorch_model.bin, a pickle, which finecal never reads; where ")
    assert not marker.exists()
    save_file({name: tensor for name, tensor in weights.items() if "classifier" not in name}, "model/model.safetensors")
    refuses(
        f"model {rest}", "model: the weights lack classifier.bias (4 in all), which would be drawn at random; save "
    )
    Path("model/model.safetensors").write_bytes(b"damaged")
    refuses(f"model {rest}", "model: the model cannot be loaded (")


def test_heads_without_a_bias(texts, work, refuses):
    config = LlamaConfig(
        vocab_size=8,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_labels=6,
        pad_token_id=0,
    )
    LlamaForSequenceClassification(config).save_pretrained("model")
    made.make_tokenizer().save_pretrained("model")
    refuses(
        f"model --train {texts}/train.csv --out new", "the head score has no bias, and one that is added now would "
    )


def test_no_tokenizer(texts, work, refuses):
    AutoModelForSequenceClassification.from_pretrained(texts / "text-model").save_pretrained("model")
    refuses(
        f"model --train {texts}/train.csv --out new",
        "model has no tokenizer; save the one of the training there: save_pretrained('model')",
    )


def test_no_gap(texts, work, refuses):
    model = made.pretrained_text_model()
    with torch.no_grad():
        model.classifier.bias[~MASK] += 3.0
    model.save_pretrained("model")
    made.make_tokenizer().save_pretrained("model")
    refuses(f"model --train {texts}/train.csv --out new", "gamma is 0 (estimate_gamma(")


def test_code_that_comes_with_a_model(texts, work, run, refuses):
    marker = work / "it-ran"
    shutil.copytree(texts / "text-model", "model")
    made.add_code(Path("model"), marker)
    rest = f"--train {texts}/train.csv --out new"
    refuses(
        f"model {rest}",
        "model comes with code of its own (own.Own, own.OwnModel), and none was run; read it, and say ",
    )
    shutil.copytree(texts / "text-model", "tokenizer")
    path = Path("tokenizer/tokenizer_config.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "auto_map": {"AutoTokenizer": ["own.Own", None]}}))
    shutil.copy("model/own.py", "tokenizer")
    refuses(f"tokenizer {rest}", "tokenizer comes with code of its own (")
    assert not marker.exists()
    out = run(f"model {rest} --trust-remote-code")
    assert marker.exists()
    assert out.endswith('model="new", trust_remote_code=True)\n')
    assert Path("new/own.py").read_bytes() == Path("model/own.py").read_bytes()


# --- interruptions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", ["copy_weights", "write_record", "write_card", "copy_others"])
def test_a_disk_that_is_full_leaves_nothing(texts, work, refuses, monkeypatch, function):
    whole = getattr(_saved_transformers, function)

    def full(*args, **kwargs):
        whole(*args, **kwargs)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_saved_transformers, function, full)
    refuses(f"{texts}/text-model --train {texts}/train.csv --out new", "[Errno 28] No space left on device")


def test_a_wrong_copy_leaves_nothing(texts, work, refuses, monkeypatch):
    whole = _saved_model.copy_weights
    monkeypatch.setattr(
        _saved_transformers, "copy_weights", lambda file, target, names, added: whole(file, target, names, added / 2)
    )
    refuses(
        f"{texts}/text-model --train {texts}/train.csv --out new",
        f"the copy of {texts}/text-model was loaded to try it, and does not give the logits that it should; ",
    )


def test_ctrl_c_leaves_nothing(texts, work, monkeypatch, capsys):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(_saved_transformers, "write_card", interrupted)
    assert main(f"fold {texts}/text-model --train {texts}/train.csv --out new --no-progress".split()) == 130
    assert capsys.readouterr().err.endswith("finecal fold: interrupted\n")
    assert list(work.iterdir()) == []


KILLED = """
import os, sys
from finecal._cli import main
from finecal.integrations import _saved_transformers
_saved_transformers.write_card = lambda *args: os._exit(9)
main(sys.argv[1:])
"""


@pytest.mark.skipif(os.name != "posix", reason="locks of POSIX")
def test_a_killed_process_leaves_no_directory(texts, work, run):
    line = f"{texts}/text-model --train {texts}/train.csv --out new"
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(finecal.__file__))}
    done = subprocess.run([sys.executable, "-c", KILLED, "fold", *line.split()], env=environment, capture_output=True)
    assert done.returncode == 9
    assert [path.suffix for path in work.iterdir()] == [".tmp"]
    run(line)
    assert [path.name for path in work.iterdir()] == ["new"]


def test_a_model_on_the_way_is_in_eval_mode_and_in_its_dtype(texts):
    saved = _saved_transformers.SavedTransformer(texts / "text-model", device=torch.device("cpu"))
    assert not saved.model.training
    assert saved.class_names == NAMES
    batches = list(_saved_model.Batches(saved, ["ant", "bee cat", "dog"], torch.tensor([0, 1, 3]), 2))
    assert [labels.tolist() for _, labels in batches] == [[0, 1], [3]]
    assert batches[0][0]["input_ids"].shape == (2, 2)
    assert batches[1][0]["input_ids"].shape == (1, 1)
    long = saved.inputs(["ant " * 40])
    assert long["input_ids"].shape == (1, 16)
    short = _saved_transformers.SavedTransformer(texts / "text-model", device=torch.device("cpu"), max_length=5)
    assert short.inputs(["ant " * 40])["input_ids"].shape == (1, 5)
    assert math.isfinite(float(saved.model(**long).logits.detach().sum()))


def test_texts_are_cut_at_the_length_that_is_said(texts, work, run_json):
    """Only the first word counts; the line that loads the copy cuts there too."""
    rows = (texts / "held_out.csv").read_text().splitlines()
    (work / "long.csv").write_text("\n".join([rows[0], *(row.replace('",', ' ant ant ant",') for row in rows[1:])]))
    line = f"{texts}/text-model --train {texts}/train.csv --held-out long.csv --out"
    whole, cut = run_json(f"{line} whole"), run_json(f"{line} cut --max-length 3")
    saved = _saved_transformers.SavedTransformer(texts / "text-model", device=torch.device("cpu"), max_length=3)
    data = [row.strip('"').split('",') for row in rows[1:]]
    found = saved.model(**saved.inputs([" ".join(text.split()[:3]) for text, _ in data])).logits.argmax(1).tolist()
    right = [index == NAMES.index(label) for index, (_, label) in zip(found, data, strict=True)]
    assert cut["before"]["acc_all"] == pytest.approx(sum(right) / len(right))
    assert cut["before"]["acc_all"] != whole["before"]["acc_all"]
    classify = eval(cut["load"], {"transformers": transformers})
    assert classify("ant ant ant bee bee bee bee") == classify("ant ant ant")
    assert "max_length" not in whole["load"]


def test_lengths_that_the_model_does_not_take(texts, images, work, refuses):
    rows = (texts / "train.csv").read_text()
    (work / "long.csv").write_text(rows.replace('",', ' ant ant ant ant ant ant ant ant ant ant ant",'))
    line = f"{texts}/text-model --train long.csv --out new --max-length"
    error = refuses(f"{line} 17", "--max-length is 17, and the model fails on such texts (")
    assert error.endswith("pass fewer tokens, or leave it out")
    refuses(
        f"{images}/image-model --train {images}/train --out new --max-length 8",
        "--max-length is about texts, and",
    )


# --- the page of the documentation ------------------------------------------------------------------------------------


def words(text):
    """Numbers differ with the processor, and the width of columns with them."""
    return re.sub(r"-{2,}:?|[-+]?\d[\d.]*", "#", text).split()


def test_the_page_shows_what_is_printed(texts, images, adapter, checkpoint, tmp_path, monkeypatch, capsys):
    shown = blocks("docs/how-to/saving.md", "console")
    commands = [block.replace("\\\n", "")[2:] for block in shown if "fold" in block]
    of_texts, shown = blocks("docs/how-to/saving.md", "text")
    expected = [of_texts, None, None, None]
    for command, folder, text in zip(commands, (texts, images, adapter, checkpoint), expected, strict=True):
        monkeypatch.chdir(shutil.copytree(folder, tmp_path / folder.name))
        assert main(shlex.split(command)[1:]) == 0
        out = capsys.readouterr().out
        assert text is None or words(out) == words(text)
    monkeypatch.chdir(tmp_path / texts.name)
    (block,) = (block for block in blocks("docs/how-to/saving.md", "python") if "pipeline" in block)
    exec(block, {})
    assert words(capsys.readouterr().out) == words(shown)
