"""A small OWLv2 of transformers before and after gamma, whose classes are prompts: "a star", "a heart".

It learns icons of 20 classes in clear pictures, and is fine-tuned on foggy ones in which only ten classes have boxes,
with the prompts of all 20 or of those ten. Six minutes on one core; needs `transformers`, the extra `detection`, and no
network: the model is made from scratch, and its only words are those of the prompts.
"""

import argparse
import copy
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, l1_loss
from torchvision.ops import box_convert, generalized_box_iou_loss
from transformers import Owlv2Config, Owlv2ForObjectDetection, Owlv2ImageProcessor

import finecal
from finecal._core.results import format_table
from finecal.integrations.detection import SeenAbsentAveragePrecision, match_boxes

sys.path.append(str(Path(__file__).parents[2] / "examples"))
from _icons import SHAPES, Pictures, draw_pictures

NAMES = list(SHAPES)
SEEN = torch.arange(len(NAMES)) % 2 == 0
LABELS = range(1, len(NAMES) + 1, 2)  # of seen classes in the pictures, whose class 0 is the ground
SETTINGS = {"do not occur": {"classes": LABELS}, "occur without boxes": {"labelled": LABELS}}
"""What becomes of objects of absent classes in the pictures for fine-tuning."""
SIZE, PATCH, BATCH = 96, 12, 16
WORDS = ["padding", "start", "a", *NAMES, "end"]  # the text is read at the word of the highest number
ALL = torch.arange(len(NAMES))
PROMPTS = torch.tensor([[WORDS.index(word) for word in ("start", "a", name, "end")] for name in NAMES])
GAMMAS = [float(gamma) for gamma in range(11)]
WIDTH = 96
USUAL = 0.1
"""The score above which OWLv2 shows a box by default."""
COLUMNS = ["right at its box", "found", "F1", "average precision", "wrong, off objects"]
"""By seen, absent and all classes, in %: located objects whose own prompt has the highest logit; then of what
`post_process_object_detection` shows, one prompt per box. Wrong boxes per picture, and those that overlap no object."""


