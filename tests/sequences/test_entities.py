"""Scores of entities against seqeval's own reports, by hand, and on input that cannot be right."""

import math

import numpy as np
import pytest
import torch
from seqeval.metrics import classification_report
from torch import nn

import finecal
from finecal.sequences import EntityReport, entity_scores

TAGS = ["O", "B-LOC", "I-LOC", "B-ORG", "I-ORG", "B-PER", "I-PER"]
MASK = torch.tensor(finecal.seen_mask_from_names(["LOC"], TAGS))
GAMMAS = [0.0, -0.7, 0.4, 1.5]


def sentences(n=30, length=9, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(len(TAGS), (n, length), generator=generator)
    logits = torch.randn(n, length, len(TAGS), generator=generator, dtype=torch.float64)
    logits += 2 * nn.functional.one_hot(labels, len(TAGS)) - 1.5 * ~MASK
    labels[torch.rand(labels.shape, generator=generator) < 0.3] = -100
    return logits.to(dtype), labels


def seqeval_report(logits, labels, gamma, types, tags=TAGS):
    """Return seqeval's report of the types alone, after gamma has been added."""
    shown = [tag if tag[2:] in types else "O" for tag in tags]
    best = (logits.double() + gamma * (~MASK)).argmax(-1)
    pairs = [(own != -100, own, row) for own, row in zip(labels, best, strict=True)]
    truth = [[shown[i] for i in own[kept]] for kept, own, _ in pairs]
    found = [[shown[i] for i in row[kept]] for kept, _, row in pairs]
    return classification_report(truth, found, output_dict=True, zero_division=0)


def numbers(row):
    return pytest.approx((row["precision"], row["recall"], row["f1-score"]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gamma", GAMMAS)
def test_scores_are_those_of_seqeval(gamma, dtype):
    logits, labels = sentences(dtype=dtype)
    report = entity_scores(logits, labels, MASK, gamma, class_names=TAGS)
    groups = {"all": ["LOC", "ORG", "PER"], "seen": ["LOC"], "absent": ["ORG", "PER"]}
    for at_zero in (False, True):
        for group, types in groups.items():
            expected = seqeval_report(logits, labels, 0 if at_zero else gamma, types)
            assert report.scores(group, at_zero=at_zero) == numbers(expected["micro avg"])
            for name in types:
                assert report.scores([name], at_zero=at_zero) == numbers(expected[name])
                assert report.entities[report.types.index(name)] == expected[name]["support"]
    assert (report.types, report.is_seen) == (("LOC", "ORG", "PER"), (True, False, False))


def test_arrays_samples_and_loaders_give_the_same():
    logits, labels = sentences()
    expected = entity_scores(logits, labels, MASK, 0.4, class_names=TAGS)
    assert expected == entity_scores(
        logits.numpy(), labels.numpy(), MASK.numpy(), 0.4, class_names=dict(enumerate(TAGS))
    )
    positions = finecal.Positions(-1, ignore_index=-100)
    loader = list(zip(logits.split(4), labels.split(4), strict=True))
    samples = finecal.collect_logits(nn.Identity(), loader, positions=positions, progress=False)
    assert expected == entity_scores(samples, MASK, 0.4, class_names=TAGS)
    assert expected == entity_scores(
        samples, seen_mask=MASK, gamma=torch.tensor(0.4, dtype=torch.float64), class_names=TAGS
    )


def test_order_of_tags_and_of_sentences_does_not_matter():
    logits, labels = sentences()
    expected = entity_scores(logits, labels, MASK, 0.4, class_names=TAGS)
    order = torch.tensor([3, 0, 6, 2, 5, 1, 4])
    moved = torch.where(labels == -100, labels, order.argsort()[labels.clamp(min=0)])
    tags = [TAGS[i] for i in order]
    found = entity_scores(logits[..., order].flip(0), moved.flip(0), MASK[order], 0.4, class_names=tags)
    assert found == expected


def test_an_entity_does_not_go_on_in_the_next_sentence():
    labels = torch.tensor([[0, 1], [2, 0]])
    logits = 9.0 * nn.functional.one_hot(labels, len(TAGS))
    report = entity_scores(logits, labels, MASK, class_names=TAGS)
    assert report.entities == (2, 0, 0)
    assert entity_scores(logits.reshape(1, 4, -1), labels.reshape(1, 4), MASK, class_names=TAGS).entities == (1, 0, 0)


def test_bilou_is_bioes_by_other_names():
    iobes = ["O", *(f"{p}-{kind}" for kind in ("LOC", "PER") for p in "BIES")]
    bilou = [tag.replace("E-", "L-").replace("S-", "U-") for tag in iobes]
    mask = finecal.seen_mask_from_names(["LOC"], iobes)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(20, 8, 9, generator=generator)
    labels = torch.randint(9, (20, 8), generator=generator)
    one, other = (entity_scores(logits, labels, mask, 0.3, class_names=tags) for tags in (iobes, bilou))
    assert one == other
    assert sum(one.correct) > 0


def test_by_hand():
    report = EntityReport(2.0, ("PER", "LOC"), (True, False), (4, 4), (4, 2), (3, 1), (8, 0), (4, 0))
    assert report.scores() == (4 / 6, 4 / 8, 8 / 14)
    assert report.scores(["LOC"], at_zero=True) == (0.0, 0.0, 0.0)
    assert str(report) == (
        "gamma = 2; entities, %\n"
        "| types        | entities | F1 at 0 |   F1 | precision | recall |\n"
        "| ------------ | -------: | ------: | ---: | --------: | -----: |\n"
        "| seen types   |        4 |    66.7 | 75.0 |      75.0 |   75.0 |\n"
        "| absent types |        4 |     0.0 | 33.3 |      50.0 |   25.0 |\n"
        "| all types    |        8 |    50.0 | 57.1 |      66.7 |   50.0 |\n"
        "| PER (seen)   |        4 |    66.7 | 75.0 |      75.0 |   75.0 |\n"
        "| LOC (absent) |        4 |     0.0 | 33.3 |      50.0 |   25.0 |"
    )
    table = report.to_pandas()
    assert table.loc["LOC", "f1"] == report.scores(["LOC"])[2]
    assert table.loc["PER", "precision_at_zero"] == 0.5


@pytest.mark.parametrize("shape", [(0, 4), (2, 0)])
def test_without_tokens_nothing_is_defined(shape):
    logits, labels = torch.zeros(*shape, len(TAGS)), torch.zeros(shape, dtype=torch.long)
    report = entity_scores(logits, labels, MASK, class_names=TAGS)
    assert report.entities == (0, 0, 0)
    assert all(map(math.isnan, report.scores()))


def samples(**fields):
    logits, labels = sentences(2, 3)
    labels = labels.clamp(min=0).flatten()
    return finecal.Samples(logits.flatten(0, 1), labels, **fields)


LOGITS, LABELS = sentences(2, 3)
OF_TAGS = {"class_names": TAGS}
REFUSED = {
    "no tags": (ValueError, (LOGITS, LABELS, MASK), {"class_names": list("abcdefg")}, "class_names are not the tags"),
    "names of fewer": (ValueError, (LOGITS, LABELS, MASK), {"class_names": TAGS[:-2]}, "5 class names for 7 classes"),
    "rows": (ValueError, (LOGITS[0], LABELS[0], MASK), OF_TAGS, r"shape \(3, 7\); expected \(B, L, C\)"),
    "labels of another shape": (ValueError, (LOGITS, LABELS[:1], MASK), OF_TAGS, r"labels have shape \(1, 3\)"),
    "a type in parts": (ValueError, (LOGITS, LABELS, torch.arange(7) < 2), OF_TAGS, "for 'I-LOC' and True for another"),
    "an absent O": (ValueError, (LOGITS, LABELS, torch.arange(7) > 2), OF_TAGS, "seen_mask is False for 'O'"),
    "NaN": (ValueError, (LOGITS * math.nan, LABELS, MASK), OF_TAGS, "logits contain NaN"),
    "a gamma of NaN": (ValueError, (LOGITS, LABELS, MASK, math.nan), OF_TAGS, "gamma"),
    "no groups": (ValueError, (samples(), MASK), OF_TAGS, "samples have no groups"),
    "groups that come again": (ValueError, (samples(groups=[0, 0, 1, 1, 0, 0]), MASK), OF_TAGS, "out of order"),
    "no labels": (TypeError, (LOGITS, None, MASK), OF_TAGS, "labels"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_right_is_refused(case):
    kind, arguments, options, message = REFUSED[case]
    with pytest.raises(kind, match=message):
        entity_scores(*arguments, **options)


def test_unknown_groups_and_types_are_refused():
    report = entity_scores(LOGITS, LABELS, MASK, class_names=TAGS)
    with pytest.raises(ValueError, match="of is 'PER'; choose one of 'seen', 'absent', 'all'"):
        report.scores("PER")
    with pytest.raises(ValueError, match="of contains 'X'; the types are 'LOC', 'ORG', 'PER'"):
        report.scores(["X"])


def test_labels_that_do_not_count_may_have_any_logits():
    logits, labels = sentences()
    expected = entity_scores(logits, labels, MASK, 0.4, class_names=TAGS)
    spoiled = torch.where((labels == -100)[..., None], torch.full((), np.nan, dtype=logits.dtype), logits)
    assert entity_scores(spoiled, labels, MASK, 0.4, class_names=TAGS) == expected
