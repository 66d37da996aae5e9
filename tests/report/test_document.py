"""The page as a whole: what is on it, what it is made from, and that it loads nothing."""

import base64
import hashlib
import math
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

import finecal
from finecal._report.figures import change, percent
from finecal.streaming import MarginRows
from report_pages import data_of, page_of_ties, problem, read, right_at, usual_page

INF = math.inf


# --- what is on the page ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("average", ["micro", "macro"])
def test_accuracies_are_those_of_evaluate(average):
    html, (logits, labels, mask) = page_of_ties(average)
    root = read(html)
    best = finecal.tradeoff_curve(logits, labels, mask, average).best()
    before, now, oracle = (finecal.evaluate(logits, labels, mask, gamma, average) for gamma in (0.0, 1.25, best))
    table = root.one("table", id="accuracies")
    keys = [element.attributes["data-before"] for element in table.all("data", data_before=True)]
    assert len(keys) == 7
    for key in keys:
        for attribute, report in {"data_before": before, "data_now": now, "data_oracle": oracle}.items():
            (shown,) = table.all("data", **{attribute: key})
            assert float(shown.attributes["value"]) == getattr(report, key)
            assert shown.text == f"{100 * getattr(report, key):.1f}"
        assert table.one("span", data_change=key).text == change(getattr(now, key) - getattr(before, key))
    assert float(root.one("input", id="number").attributes["value"]) == 1.25
    assert [button.attributes["data-gamma"] for button in root.all("button", data_gamma=True)] == [
        "0.0",
        "1.25",
        str(best),
    ]
    assert f"(AUSUC) is {now.ausuc:.4f}" in root.one("section", aria_labelledby="accuracy-title").text


def test_samples_in_place_of_logits_and_labels():
    logits, labels, mask = problem(4)
    samples = finecal.Samples(logits, labels)
    expected = finecal.html_report(logits, labels, mask, 1.25, title="A title")
    assert finecal.html_report(samples, mask, 1.25, title="A title") == expected
    finecal.evaluate(samples, mask)
    assert finecal.html_report(samples, mask, gamma=1.25, title="A title") == expected


def test_each_class_before_and_after():
    logits, labels, mask = problem(4)
    names = [f"kind {c}" for c in range(7)]
    labels[labels == 5] = 4
    rows = (
        read(finecal.html_report(logits, labels, mask, 2.0, class_names=names)).one("table", id="classes").all("tr")[1:]
    )
    shown = {row.attributes["data-class"]: [cell.text for cell in row.children] for row in rows}
    assert sorted(shown) == ["0", "1", "2", "3", "4", "6"]  # class 5 does not occur
    for c in (0, 1, 2, 3, 4, 6):
        of_class = labels == c
        before, now = (float((finecal.predict(logits, mask, g)[of_class] == c).mean()) for g in (0.0, 2.0))
        group, size = "seen" if mask[c] else "absent", str(of_class.sum())
        assert shown[str(c)] == [f"kind {c}", group, size, percent(before), percent(now), change(now - before), str(c)]


def test_the_numbers_and_the_slider_come_first():
    html, (logits, labels, mask) = page_of_ties("micro")
    root = read(html)
    assert root.one("h1").text == root.one("title").text == "How gamma changes accuracy on seen and absent classes"
    panel = root.one("main").children[0]
    assert panel.attributes["id"] == "panel"
    assert {"slider", "number"} == {control.attributes["id"] for control in panel.all("input")}
    before, now = (finecal.evaluate(logits, labels, mask, gamma) for gamma in (0.0, 1.25))
    for number, key in zip(panel.all("dd"), ("acc_all", "acc_seen", "acc_absent"), strict=True):
        then, later = getattr(before, key), getattr(now, key)
        assert " ".join(number.text.split()) == f"{percent(then)} → {percent(later)} {change(later - then)}"