def owlv2() -> Owlv2ForObjectDetection:
    """Eight by eight patches, each of which a few convolutions embed: these learn from few pictures."""
    torch.manual_seed(0)
    size = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_attention_heads": 4}
    text = {"vocab_size": len(WORDS), "num_hidden_layers": 1, "max_position_embeddings": PROMPTS.shape[1], **size}
    ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": len(WORDS) - 1}
    vision = {"image_size": SIZE, "patch_size": PATCH, "num_hidden_layers": 2, **size}
    model = Owlv2ForObjectDetection(Owlv2Config(text_config=text | ends, vision_config=vision, projection_dim=WIDTH))

    def layer(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Sequential:
        convolution = nn.Conv2d(inputs, outputs, kernel, stride, int(stride < 3), bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())

    layers = layer(3, 16, 3, 2), layer(16, 32, 3, 2), layer(32, 64, 3, 1), layer(64, 64, 3, 1), layer(64, WIDTH, 3, 3)
    embeddings = model.owlv2.vision_model.embeddings
    embeddings.patch_embedding = nn.Sequential(*layers)
    embeddings.patch_embedding.weight = nn.Parameter(torch.zeros(()), requires_grad=False)  # whose dtype is read
    for linear in (*model.class_head.children(), *model.box_head.children()):
        if isinstance(linear, nn.Linear):
            linear.reset_parameters()  # transformers draws these from N(0, 1)
    nn.init.constant_(model.class_head.logit_shift.bias, -0.6)
    nn.init.constant_(model.class_head.logit_scale.bias, 9.0)
    return model


def boxes_of(pictures: Pictures, number: int) -> Tensor:
    """Centre and size as shares of the picture, as the model predicts them."""
    return box_convert(pictures.boxes[number], "xyxy", "cxcywh") / SIZE


def train(model: Any, pictures: Pictures, prompts: Tensor, epochs: int, rate: float) -> None:
    """A patch is responsible for the object whose centre it holds; of each prompt it says whether it is that."""
    cells, count = SIZE // PATCH, len(pictures.images)
    optimizer = torch.optim.AdamW(model.parameters(), rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, epochs * -(-count // BATCH))
    torch.manual_seed(0)
    model.train()
    for _ in range(epochs):
        for chosen in torch.randperm(count).split(BATCH):
            output = model(**inputs(pictures, chosen, prompts))
            wanted = torch.zeros(len(chosen), cells**2, len(NAMES))
            boxes = torch.zeros(len(chosen), cells**2, 4)
            for row, number in enumerate(chosen.tolist()):
                truth = boxes_of(pictures, number)
                x, y = (truth[:, :2] * cells).long().T
                wanted[row, y * cells + x, pictures.labels[number] - 1] = 1
                boxes[row, y * cells + x] = truth
            is_object = boxes[..., 2] > 0
            found, truth = output.pred_boxes[is_object], boxes[is_object]
            corners = [box_convert(each, "cxcywh", "xyxy") for each in (found, truth)]
            loss = binary_cross_entropy_with_logits(output.logits, wanted[..., prompts], reduction="sum")
            loss = loss + 5 * l1_loss(found, truth, reduction="sum")
            loss = loss + 2 * generalized_box_iou_loss(*corners, reduction="sum")
            optimizer.zero_grad()
            (loss / max(int(is_object.sum()), 1)).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    model.eval()


def inputs(pictures: Pictures, chosen: Tensor, prompts: Tensor) -> dict[str, Tensor]:
    """The prompts are repeated for each picture, as the processor of OWLv2 does."""
    return {
        "pixel_values": 4 * (pictures.images[chosen] - 0.5),
        "input_ids": PROMPTS[prompts].repeat(len(chosen), 1),
        "attention_mask": torch.ones(len(chosen) * len(prompts), PROMPTS.shape[1], dtype=torch.int64),
    }


class Predicted(NamedTuple):
    """Logits `(B, patches, prompts)`, and boxes as the model gives them."""

    logits: Tensor
    pred_boxes: Tensor


@torch.inference_mode()
def predicted(model: Any, pictures: Pictures) -> Predicted:
    """What the model says with the prompts of all classes."""
    chunks = torch.arange(len(pictures.images)).split(100)
    parts = [model(**inputs(pictures, chosen, ALL)) for chosen in chunks]
    return Predicted(*(torch.cat([part[name] for part in parts]) for name in Predicted._fields))


def box_logits(output: Predicted, pictures: Pictures) -> finecal.Samples:
    """The logits of one box for each object, which the picture groups."""
    rows, labels, groups = [], [], []
    for number, (logits, boxes) in enumerate(zip(*output, strict=True)):
        corners = [box_convert(each, "cxcywh", "xyxy") for each in (boxes, boxes_of(pictures, number))]
        found = match_boxes(*corners, pictures.labels[number] - 1, scores=logits.amax(-1))
        rows.append(logits[found >= 0])
        labels.append(found[found >= 0])
        groups += [number] * len(rows[-1])
    return finecal.Samples(torch.cat(rows), torch.cat(labels), groups=torch.tensor(groups))


def judged(output: Predicted, pictures: Pictures, gamma: float) -> list[list[float]]:
    """The columns of the table, with gamma added to the prompts of absent classes."""
    output = output._replace(logits=finecal.calibrate_logits(output.logits, SEEN, gamma))
    groups = SEEN, ~SEEN, SEEN | ~SEEN
    samples = box_logits(output, pictures)
    right = samples.logits.argmax(1) == samples.labels
    sizes = torch.full((len(output.logits), 2), SIZE)
    shown = Owlv2ImageProcessor().post_process_object_detection(output, USUAL, sizes)
    truths = [{"boxes": a, "labels": b - 1} for a, b in zip(pictures.boxes, pictures.labels, strict=True)]
    metric = SeenAbsentAveragePrecision(SEEN)
    metric.update(shown, truths)
    report = metric.report()
    hits, objects, boxes = torch.zeros(3, len(NAMES))
    off = 0
    for found, truth in zip(shown, truths, strict=True):
        off += int((match_boxes(found["boxes"], truth["boxes"], truth["labels"]) < 0).sum())
        for number in range(len(NAMES)):
            own, of_class = found["labels"] == number, truth["labels"] == number
            targets = truth["boxes"][of_class], truth["labels"][of_class]
            hits[number] += (match_boxes(found["boxes"][own], *targets, scores=found["scores"][own]) >= 0).sum()
            boxes[number] += own.sum()
            objects[number] += of_class.sum()
    return [
        [100 * float(right[group[samples.labels]].float().mean()) for group in groups],
        [100 * float(hits[group].sum() / objects[group].sum()) for group in groups],
        [200 * float(hits[group].sum() / (objects[group].sum() + boxes[group].sum())) for group in groups],
        [100 * getattr(report, f"map_50_{name}") for name in ("seen", "absent", "all")],
        [float((boxes - hits).sum()) / len(shown), off / len(shown)],
    ]


def cells(values: Iterable[list[float]]) -> list[str]:
    return [" / ".join(f"{value:.{1 if len(row) > 2 else 2}f}" for value in row) for row in values]


def score(row: list[list[float]]) -> float:
    """Harmonic mean of the F1 of seen and of absent classes."""
    seen, absent, _ = row[2]
    return 2 * seen * absent / (seen + absent + 1e-9)


def check_wrapper(model: Any, pictures: Pictures, gamma: float) -> None:
    """A `CalibratedModel` gives the same output with other logits: what `judged` adds by itself."""
    calibrated = finecal.CalibratedModel(model, finecal.AdditiveBias(SEEN, gamma))
    before, after = predicted(model, pictures), predicted(calibrated, pictures)
    torch.testing.assert_close(after.logits, finecal.calibrate_logits(before.logits, SEEN, gamma))
    assert torch.equal(after.pred_boxes, before.pred_boxes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--pictures", type=int, default=2000, help="for pre-training; a quarter as many for fine-tuning"
    )
    count = parser.parse_args().pictures
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", finecal.FinecalWarning)
    test = draw_pictures(count * 3 // 20, seed=1, foggy=True)
    pretrained = owlv2()
    train(pretrained, draw_pictures(count, seed=0), ALL, 10, 2e-3)
    table = [["pre-trained", "none", "0.0", *cells(judged(predicted(pretrained, test), test, 0.0))]]
    for setting, options in SETTINGS.items():
        pictures = draw_pictures(count // 4, seed=2, foggy=True, **options)
        held_out = draw_pictures(count // 10, seed=4, foggy=True, **options)
        for prompts in (ALL, ALL[SEEN]):
            model = copy.deepcopy(pretrained)
            train(model, pictures, prompts, 8, 1e-3)
            check_wrapper(model, held_out, 1.5)
            known = {
                "train": box_logits(predicted(model, pictures), pictures),
                "held_out": box_logits(predicted(model, held_out), held_out),
            }
            output = predicted(model, test)
            rows = [("none", 0.0, judged(output, test, 0.0))]
            for name, samples in known.items():
                gamma = finecal.estimate_gamma(SEEN, **{name: samples})
                print(setting, len(prompts), name, gamma, sep=", ")
                rows.append((f"from {name}", float(gamma), judged(output, test, float(gamma))))
            tried = [("best", gamma, judged(output, test, gamma)) for gamma in GAMMAS]
            rows.append(max(tried, key=lambda row: score(row[2])))
            title = f"{setting}, {len(prompts)} prompts"
            table += [[title, which, f"{gamma:.1f}", *cells(row)] for which, gamma, row in rows]
    print(format_table(["absent objects", "gamma", "", *COLUMNS], table))


if __name__ == "__main__":
    main()
