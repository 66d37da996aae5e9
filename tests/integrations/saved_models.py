"""Saved classifiers of six classes that were fine-tuned on three of them, with their data, made on the spot."""

import copy
import json
import random
from itertools import chain, pairwise

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForTokenClassification,
    BertTokenizerFast,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

NAMES = ("ant", "bee", "cat", "dog", "elk", "fox")
SEEN = (0, 2, 4)
MASK = torch.tensor([index in SEEN for index in range(6)])
_COLOURS = np.array([[220, 40, 40], [40, 220, 40], [40, 40, 220], [220, 220, 40], [40, 220, 220], [220, 40, 220]])
_ID2LABEL = {"id2label": dict(enumerate(NAMES)), "label2id": {name: index for index, name in enumerate(NAMES)}}


def fit(forward, parameters, inputs, labels, steps, rate):
    """Adam on all samples at once; `inputs` are given by name."""
    optimizer = torch.optim.Adam([p for p in parameters if p.requires_grad], rate)
    for _ in range(steps):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(forward(**inputs), labels).backward()
        optimizer.step()


# --- texts ------------------------------------------------------------------------------------------------------------


def sentences(n, classes, seed):
    """Three words of the class, and three others, and the classes."""
    rng = np.random.default_rng(seed)
    labels = [classes[i % len(classes)] for i in range(n)]
    words = [rng.permutation([NAMES[label]] * 3 + list(rng.choice(NAMES, 3))) for label in labels]
    return [" ".join(row) for row in words], labels


def make_tokenizer():
    vocabulary = {word: index for index, word in enumerate(["[PAD]", "[UNK]", *NAMES])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        model_max_length=16,
        model_input_names=["input_ids", "attention_mask"],
    )


def encoded(texts):
    return dict(make_tokenizer()(texts, padding=True, return_tensors="pt"))


def pretrained_text_model(**changes):
    """A model that knows all six classes."""
    torch.manual_seed(0)
    config = DistilBertConfig(
        vocab_size=8, dim=32, hidden_dim=64, n_layers=1, n_heads=2, max_position_embeddings=16, **(_ID2LABEL | changes)
    )
    model = DistilBertForSequenceClassification(config)
    texts, labels = sentences(300, range(6), seed=1)
    fit(lambda **x: model(**x).logits, model.parameters(), encoded(texts), torch.tensor(labels), 100, 3e-3)
    return model.eval()


def fine_tune_on_texts(model):
    texts, labels = sentences(150, SEEN, seed=2)
    fit(lambda **x: model(**x).logits, model.parameters(), encoded(texts), torch.tensor(labels), 20, 1e-3)
    return model.eval()


def write_csv(path, texts, labels):
    rows = [f'"{text}",{NAMES[label]}' for text, label in zip(texts, labels, strict=True)]
    path.write_text("\n".join(["text,label", *rows]) + "\n", encoding="utf-8")


def write_texts(folder):
    """Training data of the seen classes, and others of all classes."""
    write_csv(folder / "train.csv", *sentences(150, SEEN, seed=2))
    write_csv(folder / "held_out.csv", *sentences(180, range(6), seed=3))


def save_text_model(folder):
    """The fine-tuned model in ``text-model``, with ``train.csv`` and ``held_out.csv``."""
    fine_tune_on_texts(pretrained_text_model()).save_pretrained(folder / "text-model")
    make_tokenizer().save_pretrained(folder / "text-model")
    write_texts(folder)


def save_adapter(folder, **settings):
    """Its base in ``pretrained``, and the adapter in ``adapter``."""
    from peft import LoraConfig, get_peft_model

    pretrained_text_model().save_pretrained(folder / "pretrained")
    make_tokenizer().save_pretrained(folder / "pretrained")
    base = DistilBertForSequenceClassification.from_pretrained(folder / "pretrained")
    torch.manual_seed(0)
    model = get_peft_model(base, LoraConfig(target_modules=["q_lin", "v_lin"], **settings))
    fine_tune_on_texts(model).save_pretrained(folder / "adapter")
    write_texts(folder)


# --- words ------------------------------------------------------------------------------------------------------------

