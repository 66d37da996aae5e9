import os

import numpy as np
import pytest
import torch

from finecal._cli.sources import read_seen_mask
from finecal._core.logits_file import LogitsFile
from sentences import says

NAMES = ("cat", "guinea pig", "d,o,g", "hen")
NUMBERS = ("1", "10", "2", "3")  # as folders in alphabetical order
NO_NAMES = (
    "is no class index, and the class names are not known; give these too, one per line in a text file (--class-names)"
)
OUTSIDE = "outside [0, 4) (4 is the number of classes); drop such entries (ignore indices) or map them to class indices"
LOGITS = torch.zeros(6, 4)


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("text", "class_names", "seen"),
    [
        ("0\n2\n", NAMES, [0, 2]),
        ("0\n2\n", None, [0, 2]),
        ("# seen\n\n 2, 0\t1\n", None, [0, 1, 2]),
        ("\ufeffcat\r\nguinea pig\r\n", NAMES, [0, 1]),
        ("d,o,g", NAMES, [2]),
        ("cat\n# hen\nhen", NAMES, [0, 3]),
        ("2\n10\n", NUMBERS, [1, 2]),
        ("2, 10", NUMBERS, [1, 2]),
        ("0", NUMBERS, [0]),
    ],
)
def test_seen_classes_from_text(tmp_path, text, class_names, seen):
    (tmp_path / "seen.txt").write_bytes(text.encode())
    mask = read_seen_mask("seen.txt", LogitsFile(LOGITS, None, class_names))
    assert mask.dtype == torch.bool
    assert mask.nonzero().squeeze(1).tolist() == seen


@pytest.mark.parametrize(
    ("text", "class_names", "sentence"),
    [
        ("# none", None, "there is no class in it; name at least one seen class"),
        ("0\n1\n0", None, "'0' comes more than once; name each seen class once"),
        ("cat\ncat", NAMES, "'cat' comes more than once; name each seen class once"),
        ("0\ncat\n1", None, f"'cat' {NO_NAMES}"),
        ("0-2", None, f"'0-2' {NO_NAMES}"),
        ("99999999999999999999", None, f"'99999999999999999999' {NO_NAMES}"),
        ("0 4", None, f"indices contain 4, {OUTSIDE}"),
        ("-1", None, f"indices contain -1, {OUTSIDE}"),
        ("cta", NAMES, "seen_names contain 'cta' (1 unknown of 1 names); did you mean 'cat'?"),
        (
            "1\n9",
            NUMBERS,
            "seen_names contain '9' (1 unknown of 2 names); class_names start with '1', '10', '2'",
        ),
        (
            "0 1 2 3",
            None,
            "seen_mask has no absent class: all 4 are seen, so there is nothing to calibrate (if the head was made for "
            "the fine-tuned classes alone, the rows of the others are gone: finecal.restore_head brings them back with "
            "the pre-trained model; better still, fine-tune its head with the full list of classes)",
        ),
    ],
)
def test_refuses_text(tmp_path, text, class_names, sentence):
    (tmp_path / "seen.txt").write_text(text)
    with says(f"seen.txt: {sentence}"):
        read_seen_mask("seen.txt", LogitsFile(LOGITS, None, class_names))


def test_seen_classes_from_a_mask(tmp_path):
    np.save("mask.npy", [True, False, False, True])
    assert read_seen_mask("mask.npy", LogitsFile(LOGITS)).tolist() == [True, False, False, True]
    np.save("mask.npy", [0, 3])
    with says("mask.npy: dtype is int64, but a mask has booleans; write class indices into a text file"):
        read_seen_mask("mask.npy", LogitsFile(LOGITS))
    np.save("mask.npy", [True, False])
    with says(
        "mask.npy: seen_mask has 2 entries for logits of 4 classes; it needs one boolean per column of the logits"
    ):
        read_seen_mask("mask.npy", LogitsFile(LOGITS))
    with says("nowhere.txt does not exist; check the name", FileNotFoundError):
        read_seen_mask("nowhere.txt", LogitsFile(LOGITS))
    with says(f"{tmp_path} is a directory; give a file in it", IsADirectoryError):
        read_seen_mask(str(tmp_path), LogitsFile(LOGITS))
    (tmp_path / "latin.txt").write_bytes("Käse".encode("latin-1"))
    with says("latin.txt is no text file (UTF-8); write one class per line"):
        read_seen_mask("latin.txt", LogitsFile(LOGITS))


def test_says_how_to_save_a_mask_of_integers(tmp_path):
    sentence = "a mask has booleans; save mask.astype(bool), or write class indices into a text file"
    for mask in ([1, 0, 0, 1], [1.0, 0.0, 0.0, 1.0]):
        np.save("mask.npy", mask)
        with says(f"mask.npy: {sentence}"):
            read_seen_mask("mask.npy", LogitsFile(LOGITS))
    np.savetxt("mask.txt", [1, 0, 0, 1], fmt="%d")
    with says(f"mask.txt: {sentence}"):
        read_seen_mask("mask.txt", LogitsFile(LOGITS, None, NAMES))


def test_seen_classes_from_labels():
    assert read_seen_mask("labels", LogitsFile(LOGITS, torch.tensor([0, 0, 2, 2, 2, 0]))).tolist() == [1, 0, 1, 0]
    with says(
        "seen classes from 'labels': labels have a single sample of 2 of the 3 classes that occur, so about 33 % of "
        "the data (Good-Turing estimate) are of seen classes missing from this sample, which would be taken for "
        "absent: name the seen classes explicitly"
    ):
        read_seen_mask("labels", LogitsFile(LOGITS, torch.tensor([0, 0, 0, 0, 1, 2])))
    with says("seen classes from 'labels': the logits have none; give the labels too, or the seen classes"):
        read_seen_mask("labels", LogitsFile(LOGITS))


class Payload:
    """Makes a directory when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_a_mask_of_objects_is_not_unpickled():
    np.save("mask.npy", np.array([Payload()], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"^mask\.npy holds Python objects"):
        read_seen_mask("mask.npy", LogitsFile(LOGITS))
    assert not os.path.exists("executed")


HASHES = ("#metoo", "#1", "# all", "cat", "#")


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("#metoo", [0]),
        ("#1\ncat", [1, 3]),
        ("# seen\n## here\n#\tcat\n#metoo", [0]),
        ("# all\n#1", [1, 2]),
        ("#\n#1", [1, 4]),
        ("0 3\n# 1", [0, 3]),
    ],
)
def test_a_class_name_is_no_comment(tmp_path, text, seen):
    (tmp_path / "seen.txt").write_text(text)
    mask = read_seen_mask("seen.txt", LogitsFile(LOGITS[:, [0, 0, 0, 0, 0]], None, HASHES))
    assert mask.nonzero().squeeze(1).tolist() == seen


def test_comments_without_a_blank_where_no_class_starts_like_them(tmp_path):
    (tmp_path / "seen.txt").write_text("#cat\nhen")
    assert read_seen_mask("seen.txt", LogitsFile(LOGITS, None, NAMES)).tolist() == [False, False, False, True]
    (tmp_path / "seen.txt").write_text("#1\n0")
    assert read_seen_mask("seen.txt", LogitsFile(LOGITS)).tolist() == [True, False, False, False]