def test_classes_come_by_their_change():
    logits, labels, mask = problem(4, samples=300)

    def shown(names=None):
        table = read(finecal.html_report(logits, labels, mask, 2.0, class_names=names)).one("table", id="classes")
        keys = [button.attributes["data-key"] for button in table.all("button")]
        (order,) = (head.attributes["aria-sort"] for head in table.all("th", aria_sort=True)[5:6])
        return keys, order, [int(row.attributes["data-class"]) for row in table.all("tr")[1:]]

    def gain(label):
        rows = labels == label
        return np.subtract(
            *(finecal.predict(logits[rows], mask, gamma) == label for gamma in (2.0, 0.0)), dtype=int
        ).mean()

    keys, order, rows = shown()
    assert keys == ["name", "group", "count", "before", "now", "change"]
    assert order == "ascending"
    assert rows == sorted(range(7), key=gain)
    assert gain(rows[0]) < 0 < gain(rows[-1])
    assert shown(list("abcdefg")) == ([*keys, "index"], order, rows)


@pytest.mark.parametrize("group", [True, False])
def test_samples_of_one_group(group):
    logits, labels, mask = problem(5)
    rows = mask[labels] == group
    root = read(finecal.html_report(logits[rows], labels[rows], mask, 1.0))
    assert f"All samples are of {'seen' if group else 'absent'} classes" in root.text
    assert root.one("table", id="accuracies").one("data", data_now="balanced").text == "-"
    assert [figure.attributes["data-figure"] for figure in root.all("svg", data_figure=True)] == ["accuracy", "margins"]
    assert root.all("data", data_oracle=True) == []
    with pytest.raises(ValueError, match="needs samples of both groups"):
        finecal.html_report(logits[rows], labels[rows], mask, None)


def with_prototypes(seed=4, **keywords):
    """A page of samples whose features tell their classes, with the logits that the prototypes give."""
    logits, labels, mask = problem(seed, samples=200)
    features = (np.eye(7)[labels] + 0.2 * np.random.default_rng(seed).normal(size=(200, 7))).astype(np.float32)
    prototypes = finecal.calibrators.fit_prototypes(finecal.Samples(logits, features=features), mask, 2.0)
    html = finecal.html_report(logits, labels, mask, 1.5, prototypes=(prototypes, features), **keywords)
    told = (features - prototypes.center.numpy()) @ prototypes.weight.numpy().T
    return html, (logits + 2.0 * ~mask + told, labels, mask), prototypes.report


@pytest.mark.parametrize("average", ["micro", "macro"])
def test_prototypes_have_a_column(average):
    html, (calibrated, labels, mask), _ = with_prototypes(average=average)
    expected = finecal.evaluate(calibrated, labels, mask, average=average)
    section = read(html).one("section", aria_labelledby="accuracy-title")
    rows = section.one("table", id="accuracies").all("tr")
    assert rows[0].children[-1].text == "gamma = 2 and prototypes"
    shown = {cell.attributes["data-prototypes"]: cell for cell in section.all("data", data_prototypes=True)}
    assert len(shown) == len(rows) - 1 == 7
    for key, cell in shown.items():
        assert float(cell.attributes["value"]) == pytest.approx(getattr(expected, key), abs=1e-12)
        assert cell.text == percent(getattr(expected, key))
    assert f"With them the area is {expected.ausuc:.4f}." in section.text
    assert "prototypes" not in usual_page().lower()


def test_prototypes_of_samples_of_one_group():
    logits, labels, mask = problem(5)
    prototypes = finecal.calibrators.Prototypes(mask, 1.0, np.eye(7), np.zeros(7))
    rows = mask[labels]
    pair = prototypes, np.zeros((int(rows.sum()), 7))
    root = read(finecal.html_report(logits[rows], labels[rows], mask, 1.0, prototypes=pair))
    table = root.one("table", id="accuracies")
    assert table.one("data", data_prototypes="balanced").text == "-"
    assert table.one("data", data_prototypes="acc_seen").text == table.one("data", data_now="acc_seen").text
    assert "With them" not in root.text


# --- the page as a file -----------------------------------------------------------------------------------------------