TAGS = ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]
TAG_MASK = torch.tensor([True, True, True, False, False])
_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_VOCABULARY = [*_SPECIAL, "the", "of", "rome", "os", "##lo", "yo", "##rk", "an", "##na", "otto", "carl"]
_WORDS = {"O": ("the", "of"), "LOC": ("rome", "oslo", "york"), "PER": ("anna", "otto", "carl")}


def tagged_sentences(n, kinds, seed):
    """Between 4 and 9 words, with IOB2 tags; some words are two tokens."""
    draw = random.Random(seed)
    result = []
    for _ in range(n):
        drawn = draw.choices(["O", *kinds], k=draw.randint(4, 9))
        prefixes = ["I" if kind == last else "B" for last, kind in pairwise(["O", *drawn])]
        tags = ["O" if kind == "O" else f"{prefix}-{kind}" for prefix, kind in zip(prefixes, drawn, strict=True)]
        result.append(([draw.choice(_WORDS[kind]) for kind in drawn], tags))
    return result


def encoded_words(sentences, tokenizer):
    """Inputs, and the labels of the first token of each word, found without the tokenizer's own count of words."""
    labels = []
    for words, tags in sentences:
        pieces = [tokenizer.tokenize(word) for word in words]
        each = [[TAGS.index(tag)] + [-100] * (len(own) - 1) for own, tag in zip(pieces, tags, strict=True)]
        labels.append([-100, *chain.from_iterable(each), -100])
    inputs = tokenizer([" ".join(words) for words, _ in sentences], padding=True, return_tensors="pt")
    width = inputs["input_ids"].shape[1]
    return dict(inputs), torch.tensor([row + [-100] * (width - len(row)) for row in labels])


def write_sentences(path, sentences):
    rows = [json.dumps({"id": i, "tokens": words, "ner_tags": tags}) for i, (words, tags) in enumerate(sentences)]
    path.write_text("\n".join(rows), encoding="utf-8")


def save_tagger(folder):
    """A model that has lost persons in ``tagger``, with ``train.json``, ``held_out.json`` and ``others.json``."""
    (folder / "vocab.txt").write_text("\n".join(_VOCABULARY), encoding="utf-8")
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=32)
    torch.manual_seed(0)
    names = {"id2label": dict(enumerate(TAGS)), "label2id": {tag: index for index, tag in enumerate(TAGS)}}
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = BertForTokenClassification(
        BertConfig(vocab_size=len(_VOCABULARY), max_position_embeddings=32, **size, **names)
    )
    for kinds, seed, steps, rate in ((["LOC", "PER"], 1, 80, 1e-2), (["LOC"], 2, 20, 1e-3)):
        inputs, labels = encoded_words(tagged_sentences(200, kinds, seed), tokenizer)
        fit(lambda **x: model(**x).logits.transpose(1, 2), model.parameters(), inputs, labels, steps, rate)
    with torch.no_grad():
        model.classifier.bias[TAG_MASK] += 6.0
    model.save_pretrained(folder / "tagger")
    tokenizer.save_pretrained(folder / "tagger")
    for name, kinds, seed in (("train", ["LOC"], 2), ("held_out", ["LOC", "PER"], 3), ("others", ["LOC", "PER"], 4)):
        write_sentences(folder / f"{name}.json", tagged_sentences(150, kinds, seed))


# --- images -----------------------------------------------------------------------------------------------------------


def pictures(n, classes, seed, size):
    """Noisy colours `(n, size, size, 3)` uint8, and the classes."""
    rng = np.random.default_rng(seed)
    labels = np.resize(list(classes), n)
    noise = rng.normal(size=(n, size, size, 3)) * 60 + rng.normal(size=(n, 1, 1, 3)) * 55
    return (_COLOURS[labels][:, None, None] + noise).clip(0, 255).astype(np.uint8), labels.tolist()


def write_pictures(folder, images, labels):
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        (folder / NAMES[label]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / NAMES[label] / f"{number}.png")


