"""What the page on the list of classes says of three libraries, on small scripts that are built like theirs."""

import copy
import re
from pathlib import Path

import datasets
import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from timm.data import create_dataset
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.models import get_model
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.transforms.functional import pil_to_tensor
from transformers import AutoConfig, AutoModelForSequenceClassification, DistilBertConfig

import finecal
from pages import ROOT, blocks

PAGE = "docs/how-to/list-of-classes.md"
NAMES = ["cow", "ant", "hen", "dog", "cat", "bee"]  # the order of the model's outputs, not of the alphabet
SEEN = ["hen", "bee", "cow"]
MASK = finecal.seen_mask_from_names(SEEN, NAMES)
pytestmark = [
    pytest.mark.filterwarnings("ignore::finecal.FinecalWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:'pin_memory' argument", "ignore:unclosed file:ResourceWarning"),  # timm's
]


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)


# --- data: a class is one bright cell of a grid, or one token; the fine-tuning data are dimmer ------------------------


def write_images(folder, names, n, contrast, seed):
    rng = np.random.default_rng(seed)
    for number in range(n):
        name = names[number % len(names)]
        image = rng.normal(110, 25, (16, 16, 3))
        row, column = divmod(NAMES.index(name), 3)
        image[8 * row : 8 * row + 8, 5 * column : 5 * column + 5] += contrast
        Path(folder, name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(Path(folder, name, f"{number}.png"))
    return folder


@pytest.fixture
def folders():
    write_images("source", NAMES, 240, 90, 0)
    write_images("train", SEEN, 120, 25, 1)
    write_images("test", NAMES, 360, 25, 2)
    Path("classes.txt").write_text("\n".join(NAMES))


def transform(image):
    return pil_to_tensor(image) / 64 - 2


def texts(names, n, seed, share):
    """Words of which a share says the class; the labels are words, too, as in a CSV file."""
    rng = np.random.default_rng(seed)
    labels = [names[number % len(names)] for number in range(n)]
    tokens = rng.integers(len(NAMES), size=(n, 8))
    own = rng.random((n, 8)) < share
    return np.where(own, [[NAMES.index(label)] for label in labels], tokens) + 1, labels


# --- what every script does -------------------------------------------------------------------------------------------


def train(model, batches, epochs, learning_rate):
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate, weight_decay=0.0)
    model.train()
    for _ in range(epochs):
        for inputs, labels in batches:
            optimizer.zero_grad()
            output = model(inputs)
            torch.nn.functional.cross_entropy(getattr(output, "logits", output), labels).backward()
            optimizer.step()
    return model.eval()


def loader(data):
    return DataLoader(data, batch_size=40, shuffle=True, generator=torch.Generator().manual_seed(0))


def logits_of(model, batches):
    with torch.no_grad():
        outputs = [(model(inputs), labels) for inputs, labels in batches]
    return torch.cat([getattr(o, "logits", o) for o, _ in outputs]), torch.cat([labels for _, labels in outputs])


def head_of(model):
    """Return the last weight matrix of a model, and its bias."""
    *_, weight, bias = model.state_dict().values()
    return weight, bias


def same_head(model, other):
    return all(torch.equal(a, b) for a, b in zip(head_of(model), head_of(other), strict=True))


def check_gain(fine_tuned, train_batches, test_batches, mask):
    """Gamma 0 leaves absent classes behind, finecal's estimate gets at least half of what the oracle does."""
    logits, labels = logits_of(fine_tuned, train_batches)
    assert np.array_equal(finecal.seen_mask_from_labels(labels.numpy(), logits.shape[1]), mask)
    estimate = finecal.estimate_gamma(mask, train=(logits, labels))
    curve = finecal.tradeoff_curve(*logits_of(fine_tuned, test_batches), mask)
    before, after, oracle = (curve.at(gamma).acc_all for gamma in (0.0, estimate, curve.best()))
    assert oracle > before + 0.05
    assert after > before + 0.5 * (oracle - before)


def no_absent_class(model, batches):
    with pytest.raises(ValueError, match="no absent class: all 3 are seen.* with the full list of classes"):
        finecal.calibrate_model(model, batches, is_held_out=False, verbose=False)


# --- timm -------------------------------------------------------------------------------------------------------------


