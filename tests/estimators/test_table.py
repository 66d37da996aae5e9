"""The table of estimators agrees with the functions that it names."""

import inspect
import re

import pytest

from finecal._estimators.table import BY_NAME, ESTIMATORS, Data
from pages import DOCS
from public_names import public

every_estimator = pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda estimator: estimator.name)
BY_POSITION = {
    Data.SEEN: ["logits", "labels", "seen_mask"],
    Data.HELD_OUT: ["logits", "labels", "seen_mask"],
    Data.HEADS: ["logits", "labels", "seen_mask"],
    Data.FOLDS: ["folds", "seen_mask"],
    Data.MIXTURE: ["seen", "unlabelled", "seen_mask"],
    Data.SHARE: ["logits", "seen_mask"],
    Data.LABELLED: ["logits", "labels", "seen_mask"],
}


def test_names_are_unique():
    assert len(BY_NAME) == len(ESTIMATORS)
    assert [BY_NAME[estimator.name] for estimator in ESTIMATORS] == list(ESTIMATORS)


@every_estimator
def test_is_exported(estimator):
    assert public(estimator.name) is estimator.function


@every_estimator
def test_takes_its_data_by_position_and_its_options_by_name(estimator):
    arguments = inspect.signature(estimator.function).parameters
    by_position = BY_POSITION[estimator.data]
    assert list(arguments)[: len(by_position)] == by_position
    assert estimator.options <= arguments.keys() - set(by_position)


def test_each_kind_of_data_is_in_words_and_of_some_estimator():
    assert {estimator.data for estimator in ESTIMATORS} == set(Data) == BY_POSITION.keys()
    for data in Data:
        assert re.fullmatch(r"[a-z].*[a-z]", data.value), data


@every_estimator
def test_is_documented(estimator):
    text = (DOCS / "api" / "estimators.rst").read_text(encoding="utf-8")
    assert (
        len(re.findall(rf"^\.\. autofunction:: finecal\.(?:estimators\.)?{estimator.name}$", text, re.MULTILINE)) == 1
    )
    assert re.fullmatch(r"\S.*[^.]", estimator.note)
