import gettext
import re
import sys
from itertools import pairwise
from pathlib import Path

import pycountry
import pytest
import torch

from finecal._demo.names import load_names

DATABASES = {"iso3166-1": pycountry.countries, "iso4217": pycountry.currencies, "iso15924": pycountry.scripts}


@pytest.fixture(scope="module")
def task():
    return load_names()


def splits(task):
    return [task.source, task.train, task.held_out, task.test]


def class_counts(task, split):
    return split.labels.bincount(minlength=len(task.class_names))


def test_half_of_about_290_distinct_classes_are_seen(task):
    assert 270 <= len(task.class_names) <= 310
    assert len(set(task.class_names)) == len(task.class_names)
    assert {"Germany", "Norwegian Krone", "Cyrillic"} <= set(task.class_names)
    assert task.seen_mask.dtype == torch.bool
    assert task.seen_mask.sum() == len(task.class_names) // 2


def test_train_and_held_out_hold_every_seen_class_and_no_other(task):
    for split in (task.train, task.held_out):
        torch.testing.assert_close(class_counts(task, split) > 0, task.seen_mask)


def test_source_and_test_hold_every_class(task):
    assert class_counts(task, task.source).min() >= 7
    assert class_counts(task, task.test).min() >= 2
    assert 0.45 < task.seen_mask[task.test.labels].float().mean() < 0.55


def test_a_seen_class_has_nine_target_spellings_a_quarter_of_them_for_testing(task):
    test = class_counts(task, task.test)
    target = (test + class_counts(task, task.train) + class_counts(task, task.held_out))[task.seen_mask]
    assert target.min() >= 9
    assert (test[task.seen_mask] / target - 0.25).abs().max() < 0.06


def test_no_spelling_occurs_twice(task):
    spellings = [name.casefold() for split in splits(task) for name in split.names]
    assert len(set(spellings)) == len(spellings)


def test_homographs_are_left_out(task):
    # Estonian "Armeenia" is the country and the script.
    spellings = {name.casefold() for split in splits(task) for name in split.names}
    assert "armeenia" not in spellings
    assert {"Armenia", "Armenian"} & set(task.class_names)


def test_names_are_latin_and_bare(task):
    assert not [name for split in splits(task) for name in split.names if re.search(r"[()_\n\u0370-\u1dff]|  ", name)]


def test_every_name_is_a_translation_of_its_class(task):
    def plain(name):
        return re.sub(r"\([^)]*\)|[\s_]", "", name).casefold()

    translations = set()
    for domain, database in DATABASES.items():
        for folder in Path(pycountry.LOCALES_DIR).iterdir():
            translate = gettext.translation(domain, pycountry.LOCALES_DIR, [folder.name], fallback=True).gettext
            for entry in map(dict, database):
                english = entry.get("common_name", entry["name"])
                translations |= {(plain(english), plain(translate(name))) for name in (english, entry["name"])}
    for split in splits(task):
        names = zip(split.names, split.labels.tolist(), strict=True)
        assert {(plain(task.class_names[label]), plain(name)) for name, label in names} <= translations


def test_is_deterministic_and_leaves_the_global_random_state_alone(task):
    state = torch.get_rng_state()
    again = load_names(seed=0)
    torch.testing.assert_close(torch.get_rng_state(), state)
    torch.testing.assert_close(again.seen_mask, task.seen_mask)
    for one, other in zip(splits(again), splits(task), strict=True):
        assert one.names == other.names
        torch.testing.assert_close(one.labels, other.labels)


def test_the_seed_changes_the_seen_classes_and_the_splits_only(task):
    other = load_names(seed=1)
    assert other.class_names == task.class_names
    assert other.source.names == task.source.names
    assert not torch.equal(other.seen_mask, task.seen_mask)
    assert set(other.test.names) != set(task.test.names)
    assert len(other.test) == len(task.test)


def test_a_larger_seen_fraction_adds_classes_to_the_same_task(task):
    tasks = [load_names(seen_fraction=1e-9), task, load_names(seen_fraction=0.8)]
    classes = len(task.class_names)
    assert [int(one.seen_mask.sum()) for one in tasks] == [1, classes // 2, classes * 4 // 5]
    for smaller, larger in pairwise(tasks):
        assert larger.seen_mask[smaller.seen_mask].all()
        assert set(smaller.train.names) < set(larger.train.names)
        assert smaller.source.names == larger.source.names
        assert smaller.test.names == larger.test.names


@pytest.mark.parametrize("fraction", [0.0, 1.0, 50])
def test_refuses_a_seen_fraction_that_leaves_one_group_empty(fraction):
    with pytest.raises(ValueError, match="seen_fraction is .* strictly between 0 and 1"):
        load_names(seen_fraction=fraction)


def test_names_of_some_classes_keep_their_order(task):
    mask = torch.arange(len(task.class_names)) % 3 == 0
    part = task.test.of_classes(mask)
    expected = [(n, y) for n, y in zip(task.test.names, task.test.labels.tolist(), strict=True) if y % 3 == 0]
    assert list(zip(part.names, part.labels.tolist(), strict=True)) == expected
    nothing = task.test.of_classes(torch.zeros_like(mask))
    assert (nothing.names, nothing.labels.shape, nothing.labels.dtype) == ((), (0,), torch.int64)


def test_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycountry", None)
    with pytest.raises(ImportError, match=r"pip install 'finecal\[demo\]'"):
        load_names()
