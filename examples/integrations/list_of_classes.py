"""
The list of classes
===================

Three scripts that fine-tune from a folder of images: with a head for its classes only, and with one for the full list.

One is built like the ``train.py`` of timm, one like that of torchvision, one like ``run_image_classification.py`` of
transformers. Needs timm, torchvision, transformers and scikit-learn, no network and under a minute:
``python examples/integrations/list_of_classes.py``
"""

import tempfile
import warnings
from pathlib import Path

import timm
import torch
from faint_digits import load
from timm.data import create_dataset
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchvision.datasets import ImageFolder
from torchvision.models import resnet18
from torchvision.transforms.functional import pil_to_tensor, to_pil_image
from transformers import ResNetConfig, ResNetForImageClassification

import finecal

warnings.simplefilter(
    "ignore", ResourceWarning
)  # timm leaves closing its files to Python

# %%
# Folders of images
# -----------------
# The digits of :doc:`faint_digits`, one folder per class. That for fine-tuning has the even ones only.

WORDS = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
]
CLASSES = sorted(WORDS)


def transform(image) -> torch.Tensor:
    return pil_to_tensor(image) / 255 * 4 - 2


def write(folder: Path, data: TensorDataset) -> Path:
    for number, (image, label) in enumerate(data):
        place = folder / WORDS[label]
        place.mkdir(parents=True, exist_ok=True)
        to_pil_image(((image + 2) / 4).clamp(0, 1)).save(
            place / f"{number}.png"
        )
    return folder


# %%
# One loop for all
# ----------------
# The heads differ, the training does not.


