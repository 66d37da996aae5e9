import json
import math

import pytest
import torch

from finecal import GammaEstimate
from finecal._core.files import with_checksum
from finecal._core.results import strict_json, to_json
from finecal._estimators.estimate import gamma_record, read_gamma
from sentences import says

OUTSIDE = "outside [0, 4) (4 is the number of classes); drop such entries (ignore indices) or map them to class indices"
DELETE = "estimate gamma again, or if you changed it on purpose, delete its entry 'sha256'"
GIVE = "give a number, or what finecal estimate -o wrote"


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_gamma_round_trip(tmp_path):
    estimate = GammaEstimate(
        1.25,
        "max_logit_gap",
        "4 samples",
        4,
        math.nan,
        (1.0, math.inf),
        ("not used",),
        0.75,
        0.4,
        "given",
        "held-out samples",
        {"residual_gap": 1.0},
        {"held_out": 4},
    )
    mask = torch.tensor([True, False, True])
    text = to_json(gamma_record(estimate, mask))

    def refuse(constant):
        raise AssertionError(constant)

    assert json.loads(text, parse_constant=refuse) == {
        "gamma": 1.25,
        "method": "max_logit_gap",
        "data": "4 samples",
        "n": 4,
        "acc_seen_at_gamma": None,
        "acc_seen_at_zero": 0.75,
        "seen_share": 0.4,
        "seen_share_source": "given",
        "cost_source": "held-out samples",
        "interval": [1.0, None],
        "weights": {"residual_gap": 1.0},
        "sources": {"held_out": 4},
        "min_absent_share": None,
        "num_classes": 3,
        "seen_classes": [0, 2],
    }
    (tmp_path / "gamma.json").write_text(text)
    back = read_gamma("gamma.json")
    assert back.gamma == 1.25
    assert (back.estimate.seen_share, back.estimate.seen_share_source) == (0.4, "given")
    assert (back.estimate.weights, back.estimate.sources) == (estimate.weights, estimate.sources)
    assert torch.equal(back.seen_mask, mask)


def test_class_names_go_along(tmp_path):
    estimate, mask = GammaEstimate(1.25, "by hand", "4 samples", 4), torch.tensor([True, False, True])
    (tmp_path / "gamma.json").write_text(to_json(gamma_record(estimate, mask, ("a", "β", "c"))))
    assert read_gamma("gamma.json").class_names == ("a", "β", "c")
    for names in ('["a", "b"]', '["a", "b", 3]', '"abc"'):
        text = f'{{"gamma": 2, "num_classes": 3, "seen_classes": [0], "class_names": {names}}}'
        (tmp_path / "gamma.json").write_text(text)
        with pytest.raises(ValueError, match="class_names are no list of 3 texts, one for each class"):
            read_gamma("gamma.json")


def test_json_is_ascii():
    record = {"output": "→.npz", "warnings": ["✓", "✗"]}
    text = to_json(record)
    assert text.isascii()
    assert json.loads(text) == record


def test_gamma_as_a_number(tmp_path):
    number = read_gamma("-1.5e0")
    assert number.gamma == -1.5
    assert number.seen_mask is None
    (tmp_path / "gamma.json").write_text('{"gamma": 2}')
    back = read_gamma("gamma.json")
    assert back.gamma == 2.0
    assert back.seen_mask is None


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "{gamma",
            f" is no JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1)); {GIVE}",
        ),
        ("[1.0]", f" has no entry 'gamma'; {GIVE}"),
        ("{}", f" has no entry 'gamma'; {GIVE}"),
        ('{"gamma": NaN}', ": gamma is nan; it must be finite"),
        ('{"gamma": null}', ": gamma is a NoneType; pass a float, a 0-d tensor or a GammaEstimate"),
        (
            '{"gamma": 1, "seen_classes": [0]}',
            ": num_classes is a NoneType; pass the number of columns of the logits",
        ),
        ('{"gamma": 1, "seen_classes": [5], "num_classes": 4}', f": indices contain 5, {OUTSIDE}"),
    ],
)
def test_refuses_gamma_files(tmp_path, text, sentence):
    (tmp_path / "gamma.json").write_text(text)
    with says(f"gamma.json{sentence}"):
        read_gamma("gamma.json")


def test_refuses_gamma():
    with says("gamma is inf; it must be finite"):
        read_gamma("inf")
    with says("gamma.json does not exist; check the name", FileNotFoundError):
        read_gamma("gamma.json")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{"gamma": 1, "gamma": 2}', f" is no JSON (it has the entry 'gamma' more than once); {GIVE}"),
        ("[" * 100_000, f" is no JSON (it is nested too deeply); {GIVE}"),
        (
            '{"gamma": 1, "seen_clases": [0], "num_classes": 4}',
            ": it has no 'seen_classes', but 'seen_clases'; name it 'seen_classes' if it is that, and less alike if "
            "not",
        ),
        (
            '{"gamma": 1, "seen_classes": [0], "num_classes": 1000000000000}',
            ": num_classes is 1000000000000; finecal counts at most 16777216 classes",
        ),
        ('{"gamma": 1, "sha256": "0"}', f" does not match its checksum, so it was damaged or edited; {DELETE}"),
    ],
)
def test_refuses_what_is_lost_or_damaged(tmp_path, text, sentence):
    (tmp_path / "gamma.json").write_text(text)
    with says(f"gamma.json{sentence}"):
        read_gamma("gamma.json")


def test_every_bit_of_a_signed_file(tmp_path):
    estimate, mask = GammaEstimate(1.25, "by hand", "4 samples", 4), torch.tensor([True, False, True])
    record = strict_json(gamma_record(estimate, mask, ("a", "β", "c")))
    data, refused = to_json(with_checksum(record)).encode(), 0

    def found():
        try:
            file = read_gamma("gamma.json")
        except ValueError as error:
            assert str(error).startswith("gamma.json")  # noqa: PT017
            return None
        return file.gamma, file.seen_mask.tolist(), file.class_names, file.estimate

    (tmp_path / "gamma.json").write_bytes(data)
    same = found()
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 1 << position % 8
        (tmp_path / "gamma.json").write_bytes(damaged)
        refused += found() is None
        assert found() in (None, same)
    assert refused > len(data) / 2
