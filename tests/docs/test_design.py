"""The page on design tells the truth about the code."""

import re

import numpy as np
import pytest

import finecal
from pages import DOCS, ROOT, blocks
from test_structure import ORDER

PAGE = "docs/design.md"


def test_estimator_of_the_page():
    (block,) = blocks(PAGE, "python")
    names = {}
    exec(block, names)
    rng = np.random.default_rng(0)
    mask = np.arange(8) < 4
    logits, labels = rng.normal(size=(201, 8)) + 5 * mask, rng.integers(4, size=201)
    logits[np.arange(201), labels] += 6
    gaps = [row[mask & (np.arange(8) != own)].max() - row[~mask].max() for row, own in zip(logits, labels, strict=True)]
    estimate = names["median_logit_gap"](logits, labels, mask, n_bootstrap=50)
    assert estimate.gamma == pytest.approx(np.median(gaps))
    assert estimate.interval[0] < estimate.gamma < estimate.interval[1]
    assert estimate.method == "median_logit_gap"
    samples = finecal.Samples(logits, labels, groups=np.arange(201) // 3)
    grouped = names["median_logit_gap"](samples, mask, n_bootstrap=50)
    assert grouped.interval != estimate.interval
    with pytest.raises(ValueError, match="absent class"):
        names["median_logit_gap"](logits, labels + 4, mask)
    assert estimate.acc_seen_at_gamma == finecal.evaluate(logits, labels, mask, estimate).acc_seen


TEXT = (DOCS / PAGE.removeprefix("docs/")).read_text(encoding="utf-8")
SOURCE = ROOT / "src" / "finecal"
PACKAGES = {name: SOURCE / name for name in ORDER if (SOURCE / name).is_dir()}


def files_in(folder):
    return {path.name for path in folder.iterdir() if path.is_file() and path.suffix != ".pyc"}


def test_page_names_each_package_and_what_is_above():
    (block,) = re.findall(r"^```\{packages\}\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
    assert block.split() == ORDER  # of which the table is made
    for name in files_in(SOURCE):
        assert f"`{name}`" in TEXT or f"`{name.removesuffix('.py')}`" in TEXT or name == "__init__.py", name


def test_packages_import_what_stands_below_them():
    _, picture = blocks(PAGE, "text")
    names = [re.findall(r"\w+", line.partition("   ")[0]) for line in picture.splitlines()]
    lines = {name: number for number, some in enumerate(names) for name in some}
    assert sorted(lines) == sorted(ORDER)
    for package, folder in PACKAGES.items():
        for path in folder.glob("*.py"):
            text = path.read_text(encoding="utf-8")
            imported = lines.keys() & set(re.findall(r"^ *from \.\.(\w+)", text, re.MULTILINE)) - {package}
            assert {name for name in imported if lines[name] < lines[package]} == set(), path


def test_paths_of_the_page_exist():
    prose = TEXT.partition("## Where things are")[2]
    paths = [ROOT / path for path in re.findall(r"`((?:tests|src|docs)/[\w./]+)`", prose)]
    paths += [SOURCE / path for path in re.findall(rf"`((?:{'|'.join(PACKAGES)})/[\w./]+)`", prose)]
    assert len(paths) > 10
    assert [path for path in paths if path.stem not in ("median_gap", "test_median_gap") and not path.exists()] == []