NAMES = ["</script><script>alert(1)</script>", "<img src=x onerror=alert(2)>", "a \"quoted\" & 'plain'", "{{ 7 * 7 }}"]


NAMES += ["شجرة", "very long " * 30, ""]


def test_names_are_text_and_nothing_else():
    html = finecal.html_report(*problem(7), 1.0, class_names=NAMES, title="<b>Trees</b> & {{ title }}")
    root = read(html)
    assert [script.attributes.get("id") for script in root.all("script")] == ["data", None, None, None]
    assert root.all("img") == root.all("b") == []
    assert root.one("title").text == root.one("h1").text == "<b>Trees</b> & {{ title }}"
    cells = root.one("table", id="classes").all("bdi")
    assert sorted(cell.text for cell in cells) == sorted(name.strip() for name in NAMES)
    assert data_of(html)["class_names"] == NAMES


def test_nothing_is_loaded_and_nothing_else_runs():
    html = usual_page()
    root = read(html)
    assert re.sub(r'xmlns(:\w+)?="http://www\.w3\.org/[^"]*"', "", html).count("://") == 0
    assert re.findall(r"url\((?!#)", html) == re.findall(r"@import", html) == []
    for element in root.all():
        for name in ("src", "href", "xlink:href", "action", "data", "poster"):
            assert element.attributes.get(name, "#").startswith("#")
        assert not any(name.startswith("on") for name in element.attributes)
    policy = root.one("meta", http_equiv="Content-Security-Policy").attributes["content"]
    for rule in ("default-src 'none'", "base-uri 'none'", "form-action 'none'"):
        assert rule in policy.split("; ")
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert re.findall("'sha256-([^']*)'", policy) == digests
    assert len(digests) == 3
    assert html.startswith('<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">')


def test_ids_are_unique_and_labels_name_them():
    html = usual_page()
    root = read(html)
    ids = Counter(element.attributes["id"] for element in root.all(id=True))
    assert set(ids.values()) == {1}
    references = [
        element.attributes[name] for name in ("for", "aria-labelledby") for element in root.all(**{name: True})
    ]
    references += re.findall(r'(?:xlink:href="|url\()#([^")]*)', html)
    assert len(references) > 10
    assert set(references) <= set(ids)
    labelled = {label.attributes["for"] for label in root.all("label")}
    assert {control.attributes["id"] for control in root.all("input")} == labelled
    assert all(figure.attributes["aria-label"] for figure in root.all("div", role="img"))
    for header in root.all("th"):
        assert header.attributes["scope"] in ("col", "row")


# --- from a report ----------------------------------------------------------------------------------------------------


def test_report_shows_all_that_its_margins_tell():
    logits, labels, mask = problem(9)
    names = [f"kind {c}" for c in range(7)]
    html = finecal.evaluate(logits, labels, mask, 1.0, "macro").to_html(class_names=names, title="Margins")
    whole = finecal.html_report(logits, labels, mask, 1.0, average="macro", class_names=names)
    data, expected = data_of(html), data_of(whole)
    assert data["pairs"] is data["changes"] is None
    assert np.array_equal(data["levels"], expected["levels"])
    for gamma in (0.0, 1.0):
        assert right_at(data, gamma).tolist() == right_at(expected, gamma).tolist()
    root = read(html)
    assert root.one("h1").text == "Margins"
    assert root.all("table", id="pairs") == root.all("table", id="changes") == []
    assert "need the logits" in root.text
    assert root.one("table", id="classes").text == read(whole).one("table", id="classes").text
    assert root.one("table", id="accuracies").text == read(whole).one("table", id="accuracies").text


def test_report_of_margins_without_labels():
    logits, labels, mask = problem(9)
    report = MarginRows(mask).update(logits, labels).compute().curve().at(1.0)
    root = read(report.to_html())
    assert root.all("table", id="classes") == []
    assert root.one("table", id="accuracies").one("data", data_now="acc_all").text == percent(report.acc_all)
    with pytest.raises(ValueError, match="class_names are given, but these samples come without labels"):
        report.to_html(class_names=list("abcdefg"))


