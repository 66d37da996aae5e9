import dataclasses
from collections import OrderedDict, UserDict, defaultdict, namedtuple
from typing import Any

import pytest
import torch

from finecal._models.feed import logits_of, with_logits

Named = namedtuple("Named", ["loss", "logits", "features"])
Unnamed = namedtuple("Unnamed", ["loss", "scores"])


@dataclasses.dataclass(frozen=True)
class Record:
    features: Any
    logits: Any


LOGITS = torch.arange(6.0).reshape(2, 3)
LOSS = torch.tensor(0.5)
LOSSES = torch.ones(2)
FEATURES = torch.zeros(2, 4)
INDICES = torch.zeros(2, 3, dtype=torch.int64)
OTHER = LOGITS + 1

OUTPUTS = {
    "tensor": LOGITS,
    "dict": {"loss": LOSS, "logits": LOGITS, "features": FEATURES},
    "ordered": OrderedDict(logits=LOGITS, features=FEATURES),
    "defaults": defaultdict(list, features=FEATURES, logits=LOGITS),
    "user": UserDict(features=FEATURES, logits=LOGITS),
    "named": Named(LOSS, LOGITS, FEATURES),
    "unnamed": Unnamed(LOSS, LOGITS),
    "dataclass": Record(FEATURES, LOGITS),
    "tuple": (LOGITS, FEATURES),
    "loss first": (LOSS, LOGITS, (FEATURES, FEATURES)),
    "losses first": (LOSSES, LOGITS),
    "integers first": (INDICES, LOGITS),
    "list": [LOGITS],
    "out": {"out": LOGITS, "aux": FEATURES},
    "out, ordered": OrderedDict(aux=FEATURES, out=LOGITS),
    "out beside logits": OrderedDict(out=FEATURES, logits=LOGITS),
    "out beside no logits": {"logits": None, "out": LOGITS},
}


def parts(output):
    if isinstance(output, torch.Tensor):
        return [output]
    if isinstance(output, Record):
        return [output.features, output.logits]
    return list(output.values()) if hasattr(output, "values") else list(output)


@pytest.mark.parametrize("output", OUTPUTS.values(), ids=OUTPUTS.keys())
def test_only_the_logits_are_replaced(output):
    before = parts(output)
    assert logits_of(output) is LOGITS
    changed = with_logits(output, OTHER)
    assert type(changed) is type(output)
    assert logits_of(changed) is OTHER
    assert len(parts(changed)) == len(before)
    assert [a is b for a, b in zip(parts(changed), before, strict=True)].count(False) == 1
    assert all(a is b for a, b in zip(parts(output), before, strict=True))


def test_an_ordered_mapping_keeps_its_order():
    for output in (OUTPUTS["out, ordered"], OUTPUTS["ordered"], OUTPUTS["out beside logits"]):
        assert list(with_logits(output, OTHER)) == list(output)


def test_default_of_a_mapping_is_kept():
    assert with_logits(OUTPUTS["defaults"], OTHER)["missing"] == []


@pytest.mark.parametrize(
    ("output", "described"),
    [
        (None, "a NoneType"),
        (LOGITS.numpy(), "a ndarray"),
        ({"scores": LOGITS, 3: 1}, "a dict with the keys ['3', 'scores']"),
        ({"logits": [LOGITS]}, "a dict with the keys ['logits']"),
        ((LOSS, INDICES), "a tuple of ['Tensor', 'Tensor']"),
        ([], "a list of []"),
        (Named(LOSS, None, FEATURES), "a Named of ['Tensor', 'NoneType', 'Tensor']"),
        (Record(FEATURES, None), "a Record"),
    ],
)
def test_output_without_logits(output, described):
    with pytest.raises(TypeError) as error:
        logits_of(output)
    assert str(error.value).startswith(f"the model returned {described}, in which finecal finds no logits; return ")


@pytest.mark.parametrize(
    "output",
    [
        [{"boxes": FEATURES, "labels": INDICES, "scores": LOSSES}],
        ({"boxes": FEATURES},),
        {"loss_classifier": LOSS, "loss_box_reg": LOSS},
        {"classification": LOSS, "bbox_regression": LOSS},
    ],
)
def test_output_of_a_detector(output):
    with pytest.raises(
        TypeError, match=r"finds no logits; a detector keeps them to itself, so fold .*\.cls_score, for"
    ):
        logits_of(output)


def test_a_mapping_that_is_a_dataclass_too_keeps_its_other_entries():
    @dataclasses.dataclass
    class Both(OrderedDict):
        logits: object = None
        loss: object = None

        def __post_init__(self):
            self.update(logits=self.logits, loss=self.loss)

    new = torch.ones(2, 3)
    out = with_logits(Both(torch.zeros(2, 3), 1.0), new)
    assert type(out) is Both
    assert out["logits"] is out.logits is new
    assert (out["loss"], out.loss) == (1.0, 1.0)