def save_image_model(folder):
    """A fine-tuned model in ``image-model``, with the folders ``train`` and ``held-out``."""
    processor = ViTImageProcessor(size={"height": 16, "width": 16})
    torch.manual_seed(0)
    config = ViTConfig(
        image_size=16,
        patch_size=8,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        **_ID2LABEL,
    )
    model = ViTForImageClassification(config)
    for classes, seed, steps in ((range(6), 1, 60), (SEEN, 2, 40)):
        images, labels = pictures(180, classes, seed, 16)
        pixels = processor(images=list(images), return_tensors="pt")["pixel_values"]
        fit(
            lambda **x: model(**x).logits,
            model.parameters(),
            {"pixel_values": pixels},
            torch.tensor(labels),
            steps,
            3e-3,
        )
    model.save_pretrained(folder / "image-model")
    processor.save_pretrained(folder / "image-model")
    write_pictures(folder / "train", images, labels)
    write_pictures(folder / "held-out", *pictures(180, range(6), 3, 16))


TIMM_NAME = "test_resnet"


def fit_timm_head(model, images, labels, steps):
    """Train the head alone, which is quick."""
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    pixels = torch.stack([transform(Image.fromarray(image)) for image in images])
    with torch.no_grad():
        features = model.eval().forward_head(model.forward_features(pixels), pre_logits=True)
    head = model.get_classifier()
    fit(head, head.parameters(), {"input": features}, torch.tensor(labels), steps, 3e-2)


def pretrained_timm_model():
    """A model that knows all six classes."""
    torch.manual_seed(0)
    model = timm.create_model(TIMM_NAME, num_classes=6)
    fit_timm_head(model, *pictures(60, range(6), 1, 32), 200)
    return model


def write_timm_pictures(folder):
    """The folders ``train`` and ``held-out``."""
    write_pictures(folder / "train", *pictures(60, SEEN, 2, 32))
    write_pictures(folder / "held-out", *pictures(60, range(6), 3, 32))


def save_timm_checkpoint(folder):
    """Weights in ``checkpoint.safetensors``, ``classes.txt``, and the folders ``train`` and ``held-out``."""
    model = pretrained_timm_model()
    fit_timm_head(model, *pictures(60, SEEN, 2, 32), 100)
    save_file(model.state_dict(), folder / "checkpoint.safetensors")
    (folder / "classes.txt").write_text("\n".join(NAMES), encoding="utf-8")
    write_timm_pictures(folder)


def save_timm_with_new_head(folder, order):
    """Directories ``pretrained`` and ``tuned``, whose head has the classes in `order`, and folders of images."""
    pretrained = pretrained_timm_model()
    tuned = timm.create_model(TIMM_NAME, num_classes=len(order))
    body = {name: value for name, value in pretrained.state_dict().items() if not name.startswith("fc.")}
    tuned.load_state_dict(body, strict=False)
    images, labels = pictures(60, SEEN, 2, 32)
    fit_timm_head(tuned, images, [order.index(NAMES[label]) for label in labels], 100)
    for name, model, classes in (("pretrained", pretrained, NAMES), ("tuned", tuned, order)):
        timm.models.save_for_hf(model, folder / name, {"label_names": list(classes)}, safe_serialization=True)
        (folder / f"{name}.txt").write_text("\n".join(classes), encoding="utf-8")
    write_timm_pictures(folder)


# --- code in a model's directory --------------------------------------------------------------------------------------


def add_code(folder, marker):
    """Let a model's configuration name a class in a file of its own, which leaves a mark when it runs."""
    code = f"open({str(marker)!r}, 'w').close()\nfrom transformers import DistilBertConfig as C\n"
    code += "from transformers import DistilBertForSequenceClassification as M\n"
    code += "class Own(C):\n    model_type = 'own'\nclass OwnModel(M):\n    config_class = Own\n"
    (folder / "own.py").write_text(code, encoding="utf-8")
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    auto_map = {"AutoConfig": "own.Own", "AutoModelForSequenceClassification": "own.OwnModel"}
    changed = {**copy.deepcopy(config), "model_type": "own", "architectures": ["OwnModel"], "auto_map": auto_map}
    path.write_text(json.dumps(changed), encoding="utf-8")
