"""``finecal restore``: saved models of Hugging Face and timm whose head was made anew, and what is refused."""

import json
import shutil
import subprocess
import sys

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification, pipeline

import finecal
import saved_models as made
from finecal._cli.arguments import main

NAMES, TUNED = made.NAMES, [made.NAMES[index] for index in made.SEEN]
ORDER = ["elk", "ant", "cat"]
"""The classes of the new head, in another order than the old one has them."""
LABELS = {"id2label": dict(enumerate(ORDER)), "label2id": {name: index for index, name in enumerate(ORDER)}}
pytestmark = [
    pytest.mark.filterwarnings("ignore::finecal.FinecalWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]


def renumbered(labels):
    return torch.tensor([ORDER.index(NAMES[label]) for label in labels])


def with_new_head(auto, folder):
    torch.manual_seed(1)
    return auto.from_pretrained(folder, ignore_mismatched_sizes=True, num_labels=3, **LABELS)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    made.pretrained_text_model().save_pretrained(folder / "pretrained")
    model = with_new_head(AutoModelForSequenceClassification, folder / "pretrained")
    sentences, labels = made.sentences(150, made.SEEN, seed=2)
    made.fit(lambda **x: model(**x).logits, model.parameters(), made.encoded(sentences), renumbered(labels), 40, 2e-3)
    model.save_pretrained(folder / "tuned")
    (folder / "tuned" / "pytorch_model.bin").write_bytes(b"old")
    (folder / "tuned" / "notes.txt").write_text("mine")
    (folder / "tuned" / "README.md").write_text("# My model\n")
    for name in ("pretrained", "tuned"):
        made.make_tokenizer().save_pretrained(folder / name)
    made.write_texts(folder)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    made.save_image_model(folder)
    model = with_new_head(AutoModelForImageClassification, folder / "image-model")
    model.save_pretrained(folder / "tuned")
    for file in (folder / "image-model").glob("*processor*"):
        (folder / "tuned" / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(capsys, work):
    def run(line):
        assert main(f"restore {line} --no-progress".split()) == 0
        return capsys.readouterr().out

    return run


def in_memory(texts, **options):
    """The model that `restore_head` gives for the same samples."""
    model = AutoModelForSequenceClassification.from_pretrained(texts / "tuned").eval()
    pretrained = AutoModelForSequenceClassification.from_pretrained(texts / "pretrained").eval()
    sentences, labels = made.sentences(150, made.SEEN, seed=2)
    batches = [(made.encoded(sentences), renumbered(labels))]
    return finecal.restore_head(model, pretrained, batches, verbose=False, **options)


def text_logits(model, sentences):
    with torch.no_grad():
        return model.eval()(**made.encoded(sentences)).logits


def test_texts(texts, run, work):
    out = run(f"{texts}/tuned {texts}/pretrained --data {texts}/train.csv --out new")
    assert "3 fine-tuned, 3 restored" in out
    assert 'transformers.pipeline("text-classification", model="new")' in out
    others, _ = made.sentences(60, range(6), seed=7)
    config = json.loads((work / "new/config.json").read_text())
    assert config["id2label"] == {str(index): name for index, name in enumerate(NAMES)}
    assert config["label2id"] == {name: index for index, name in enumerate(NAMES)}
    model = AutoModelForSequenceClassification.from_pretrained("new")
    assert type(model).__name__ == "DistilBertForSequenceClassification"
    expected = text_logits(in_memory(texts), others)
    torch.testing.assert_close(text_logits(model, others), expected, rtol=1e-4, atol=1e-4)
    found = [entry["label"] for entry in pipeline("text-classification", model="new")(others)]
    assert found == [NAMES[index] for index in expected.argmax(1)]
    assert set(found) == set(NAMES)  # the absent ones are back


def test_only_the_head_differs(texts, run, work):
    run(f"{texts}/tuned {texts}/pretrained --data {texts}/train.csv --out new")
    before, after = load_file(texts / "tuned/model.safetensors"), load_file(work / "new/model.safetensors")
    assert before.keys() == after.keys()
    changed = {name for name in before if before[name].shape != after[name].shape}
    assert changed == {"classifier.weight", "classifier.bias"}
    assert all(torch.equal(before[name], after[name]) for name in before.keys() - changed)
    expected = in_memory(texts).classifier
    torch.testing.assert_close(after["classifier.weight"], expected.weight.detach(), rtol=1e-4, atol=1e-4)
    record = json.loads((work / "new/config.json").read_text())["finecal_restored"]
    assert record["old_share"] == pytest.approx(expected.finecal_restored["old_share"], rel=1e-3)
    assert not (work / "new/pytorch_model.bin").exists()
    assert (work / "new/notes.txt").read_text() == "mine"
    card = (work / "new/README.md").read_text()
    assert card.startswith("# My model\n\n## Head restored")
    assert "Classes of the fine-tuning: elk, ant, cat." in card


def test_accuracies_of_held_out_samples(texts, run):
    line = f"{texts}/tuned {texts}/pretrained --data {texts}/train.csv --held-out {texts}/held_out.csv"
    record = json.loads(run(f"{line} --out new --json"))
    sentences, labels = made.sentences(180, range(6), seed=3)
    labels = torch.tensor(labels)
    pretrained = AutoModelForSequenceClassification.from_pretrained(texts / "pretrained")
    models = pretrained, AutoModelForSequenceClassification.from_pretrained("new")
    right = [text_logits(model, sentences).argmax(1) == labels for model in models]
    is_seen = made.MASK[labels]
    expected = {
        f"fine-tuned classes, {int(is_seen.sum())} samples": [float(hits[is_seen].double().mean()) for hits in right],
        f"restored classes, {int((~is_seen).sum())} samples": [float(hits[~is_seen].double().mean()) for hits in right],
        "all, 180 samples": [float(hits.double().mean()) for hits in right],
    }
    assert record["accuracies"] == expected
    assert record["class_names"] == list(NAMES)


def test_prototypes_of_unlabelled_samples(texts, run):
    line = f"{texts}/tuned {texts}/pretrained --data {texts}/train.csv --unlabelled {texts}/held_out.csv"
    run(f"{line} --prototypes --out new")
    sentences, _ = made.sentences(180, range(6), seed=3)
    expected = in_memory(texts, unlabelled_loader=[made.encoded(sentences)], with_prototypes=True)
    model = AutoModelForSequenceClassification.from_pretrained("new")
    torch.testing.assert_close(text_logits(model, sentences), text_logits(expected, sentences), rtol=1e-3, atol=1e-3)


def test_file_says_which_class_each_is(texts, run, work):
    (work / "by_name.txt").write_text("elk\nant\ncat\n")
    line = f"{texts}/tuned {texts}/pretrained --data {texts}/train.csv"
    (work / "by_index.txt").write_text("4\n0\n2\n")
    run(f"{line} --out by_names")
    for kind in ("by_name", "by_index"):
        run(f"{line} --new-to-old {kind}.txt --out {kind}")
        assert load_file(f"{kind}/model.safetensors")["classifier.weight"].equal(
            load_file("by_names/model.safetensors")["classifier.weight"]
        )


def test_class_of_its_own(texts, run, work):
    (work / "map.txt").write_text("4\n-1\n2\n")
    config = json.loads((texts / "tuned/config.json").read_text())
    shutil.copytree(texts / "tuned", "renamed")
    config["id2label"]["1"] = "emu"
    config["label2id"] = {"elk": 0, "emu": 1, "cat": 2}
    (work / "renamed/config.json").write_text(json.dumps(config))
    table = (texts / "train.csv").read_text().replace(",ant", ",emu")
    (work / "train.csv").write_text(table)
    out = run(f"renamed {texts}/pretrained --data train.csv --new-to-old map.txt --out new")
    assert "3 fine-tuned (1 that the pre-trained model does not have), 4 restored" in out
    assert json.loads((work / "new/config.json").read_text())["id2label"]["6"] == "emu"


def test_names_that_two_old_classes_have(texts, run, refuses, work):
    """As "crane" in ImageNet."""
    names = ["ant", "bee", "cat", "bee", "elk", "fox"]
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: names.index(name) for name in names}}
    copy_with(texts / "pretrained", work / "pretrained", **labels)
    run(f"{texts}/tuned pretrained --data {texts}/train.csv --out new")
    assert list(json.loads((work / "new/config.json").read_text())["id2label"].values()) == names
    labels = {"id2label": {0: "elk", 1: "bee", 2: "cat"}, "label2id": {"elk": 0, "bee": 1, "cat": 2}}
    copy_with(texts / "tuned", work / "tuned", **labels)
    (work / "train.csv").write_text((texts / "train.csv").read_text().replace(",ant", ",bee"))
    refuses("tuned pretrained --data train.csv --out other", "pretrained has 2 classes of the name 'bee'; say by")
    (work / "map.txt").write_text("4\n3\n2\n")
    run("tuned pretrained --data train.csv --new-to-old map.txt --out other")
    before, after = (load_file(f"{name}/model.safetensors")["classifier.weight"] for name in ("tuned", "other"))
    alike = torch.nn.functional.cosine_similarity(after[:, None], before[None], dim=2)
    assert alike.argmax(0).tolist() == [4, 3, 2]


def test_model_without_names_and_weights_in_parts(texts, run, work):
    """The lines of the file name its classes, and its weights become one file."""
    AutoModelForSequenceClassification.from_pretrained(texts / "tuned").save_pretrained("tuned", max_shard_size="5KB")
    made.make_tokenizer().save_pretrained("tuned")
    config = json.loads((work / "tuned/config.json").read_text())
    (work / "tuned/config.json").write_text(json.dumps({**config, **placeholders(3)}))
    (work / "map.txt").write_text("elk\nant\ncat\n")
    assert len(list(work.glob("tuned/*.safetensors"))) > 1
    run(f"tuned {texts}/pretrained --data {texts}/train.csv --new-to-old map.txt --out new")
    assert [path.name for path in work.glob("new/*.safetensors*")] == ["model.safetensors"]
    assert json.loads((work / "new/config.json").read_text())["label2id"]["elk"] == 4


def test_images(images, run):
    run(f"{images}/tuned {images}/image-model --data {images}/train --held-out {images}/held-out --out new")
    model = AutoModelForImageClassification.from_pretrained("new")
    assert model.classifier.out_features == model.config.num_labels == 6
    assert [model.config.id2label[index] for index in range(6)] == list(NAMES)


def test_loads_without_finecal(texts, run, work):
    run(f"{texts}/tuned {texts}/pretrained --data {texts}/train.csv --out new")
    others, _ = made.sentences(12, range(6), seed=7)
    logits = text_logits(AutoModelForSequenceClassification.from_pretrained("new"), others)
    code = (
        "import sys, json; sys.modules['finecal'] = None\n"
        "from transformers import AutoModelForSequenceClassification as A, AutoTokenizer as T\n"
        f"x = T.from_pretrained('new')({others!r}, padding=True, return_tensors='pt')\n"
        "print(json.dumps(A.from_pretrained('new')(**x).logits.tolist()))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=work)
    torch.testing.assert_close(torch.tensor(json.loads(result.stdout.splitlines()[-1])), logits, rtol=1e-4, atol=1e-5)


# --- timm -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def of_timm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("timm")
    made.save_timm_with_new_head(folder, ORDER)
    (folder / "tuned" / "notes.txt").write_text("mine")
    (folder / "tuned" / "pytorch_model.bin").write_bytes(b"old")
    (folder / "tuned" / "README.md").write_text("# My model\n")
    return folder


def timm_model(folder, name, classes):
    model = timm.create_model(made.TIMM_NAME, num_classes=classes).eval()
    model.load_state_dict(load_file(folder / name / "model.safetensors"))
    return model


def timm_pixels(folder):
    """The images in a folder, and the names of their classes."""
    transform = timm.data.create_transform(
        **timm.data.resolve_model_data_config(timm.create_model(made.TIMM_NAME)), is_training=False
    )
    files = sorted(folder.rglob("*.png"), key=lambda file: (file.parent.name, file.name))
    pixels = torch.stack([transform(Image.open(file).convert("RGB")) for file in files])
    return pixels, [file.parent.name for file in files]


def logits_of(model, pixels):
    with torch.no_grad():
        return model.eval()(pixels)


def timm_in_memory(folder):
    pixels, labels = timm_pixels(folder / "train")
    model, pretrained = timm_model(folder, "tuned", 3), timm_model(folder, "pretrained", 6)
    batches = [(pixels, torch.tensor([ORDER.index(label) for label in labels]))]
    return finecal.restore_head(model, pretrained, batches, new_to_old=(ORDER, NAMES), verbose=False)


def test_timm_directories(of_timm, run, work):
    out = run(f"{of_timm}/tuned {of_timm}/pretrained --data {of_timm}/train --held-out {of_timm}/held-out --out new")
    assert "3 fine-tuned, 3 restored" in out
    assert 'timm.create_model("local-dir:new", pretrained=True)' in out
    assert "left out, as they have the weights before: pytorch_model.bin" in out
    pixels, labels = timm_pixels(of_timm / "held-out")
    expected = logits_of(timm_in_memory(of_timm), pixels)
    found = logits_of(timm.create_model("local-dir:new", pretrained=True), pixels)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    right = found.argmax(1) == torch.tensor([NAMES.index(label) for label in labels])
    assert f"{100 * float(right.double().mean()):.1f} |" in next(
        line for line in out.splitlines() if "| all, 60" in line
    )
    files = sorted(map(str, (of_timm / "held-out").rglob("*.png")))[:3]
    assert {entry["label"] for entry in pipeline("image-classification", model="new", top_k=6)(files[0])} == set(NAMES)
    config = json.loads((work / "new/config.json").read_text())
    assert (config["num_classes"], config["label_names"]) == (6, list(NAMES))
    assert (work / "new/README.md").read_text().startswith("# My model\n\n## Head restored")
    assert (work / "new/notes.txt").read_text() == "mine"


def test_timm_files(of_timm, run, work):
    """As `train.py` writes them: the names of the classes are in other files."""
    tuned, pretrained = (f"{of_timm}/{name}/model.safetensors" for name in ("tuned", "pretrained"))
    line = f"--timm {made.TIMM_NAME} {tuned} {pretrained} --data {of_timm}/train --class-names {of_timm}/tuned.txt"
    out = run(f"{line} --pretrained-names {of_timm}/pretrained.txt --out new.safetensors")
    assert f'timm.create_model("{made.TIMM_NAME}", num_classes=6, checkpoint_path="new.safetensors")' in out
    (work / "map.txt").write_text("4\n0\n2\n")
    run(f"{line} --new-to-old map.txt --out by_index")
    pretrained = f"{of_timm}/pretrained"  # which has the names of its classes
    run(f"--timm {made.TIMM_NAME} {tuned} {pretrained} --data {of_timm}/train --new-to-old map.txt --out beside")
    pixels, _ = timm_pixels(of_timm / "held-out")
    expected = logits_of(timm_in_memory(of_timm), pixels)
    for model in (
        timm.create_model(made.TIMM_NAME, num_classes=6, checkpoint_path="new.safetensors"),
        timm.create_model("local-dir:by_index", pretrained=True),
        timm.create_model("local-dir:beside", pretrained=True),
    ):
        torch.testing.assert_close(logits_of(model, pixels), expected, rtol=1e-4, atol=1e-4)
    names = [json.loads((work / name / "config.json").read_text())["label_names"] for name in ("by_index", "beside")]
    assert names == [["ant", "LABEL_1", "cat", "LABEL_3", "elk", "LABEL_5"], list(NAMES)]


def test_timm_model_loads_without_finecal(of_timm, run, work):
    run(f"{of_timm}/tuned {of_timm}/pretrained --data {of_timm}/train --out new")
    pixels, _ = timm_pixels(of_timm / "held-out")
    torch.save((pixels, logits_of(timm_in_memory(of_timm), pixels)), work / "expected.pt")
    code = (
        "import sys; sys.modules['finecal'] = None\n"
        "import timm, torch\n"
        "pixels, logits = torch.load('expected.pt')\n"
        "with torch.no_grad():\n"
        "    found = timm.create_model('local-dir:new', pretrained=True).eval()(pixels)\n"
        "torch.testing.assert_close(found, logits, rtol=1e-4, atol=1e-4)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=work)


def test_timm_refuses(of_timm, run, refuses, work):
    tuned, pretrained = (f"{of_timm}/{name}/model.safetensors" for name in ("tuned", "pretrained"))
    line = f"--timm {made.TIMM_NAME} {tuned} {pretrained} --data {of_timm}/train --out new"
    refuses(line, "tuned/model.safetensors has no class names; give them by --class-names, or say by --new-to-old")
    refuses(line.replace(f"--timm {made.TIMM_NAME} ", ""), "model.safetensors is no directory; give a directory")
    refuses(f"{line} --max-length 3", "--max-length is about directories of Hugging Face, not about timm")
    both = f"{of_timm}/tuned {of_timm}/pretrained --data {of_timm}/train"
    refuses(f"--timm {made.TIMM_NAME} {both} --out new", "is about files of weights; give one, or leave it out")
    refuses(f"{both} --max-length 3 --out new", "/tuned was saved by timm; leave it out")
    torch.save({"state_dict": {}}, work / "best.pth.tar")
    refuses(line.replace(tuned, "best.pth.tar"), "best.pth.tar is no .safetensors, and finecal never reads a pickle")
    (work / "map.txt").write_text("4\n0\n2\n")
    refuses(f"{line} --new-to-old map.txt", "give the names by --class-names")
    run(f"{both} --out restored")
    refuses(f"restored {of_timm}/pretrained --data {of_timm}/train --out new", "restored has gamma in its head already")
    shutil.copyfile("restored/model.safetensors", "restored.safetensors")
    refuses(line.replace(tuned, "restored.safetensors"), "restored.safetensors has gamma in its head already")
    shutil.copytree(of_timm / "pretrained", work / "pickled")
    (work / "pickled/model.safetensors").rename(work / "pickled/pytorch_model.bin")
    refuses(both.replace(f"{of_timm}/pretrained", "pickled") + " --out new", "a pickle, which finecal never reads")


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.fixture
def refuses(capsys, work):
    """Run a call that fails: a sentence that has this, exit status 2, and nothing written."""

    def refuses(line, part):
        before = sorted(work.rglob("*"))
        with pytest.raises(SystemExit) as caught:
            main(f"restore {line} --no-progress".split())
        error = capsys.readouterr().err.splitlines()[-1]
        assert (caught.value.code, part in error) == (2, True), error
        assert sorted(work.rglob("*")) == before

    return refuses


def copy_with(source, target, **entries):
    shutil.copytree(source, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, **entries}))


def placeholders(count):
    names = {f"LABEL_{index}": index for index in range(count)}
    return {"label2id": names, "id2label": {index: name for name, index in names.items()}}


def test_refuses_models_of_the_same_classes(texts, refuses):
    line = f"{texts}/pretrained {texts}/pretrained --data {texts}/train.csv --out new"
    refuses(line, "has all 6 classes of")


def test_refuses_classes_without_names_in_common(texts, refuses, work):
    copy_with(texts / "tuned", work / "numbered", **placeholders(3))
    refuses(
        f"numbered {texts}/pretrained --data {texts}/train.csv --out new",
        "numbered has no class names; give them by --class-names",
    )
    other = {"label2id": {"x": 0, "y": 1, "z": 2}, "id2label": {0: "x", 1: "y", 2: "z"}}
    copy_with(texts / "tuned", work / "others", **other)
    refuses(f"others {texts}/pretrained --data {texts}/train.csv --out new", "say by --new-to-old which old class")


def test_refuses_files_that_name_a_class_twice(texts, refuses, work):
    (work / "map.txt").write_text("elk\nelk\ncat\n")
    line = f"{texts}/tuned {texts}/pretrained --data {texts}/train.csv --new-to-old map.txt --out new"
    refuses(line, "map.txt gives the old class 'elk' to two new ones")
    (work / "map.txt").write_text("elk\n-1\ncat\n")
    refuses(line, "map.txt says that 'ant' is no old class")


def test_refuses_folded_models(texts, refuses, work):
    copy_with(texts / "tuned", work / "folded", finecal_folded={"gamma": 1.0})
    refuses(f"folded {texts}/pretrained --data {texts}/train.csv --out new", "has gamma in its head already")


def test_refuses_gamma_for_what_it_has_written(texts, run, work, capsys):
    """Gamma is in the head, as the configuration says."""
    run(f"{texts}/tuned {texts}/pretrained --data {texts}/train.csv --out new")
    assert "finecal_restored" in json.loads((work / "new/config.json").read_text())
    for line in (
        f"fold new --train {texts}/train.csv --seen ant,cat,elk --out again",
        f"restore new {texts}/pretrained --data {texts}/train.csv --out again",
    ):
        with pytest.raises(SystemExit):
            main(line.split())
        assert "new has gamma in its head already, as its configuration records" in capsys.readouterr().err


def test_adapter_with_a_new_head(texts, run, work):
    """It does not say what its classes are called; the whole model is written."""
    from peft import LoraConfig, get_peft_model

    settings = {"target_modules": ["q_lin", "v_lin"], "modules_to_save": ["pre_classifier", "classifier"]}
    model = get_peft_model(
        with_new_head(AutoModelForSequenceClassification, texts / "pretrained"), LoraConfig(**settings)
    )
    sentences, labels = made.sentences(150, made.SEEN, seed=2)
    made.fit(lambda **x: model(**x).logits, model.parameters(), made.encoded(sentences), renumbered(labels), 40, 2e-3)
    model.save_pretrained(work / "adapter")
    (work / "order.txt").write_text("\n".join(ORDER))
    run(f"adapter {texts}/pretrained --data {texts}/train.csv --new-to-old order.txt --out new")
    merged = model.merge_and_unload().eval()
    pretrained = AutoModelForSequenceClassification.from_pretrained(texts / "pretrained").eval()
    batches = [(made.encoded(sentences), renumbered(labels))]
    expected = finecal.restore_head(merged, pretrained, batches, verbose=False, new_to_old=(ORDER, NAMES))
    found = AutoModelForSequenceClassification.from_pretrained("new")
    assert found.config.id2label == dict(enumerate(NAMES))
    others, _ = made.sentences(60, range(6), seed=7)
    torch.testing.assert_close(text_logits(found, others), text_logits(expected, others), rtol=1e-3, atol=1e-3)
    assert not (work / "new/adapter_config.json").exists()


def test_refuses_pickles(texts, refuses, work):
    copy_with(texts / "tuned", work / "pickled")
    (work / "pickled/model.safetensors").unlink()
    refuses(f"pickled {texts}/pretrained --data {texts}/train.csv --out new", "a pickle, which finecal never reads")


def test_refuses_other_tokenizers(texts, refuses, work):
    copy_with(texts / "pretrained", work / "pretrained")
    tokenizer = json.loads((work / "pretrained/tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["ant"], vocabulary["cat"] = vocabulary["cat"], vocabulary["ant"]
    (work / "pretrained/tokenizer.json").write_text(json.dumps(tokenizer))
    refuses(f"{texts}/tuned pretrained --data {texts}/train.csv --out new", "the tokenizers of")