def timm_script(root, num_classes, class_map="", initial_checkpoint="", pretrained_path=None):
    """Make the model and the data as timm's train.py does of the arguments of these names."""
    overlay = {"pretrained_cfg_overlay": {"file": pretrained_path, "num_classes": -1}} if pretrained_path else {}
    model = timm.create_model(
        "test_resnet.r160_in1k",
        pretrained=pretrained_path is not None,
        num_classes=num_classes,
        checkpoint_path=initial_checkpoint,
        **overlay,
    )
    return model, create_dataset("", root=root, is_training=True, class_map=class_map, transform=transform)


def test_timm(folders):
    model, source = timm_script("source", 6, "classes.txt")
    assert source.reader.class_to_idx == {name: index for index, name in enumerate(NAMES)}
    train(model, loader(source), 8, 3e-3)
    torch.save({"state_dict": model.state_dict()}, "pretrained.pt")

    # As it was: three ways to lose the rows, and one to train the wrong ones.
    with pytest.raises(RuntimeError, match="size mismatch"):
        timm_script("train", 3, initial_checkpoint="pretrained.pt")
    shrunken, data = timm_script("train", 3, pretrained_path="pretrained.pt")
    assert head_of(shrunken)[0].shape[0] == 3
    no_absent_class(shrunken, loader(data))
    torch.manual_seed(1)
    anew, _ = timm_script("train", 6, "classes.txt", pretrained_path="pretrained.pt")
    assert head_of(anew)[0].shape == head_of(model)[0].shape
    assert not same_head(anew, model)
    _, numbered_anew = timm_script("train", 6)
    assert {label for _, label in numbered_anew} == {0, 1, 2}

    # With the lines, by their classes.txt.
    tuned, data = timm_script("train", 6, "classes.txt", "pretrained.pt")
    assert same_head(tuned, model)
    assert {label for _, label in data} == {NAMES.index(name) for name in SEEN}
    assert all(NAMES[label] == Path(data.reader.samples[i][0]).parent.name for i, (_, label) in enumerate(data))
    test = timm_script("test", 6, "classes.txt")[1]
    check_gain(train(tuned, loader(data), 12, 3e-3), loader(data), loader(test), MASK)

    # Images of folders that the list does not name are left out without a word.
    Path("classes.txt").write_text("\n".join(NAMES).replace("hen", "Hen"))
    assert len(timm_script("train", 6, "classes.txt")[1]) == 80


# --- torchvision ------------------------------------------------------------------------------------------------------


def torchvision_script(root, checkpoint=None, **options):
    """Make the model as wide as there are folders, as torchvision's references/classification/train.py does."""
    data = ImageFolder(root, transform, **options)
    model = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=len(data.classes))
    if checkpoint is not None:
        model.load_state_dict(torch.load(checkpoint, weights_only=True))
    return model, data


def test_torchvision(folders):
    model, source = torchvision_script("source")
    train(model, loader(source), 6, 1e-3)
    torch.save(model.state_dict(), "pretrained.pt")

    # As it was.
    with pytest.raises(RuntimeError, match="size mismatch"):
        torchvision_script("train", "pretrained.pt")
    shrunken, data = torchvision_script("train")
    assert head_of(shrunken)[0].shape[0] == 3
    no_absent_class(shrunken, loader(data))
    with pytest.raises(ValueError, match="'num_classes' expected value 1000 but got 3 instead"):
        get_model("resnet18", weights="IMAGENET1K_V1", num_classes=3)

    # With the lines: empty folders alone are refused, and with allow_empty they count.
    for name in NAMES:
        Path("train", name).mkdir(exist_ok=True)
    with pytest.raises(FileNotFoundError, match="Found no valid file for the classes"):
        torchvision_script("train", "pretrained.pt")
    tuned, data = torchvision_script("train", "pretrained.pt", allow_empty=True)
    assert same_head(tuned, model)
    assert data.classes == source.classes == sorted(NAMES)
    assert {data.classes[label] for label in data.targets} == set(SEEN)
    mask = finecal.seen_mask_from_names(SEEN, data.class_to_idx)
    assert np.array_equal(mask, finecal.seen_mask_from_labels(data.targets, len(data.classes)))
    check_gain(train(tuned, loader(data), 8, 1e-3), loader(data), loader(torchvision_script("test")[1]), mask)


