"""Labels that are names or indices of classes."""

from pathlib import Path

import pytest
import torch

from finecal._cli.data import class_indices
from sentences import says

NAMES = ("ant", "bee", "cat", "dog")
PATH = Path("train.csv")


@pytest.mark.parametrize(
    ("labels", "names", "expected"),
    [
        (["cat", "ant", "cat"], NAMES, [2, 0, 2]),
        (["2", "0", "03"], NAMES, [2, 0, 3]),
        ([2, 0], NAMES, [2, 0]),
        ([2, "0"], None, [2, 0]),
        (["LABEL_3", "LABEL_1"], ("LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3"), [3, 1]),
        (["1", "3"], ("LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3"), [1, 3]),
        (["1", 3], ("0", "1", "2", "3"), [1, 3]),  # names and indices agree
        (["7", "9"], ("9", "8", "7", "6"), [2, 0]),  # as indices they would be too large
        (["ant", "1"], ("ant", "1", "x", "y"), [0, 1]),
        (["de\u0301", "ant"], ("ant", "d\u00e9", "x", "y"), [1, 0]),  # e and an accent, or one letter
        (["d\u00e9"], ("ant", "de\u0301", "x", "y"), [1]),
    ],
)
def test_names_or_indices(labels, names, expected):
    found = class_indices(labels, names, 4, PATH)
    assert found.dtype == torch.int64
    assert found.tolist() == expected


@pytest.mark.parametrize("labels", [["1", "3"], [1, 0, 2], ["0", "1"]])
def test_refuses_what_could_be_both(labels):
    names = ("1", "2", "3", "4")
    label = "1"
    with says(
        f"train.csv: label {label!r} is the name of class 0 of the model, and may mean class 1; give names that are no "
        "numbers by --class-names, and label by these names or by index"
    ):
        class_indices(labels, names, 4, PATH)


AMONG = "are not among the 4 classes of the model, 'ant', 'bee', 'cat', ...;"


@pytest.mark.parametrize(
    ("labels", "names", "sentence"),
    [
        (["ant", "horse"], NAMES, f"labels 'horse' (1 of 2) {AMONG} label by name or by indices from 0 to 3"),
        (["cats"], NAMES, f"labels 'cats' (1 of 1) {AMONG} did you mean 'cat'?"),
        (
            [0, 4, -1, 5],
            NAMES,
            f"labels '-1', '0', '4', ... (4 of 4) {AMONG} label by name or by indices from 0 to 3",
        ),
        (
            ["cat"],
            ("LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3"),
            "labels 'cat' (1 of 1) are not among the 4 classes of the model, which have no names but 'LABEL_0', "
            "'LABEL_1', 'LABEL_2', ...; label by indices from 0 to 3, or give the names by --class-names, one per line "
            "in the order of the model's outputs",
        ),
        (
            ["cat"],
            None,
            "labels 'cat' are no indices from 0 to 3, and the names of the 4 classes are not known; give these by "
            "--class-names, one per line in the order of the model's outputs",
        ),
        (
            ["ant", "bee"],
            ("ant", "bee", "ant", "x"),
            "label 'ant' is the name of 2 classes of the model; label by index",
        ),
    ],
)
def test_says_what_the_model_has(labels, names, sentence):
    with says(f"train.csv: {sentence}"):
        class_indices(labels, names, 4, PATH)