def test_report_without_samples_says_so():
    with pytest.raises(ValueError, match="not made by evaluate, so it has no samples to show"):
        finecal.SeenAbsentReport(*[0.5] * 9, 1, 1).to_html()


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"class_names": "abcdefg"}, TypeError, "class_names is a str; pass a list of str, one per class"),
        ({"class_names": 7}, TypeError, "class_names is a int"),
        ({"class_names": [1] * 7}, TypeError, "class_names are not all texts"),
        ({"class_names": ["a"]}, ValueError, "there are 1 class names for 7 classes"),
        ({"class_names": list("abcdefgh")}, ValueError, "there are 8 class names for 7 classes"),
        ({"average": "weighted"}, ValueError, "average is 'weighted'"),
        ({"gamma": INF}, ValueError, "gamma is inf; it must be finite"),
        ({"gamma": "1"}, TypeError, "gamma is"),
    ],
)
def test_wrong_arguments(keywords, error, message):
    with pytest.raises(error, match=message):
        finecal.html_report(*problem(), **keywords)


def test_wrong_prototypes():
    logits, labels, mask = problem()
    module = finecal.calibrators.Prototypes(mask, 1.0, np.eye(7), np.zeros(7))
    others = finecal.calibrators.Prototypes(~mask, 1.0, np.eye(7), np.zeros(7))
    features = np.zeros((60, 7))
    for pair, error, message in (
        (module, TypeError, r"prototypes are not a pair; pass prototypes=\(prototypes, features\)"),
        ((features, module), TypeError, "prototypes are not a pair"),
        ((module, features[1:]), ValueError, "features have shape"),
        ((module, features[:, 1:]), ValueError, "features have shape"),
        ((others, features), ValueError, "prototypes have other seen classes than seen_mask"),
    ):
        with pytest.raises(error, match=message):
            finecal.html_report(logits, labels, mask, prototypes=pair)


def test_wrong_samples():
    logits, labels, mask = problem()
    with pytest.raises(ValueError, match="there are no samples, and nothing to show"):
        finecal.html_report(logits[:0], labels[:0], mask)
    with pytest.raises(ValueError, match="there are no samples, and nothing to show"):
        finecal.evaluate(logits[:0], labels[:0], mask).to_html()
    logits[3, 1] = math.nan
    with pytest.raises(ValueError, match="logits contain NaN"):
        finecal.html_report(logits, labels, mask)
    with pytest.raises(ValueError, match="there are 2 class names for at least 7 classes"):
        finecal.evaluate(*problem()).to_html(class_names=["a", "b"])


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ImportError, match=r"jinja2: pip install 'finecal\[report\]'"):
        finecal.html_report(*problem())


def test_matplotlib_is_not_needed(tmp_path):
    """Every way to a page: from logits, with an estimate and prototypes, from a report, and by the command."""
    np.savez(tmp_path / "test.npz", logits=problem()[0], labels=problem()[1])
    np.save(tmp_path / "seen.npy", problem()[2])
    code = """
import sys
sys.modules["matplotlib"] = None
import numpy as np, finecal
from finecal._cli import main
data, mask = np.load("test.npz"), np.load("seen.npy")
logits, labels = data["logits"], data["labels"]
seen = mask[labels]
gamma = finecal.estimate_gamma(mask, train=(logits[seen], labels[seen]), n_bootstrap=20)
prototypes = finecal.calibrators.Prototypes(mask, 1.0, np.eye(7), np.zeros(7)), np.zeros((60, 7))
pages = [
    finecal.html_report(logits, labels, mask, gamma, prototypes=prototypes, average="macro"),
    finecal.html_report(logits, labels, mask, None),
    finecal.evaluate(logits, labels, mask, gamma).to_html(),
]
main(["report", "test.npz", "--seen", "seen.npy", "-o", "page.html"])
pages.append(open("page.html").read())
print(*{page[:15] for page in pages})
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=tmp_path, capture_output=True, check=True)
    assert done.stdout.splitlines()[-1] == b"<!doctype html>"