# --- Hugging Face -----------------------------------------------------------------------------------------------------


def hugging_face_script(label_list, train_labels, ignore_mismatched_sizes=False):
    """Make the model as wide as the list of labels, and number them by it, as run_classification.py does."""
    config = AutoConfig.from_pretrained("pretrained", num_labels=len(label_list))
    model = AutoModelForSequenceClassification.from_pretrained(
        "pretrained", config=config, ignore_mismatched_sizes=ignore_mismatched_sizes
    )
    label_to_id = {label: index for index, label in enumerate(label_list)}
    model.config.label2id, model.config.id2label = label_to_id, {index: label for label, index in label_to_id.items()}
    return model, torch.tensor([label_to_id[label] for label in train_labels])


def batches_of(tokens, labels):
    return list(zip(torch.tensor(tokens).split(40), torch.as_tensor(labels).split(40), strict=True))


@pytest.fixture
def pretrained():
    config = DistilBertConfig(
        vocab_size=len(NAMES) + 1,
        dim=16,
        hidden_dim=32,
        n_layers=1,
        n_heads=2,
        max_position_embeddings=8,
        label2id={name: index for index, name in enumerate(NAMES)},
        id2label=dict(enumerate(NAMES)),
    )
    tokens, labels = texts(NAMES, 400, seed=0, share=0.5)
    source = batches_of(tokens, [NAMES.index(label) for label in labels])
    model = train(AutoModelForSequenceClassification.from_config(config), source, 15, 5e-3)
    model.save_pretrained("pretrained")
    return model


def test_hugging_face_texts(pretrained):
    tokens, labels = texts(SEEN, 200, seed=1, share=0.6)
    test_tokens, test_labels = texts(NAMES, 600, seed=2, share=0.6)

    # As it was: an error, then a new head, or with validation data of all classes a head of all rows with other names.
    seen_labels = sorted(set(labels))
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        hugging_face_script(seen_labels, labels)
    shrunken, numbers = hugging_face_script(seen_labels, labels, ignore_mismatched_sizes=True)
    assert head_of(shrunken)[0].shape[0] == 3
    rows = head_of(pretrained)[0]
    assert not any(torch.equal(row, other) for row in head_of(shrunken)[0] for other in rows)
    no_absent_class(shrunken, batches_of(tokens, numbers))
    mixed_up, numbers = hugging_face_script(sorted(set(labels) | set(test_labels)), labels)
    assert same_head(mixed_up, pretrained)
    assert mixed_up.config.id2label != pretrained.config.id2label

    # With the lines.
    names = {"AutoConfig": AutoConfig, "model_args": Arguments}
    exec(added_lines("label_list"), names)
    assert names["label_list"] == NAMES
    assert names["num_labels"] == 6
    tuned, numbers = hugging_face_script(names["label_list"], labels)
    assert same_head(tuned, pretrained)
    assert tuned.config.id2label == pretrained.config.id2label
    assert [NAMES[number] for number in numbers] == labels
    before = copy.deepcopy(tuned)
    test_numbers = [NAMES.index(label) for label in test_labels]
    train_batches, test_batches = batches_of(tokens, numbers), batches_of(test_tokens, test_numbers)
    check_gain(train(tuned, train_batches, 5, 2e-3), train_batches, test_batches, MASK)
    assert not same_head(tuned, before)


class Arguments:
    """What the lines on the page use of the script's arguments."""

    model_name_or_path = "pretrained"
    label_column_name = "label"


def added_lines(word):
    """Return the lines of the page's diff that has this word, as they are with the diff."""
    (diff,) = (block for block in blocks(PAGE, "diff") if word in block)
    lines = [line[1:] for line in diff.splitlines() if not line.startswith("-")]
    indent = min(len(line) - len(line.lstrip()) for line in lines)
    return "\n".join(line[indent:] for line in lines)