def logits_of(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    output = model(images)
    return getattr(output, "logits", output)


def train(
    model: nn.Module, data: Dataset, epochs: int, learning_rate: float
) -> nn.Module:
    optimiser = torch.optim.AdamW(model.parameters(), learning_rate)
    model.train()
    for _ in range(epochs):
        for images, labels in DataLoader(data, batch_size=32, shuffle=True):
            optimiser.zero_grad()
            F.cross_entropy(logits_of(model, images), labels).backward()
            optimiser.step()
    return model.eval()


def score(model: nn.Module, data: Dataset) -> finecal.Samples:
    loader = DataLoader(data, batch_size=100)
    return finecal.collect_logits(model, loader, progress=False)


# %%
# timm
# ----
# ``--num-classes`` and ``--class-map`` are these two arguments.


def timm_model(num_classes: int, checkpoint: str = "") -> nn.Module:
    return timm.create_model(
        "test_resnet.r160_in1k",
        num_classes=num_classes,
        checkpoint_path=checkpoint,
    )


def with_timm(
    folder: Path, class_map: str = "", checkpoint: str = ""
) -> tuple[nn.Module, Dataset]:
    data = create_dataset(
        "",
        root=folder,
        is_training=True,
        class_map=class_map,
        transform=transform,
    )
    return timm_model(len(data.reader.class_to_idx), checkpoint), data


# %%
# torchvision
# -----------
# The absent classes get an empty folder, and ``allow_empty=True`` lets them count.


def with_torchvision(
    folder: Path, checkpoint: str = "", allow_empty: bool = False
) -> tuple[nn.Module, Dataset]:
    data = ImageFolder(folder, transform, allow_empty=allow_empty)
    model = resnet18(num_classes=len(data.classes))
    if checkpoint:
        model.load_state_dict(torch.load(checkpoint, weights_only=True))
    return model, data


# %%
# Hugging Face
# ------------
# The script numbers the labels of its data, and makes the head as wide. With ``label2id`` of the configuration they are
# numbered as the model does it.


def hugging_face_model(names: list[str]) -> nn.Module:
    size = {
        "embedding_size": 16,
        "hidden_sizes": [16, 32, 64],
        "depths": [1, 1, 1],
        "layer_type": "basic",
    }
    label2id = {name: index for index, name in enumerate(names)}
    return ResNetForImageClassification(
        ResNetConfig(**size, label2id=label2id, id2label=dict(enumerate(names)))
    )


def with_hugging_face(
    folder: Path, pretrained: str, label2id: dict[str, int] | None = None
) -> tuple[nn.Module, Dataset]:
    data = ImageFolder(folder, transform)
    label2id = label2id or data.class_to_idx
    number = [label2id[name] for name in data.classes]
    data.target_transform = number.__getitem__
    sizes = {"num_labels": len(label2id), "ignore_mismatched_sizes": True}
    return ResNetForImageClassification.from_pretrained(
        pretrained, **sizes
    ), data


# %%
# Without the lines, and with them
# --------------------------------
# Each script first learns all ten classes, from plain digits, and then fine-tunes on the even ones. A head that has
# rows for these alone has no absent class that could come back. What ``estimate_gamma`` warns of is printed: where the
# model has memorised its training samples, ``max_logit_gap`` can have the other sign, and be wrong.

warnings.simplefilter("ignore", finecal.FinecalWarning)

Script = tuple[nn.Module, Dataset]


def compare(
    library: str,
    as_it_was: Script,
    with_the_lines: Script,
    epochs: int,
    learning_rate: float,
) -> None:
    for what, (model, data) in (
        ("as it was", as_it_was),
        ("with the list of classes", with_the_lines),
    ):
        samples = score(model, data)
        print(
            f"{library}, {what}: a head of {samples.num_classes} rows, {samples.labels.unique().numel()} of them seen"
        )
    samples = score(train(*with_the_lines, epochs, learning_rate), data)
    seen_mask = finecal.seen_mask_from_labels(
        samples.labels, samples.num_classes
    )
    estimate = finecal.estimate_gamma(seen_mask, train=samples)
    curve = finecal.tradeoff_curve(score(model, test), seen_mask)
    for what, gamma in (
        ("gamma = 0", 0.0),
        ("estimate_gamma", estimate),
        ("oracle", curve.best()),
    ):
        report = curve.at(gamma)
        shown = {
            "S/Y": report.acc_seen,
            "U/Y": report.acc_absent,
            "Y/Y": report.acc_all,
        }
        print(
            f"  {what:<16}",
            "   ".join(
                f"Acc_{name} {100 * value:5.1f} %"
                for name, value in shown.items()
            ),
        )
    for sentence in estimate.warnings:
        print(f"  warning: {sentence}")


digits, place = load(size=16, channels=3), tempfile.TemporaryDirectory()
home = Path(place.name)
source, even = (
    write(home / "source", digits.pretraining),
    write(home / "even", digits.fine_tuning),
)
test = ImageFolder(write(home / "test", digits.test), transform)
with_empty = write(home / "with_empty", digits.fine_tuning)
for word in CLASSES:
    (with_empty / word).mkdir(exist_ok=True)
class_map = home / "classes.txt"
class_map.write_text("\n".join(CLASSES))

checkpoint = str(home / "timm.pt")
torch.save(train(*with_timm(source), 8, 2e-3).state_dict(), checkpoint)
compare(
    "timm",
    with_timm(even),
    with_timm(even, str(class_map), checkpoint),
    10,
    1e-3,
)

checkpoint = str(home / "torchvision.pt")
torch.save(train(*with_torchvision(source), 4, 1e-3).state_dict(), checkpoint)
compare(
    "torchvision",
    with_torchvision(even),
    with_torchvision(with_empty, checkpoint, True),
    5,
    3e-4,
)

checkpoint = str(home / "hugging_face")
pretrained = train(
    hugging_face_model(CLASSES), ImageFolder(source, transform), 8, 2e-3
)
pretrained.save_pretrained(checkpoint)
label2id = pretrained.config.label2id
as_it_was, with_the_lines = (
    with_hugging_face(even, checkpoint),
    with_hugging_face(even, checkpoint, label2id),
)
compare("Hugging Face", as_it_was, with_the_lines, 10, 2e-3)
place.cleanup()