def test_hugging_face_images(folders, pretrained):
    settings = {"cache_dir": "cache"}
    seen_only = datasets.load_dataset("imagefolder", data_files={"train": "train/**"}, **settings)
    assert seen_only["train"].features["label"].names == sorted(SEEN)
    files = {"train": "train/**", "validation": "test/**"}
    dataset = datasets.load_dataset("imagefolder", data_files=files, **settings)
    assert dataset["train"].features["label"].names == sorted(NAMES)
    for loaded in (seen_only, dataset):
        texts_before = [loaded["train"].features["label"].int2str(label) for label in loaded["train"]["label"]]
        names = {"AutoConfig": AutoConfig, "model_args": Arguments, "data_args": Arguments, "dataset": dict(loaded)}
        exec(added_lines("align_labels_with_mapping"), names)
        assert names["labels"] == NAMES
        assert [NAMES[label] for label in names["dataset"]["train"]["label"]] == texts_before


# --- the page ---------------------------------------------------------------------------------------------------------


def test_lines_for_torchvision(folders):
    """Both datasets of load_data count the empty folders with the line that the page adds."""
    Path("train", "ant").mkdir()
    names = {"torchvision": torchvision, "valdir": "train", "preprocessing": transform}
    exec(added_lines("allow_empty"), names)
    assert names["dataset_test"].classes == sorted([*SEEN, "ant"])


def test_arguments_for_timm(folders):
    (command,) = blocks(PAGE, "bash")
    _, script, *arguments = command.replace("\\\n", "").split()
    options = dict(zip(arguments[::2], arguments[1::2], strict=True))
    assert script == "train.py"
    torch.save(timm.create_model(options["--model"], num_classes=10).state_dict(), "pretrained.pt")
    model = timm.create_model(
        options["--model"],
        num_classes=int(options["--num-classes"]),
        checkpoint_path=options["--initial-checkpoint"],
    )
    weights = torch.load("pretrained.pt", weights_only=True)
    assert torch.equal(model.fc.weight, weights["fc.weight"])
    assert create_dataset("", root="train", class_map=options["--class-map"]).reader.class_to_idx["dog"] == 3


def test_blocks_of_the_page(capsys):
    names = [*NAMES, "emu", "fox", "gnu", "owl"]
    write_images("data/train", SEEN, 6, 25, 0)
    Path("data/val").mkdir()
    sizes = {"dim": 16, "hidden_dim": 32, "n_layers": 1, "n_heads": 2}
    labels = {"label2id": {name: index for index, name in enumerate(names)}, "id2label": dict(enumerate(names))}
    AutoModelForSequenceClassification.from_config(DistilBertConfig(**sizes, **labels)).save_pretrained("pretrained")
    torch.save(timm.create_model("resnet18", num_classes=10).state_dict(), "pretrained.pt")
    listing, with_timm, with_folders, with_names, checking, *_ = blocks(PAGE, "python")  # the rest is in tests/docs

    context = {"train_names": [*SEEN, *SEEN]}
    exec(listing, context)
    assert Path("classes.txt").read_text().split() == context["class_names"] == names
    exec(with_timm, context)
    assert {label for _, label in context["data"]} == {names.index(name) for name in SEEN}
    exec(with_folders, context)
    assert all(Path("data", split, name).is_dir() for split in ("train", "val") for name in names)
    exec(with_names, context)
    context["pretrained_weights"] = copy.deepcopy(context["model"].state_dict())
    exec(checking, context)
    assert "3 of 10 classes are seen" in capsys.readouterr().out
    context["labels"] = [0, 1, 2]
    with pytest.raises(AssertionError):
        exec(checking, context)
    with torch.no_grad():
        context["model"].classifier.weight += 1.0
    context["labels"] = [names.index(name) for name in SEEN]
    exec(checking, context)
    assert capsys.readouterr().out.endswith("['classifier.weight', 'classifier.bias'] False\n")


def test_messages_of_the_page():
    page = (ROOT / PAGE).read_text(encoding="utf-8")
    (shown,) = re.findall("^ValueError: (seen_mask has no absent class.*)$", page, re.MULTILINE)
    with pytest.raises(ValueError, match=re.escape(shown)):
        finecal.seen_mask_from_labels([0, 1, 2, 3, 4], 5)
    with pytest.raises(ValueError, match="seen_mask has 10 entries for logits of 5 classes.* lost classes"):
        finecal.evaluate(torch.randn(4, 5), [0, 1, 2, 3], [True, False] * 5)
