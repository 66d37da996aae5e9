"""The page is read as a browser would read it; its scripts count by the rule that `count` states anew."""

import base64
import hashlib
import json
import math
import re
import sys
from collections import Counter
from functools import cache
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import finecal
import reference
from finecal.page.data import Page, slider_range
from finecal.page.words import change, percent, summary
from finecal.streaming import MarginRows
from profiles import examples

INF = math.inf
VOID = {"meta", "input", "link", "br"}


class Element:
    def __init__(self, tag, attributes, parent):
        self.tag, self.attributes, self.parent, self.parts, self.children = tag, attributes, parent, [], []

    @property
    def text(self):
        return "".join(part if isinstance(part, str) else part.text for part in self.parts).strip()

    def all(self, tag=None, **wanted):
        """Return the elements below with this tag and these attributes; True for any value."""
        wanted = {name.replace("_", "-"): value for name, value in wanted.items()}
        found = []
        for child in self.children:
            values = child.attributes
            if (tag is None or child.tag == tag) and all(
                name in values and value in (True, values[name]) for name, value in wanted.items()
            ):
                found.append(child)
            found += child.all(tag, **{name.replace("-", "_"): value for name, value in wanted.items()})
        return found

    def one(self, tag=None, **wanted):
        (found,) = self.all(tag, **wanted)
        return found


class Tree(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.root = self.place = Element("", {}, None)
        self.feed(html)
        self.close()
        assert self.place is self.root, f"<{self.place.tag}> is not closed"

    def handle_starttag(self, tag, attrs):
        element = Element(tag, dict(attrs), self.place)
        self.place.children.append(element)
        self.place.parts.append(element)
        if tag not in VOID:
            self.place = element

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.place = self.place.parent

    def handle_endtag(self, tag):
        assert self.place.tag == tag
        self.place = self.place.parent

    def handle_data(self, data):
        self.place.parts.append(data)


def read(html):
    return Tree(html).root


# What several tests look at: drawing the pictures of a page takes most of the time.


@cache
def usual_page():
    return finecal.html_report(*problem(), 1.0)


@cache
def page_of_ties(average):
    """Return a page that opens at gamma = 1.25, with its samples."""
    logits, labels, mask = problem()
    logits = np.round(logits)
    logits[0, mask], logits[1, ~mask], logits[2] = -INF, -INF, -INF
    return finecal.html_report(logits, labels, mask, 1.25, average=average), (logits, labels, mask)


def data_of(html):
    """Return what the scripts get, with arrays unpacked."""
    data = json.loads(read(html).one("script", id="data").text)
    types = {"float32": "<f4", "float64": "<f8", "uint8": "<u1", "uint16": "<u2", "uint32": "<u4"}
    for key, value in data.items():
        if isinstance(value, dict) and "base64" in value:
            data[key] = np.frombuffer(base64.b64decode(value["base64"]), types[value["type"]])
    return data


def predictions(data, gamma):
    """Return each sample's class at gamma, from nothing but the data of the page."""
    return np.where(data["margin"].astype(np.float64) < gamma, data["absent_class"], data["seen_class"])


def problem(seed=0, samples=60, classes=7):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, samples)
    mask = np.arange(classes) % 2 == 0
    logits = rng.normal(size=(samples, classes)) + 2 * np.eye(classes)[labels] + 2 * mask
    return logits.astype(np.float32), labels, mask


# --- what the scripts count from --------------------------------------------------------------------------------------


@pytest.mark.parametrize("average", ["micro", "macro"])
def test_data_give_what_evaluate_gives_at_every_gamma(average):
    html, (logits, labels, mask) = page_of_ties(average)
    data = data_of(html)
    assert data["average"] == average
    assert data["label"].tolist() == labels.tolist()
    assert len(set(data["margin"].tolist())) < 30
    for gamma in (-3.0, 0.0, 1.0, 1.5, 2.0, 40.0):
        chosen = predictions(data, gamma)
        assert chosen.tolist() == finecal.predict(logits, mask, gamma).tolist()
        right = chosen == data["label"]
        assert right.tolist() == [
            bool(hit and (margin < gamma) != seen)
            for margin, hit, seen in zip(data["margin"].tolist(), data["flags"] >> 1, data["flags"] & 1, strict=True)
        ]
        report = finecal.evaluate(logits, labels, mask, gamma, average)
        expected = reference.accuracies(logits, labels, mask, gamma, average)
        assert (report.acc_seen, report.acc_absent, report.acc_all) == pytest.approx(expected)
        if average == "micro":
            assert right.mean() == report.acc_all


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_tensors_of_each_dtype_keep_their_margins(dtype):
    logits, labels, mask = problem(1)
    tensors = torch.tensor(logits).to(dtype), torch.tensor(labels), torch.tensor(mask)
    data = data_of(finecal.html_report(*tensors))
    assert data["margin"].dtype.itemsize == (8 if dtype == torch.float64 else 4)
    assert data["margin"].tolist() == finecal.margins(*tensors).margin.tolist()


def test_many_classes_take_wider_indices():
    logits = np.full((3, 70_000), -1.0, dtype=np.float32)
    labels = np.array([0, 69_999, 65_536])
    logits[np.arange(3), labels] = 3
    mask = np.arange(70_000) < 10
    data = data_of(finecal.html_report(logits, labels, mask))
    assert data["label"].tolist() == labels.tolist()
    assert data["absent_class"].tolist() == [10, 69_999, 65_536]


def test_size_grows_by_what_is_counted_from():
    def size(samples):
        return len(finecal.html_report(*problem(2, samples, 30)))

    small, large = size(20_000), size(60_000)
    packed = 4 / 3 * (4 + 1 + 3 * 2)  # margin, flags, three classes; in base64
    assert 40_000 * packed == pytest.approx(large - small, rel=0.02)
    assert small < 800_000


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
        assert shown[str(c)] == [f"kind {c}", group, size, percent(before), percent(now), change(now - before)]


def test_words_at_gamma():
    logits = np.array([[4.0, 1.0, 3.0], [2.0, 5.0, 4.5], [6.0, 1.0, 2.0]])
    labels, mask = [0, 2, 0], [True, True, False]
    text = read(finecal.html_report(logits, labels, mask, 0.75)).text
    assert "3 labelled samples: 2 of seen classes, 1 of absent ones." in text
    assert "The model knows 3 classes, 2 seen and 1 absent." in text
    assert "takes the accuracy from 66.7 % to 100.0 % (+33.3 points): on seen classes from 100.0 % to 100.0 %" in text
    assert "(the oracle), 0.75, gets 100.0 % (+33.3 points); this one has 100 % of that gain." in text

    def words(gamma, average="micro", **contents):
        return " ".join(summary(Page(finecal.tradeoff_curve(logits, labels, mask, average), gamma, **contents)))

    assert "At gamma = 0 the model is as it came from fine-tuning. Its accuracy is 66.7 %" in words(0.0)
    assert "gets 100.0 % (+33.3 points). No estimate of gamma can bring more." in words(0.0)
    assert "from 66.7 % to 66.7 % (+0.0 points)" in words(2.0)
    assert "this one has 0 % of that gain" in words(2.0)
    assert "from 66.7 % to 33.3 % (\N{MINUS SIGN}33.3 points)" in words(5.0)
    assert "(+33.3 points); this one loses." in words(5.0)
    assert "a bound on what an estimate can reach" in words(0.75, gamma_was_given=False)
    assert "every class counts the same (macro)" in words(0.75, "macro")


def test_estimate_tells_what_it_rests_on():
    estimate = finecal.GammaEstimate(
        1.0,
        "max_logit_gap",
        "9 samples",
        9,
        0.8,
        interval=(0.5, 2.0),
        warnings=("too <few> samples",),
        acc_seen_before=0.9,
    )
    root = read(finecal.html_report(*problem(), estimate))
    assert "Gamma was estimated by max_logit_gap from 9 samples." in root.text
    assert "95 % bootstrap interval is 0.5 to 2." in root.text
    assert "it leaves an accuracy of 80.0 % (90.0 % at gamma = 0)" in root.text
    assert root.one("ul").text == "Warning: too <few> samples"
    unbounded = finecal.GammaEstimate(1.0, "known_share_gamma", "9 samples", 9, interval=(-INF, 2.0))
    assert "interval is -inf to 2." in read(finecal.html_report(*problem(), unbounded)).text


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


@pytest.mark.parametrize("masked", ["seen", "all", "some"])
def test_masked_classes(masked):
    logits, labels, mask = problem(6)
    columns = {"seen": mask, "all": mask | True, "some": np.arange(7) < 2}[masked]
    logits[:, columns] = -INF
    html = finecal.html_report(logits, labels, mask, 1.0)
    data = data_of(html)
    assert np.isfinite(data["margin"]).all() == (masked == "some")
    assert predictions(data, 1.0).tolist() == finecal.predict(logits, mask, 1.0).tolist()
    assert "NaN" not in read(html).one("script", id="data").text
    slider = read(html).one("input", id="slider").attributes
    assert float(slider["min"]) < 0 < float(slider["max"])


def test_one_sample():
    data = data_of(finecal.html_report(np.array([[1.0, 2.0]]), [1], [True, False], 0.5))
    assert data["margin"].tolist() == [-1.0]


# --- the page as a file -----------------------------------------------------------------------------------------------

NAMES = ["</script><script>alert(1)</script>", "<img src=x onerror=alert(2)>", "a \"quoted\" & 'plain'", "{{ 7 * 7 }}"]
NAMES += ["شجرة", "very long " * 30, ""]


def test_names_are_text_and_nothing_else():
    html = finecal.html_report(*problem(7), 1.0, class_names=NAMES, title="<b>Trees</b> & {{ title }}")
    root = read(html)
    assert [script.attributes.get("id") for script in root.all("script")] == ["data", None, None, None]
    assert root.all("img") == root.all("b") == []
    assert root.one("title").text == root.one("h1").text == "<b>Trees</b> & {{ title }}"
    assert [cell.text for cell in root.one("table", id="classes").all("bdi")] == [name.strip() for name in NAMES]
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
    assert "default-src 'none'" in policy
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


def test_figures_lie_where_the_markers_are_put():
    """The scripts put a marker on a picture by the axes in the data: at gamma = 0 it must cover what is drawn there."""
    logits, labels, mask = problem()
    html = usual_page()
    root, axes = read(html), data_of(html)["axes"]
    assert set(axes) == {"tradeoff", "accuracy", "margins"}

    def place(figure, x, y):
        box = axes[figure]
        across, down = ((value - low) / (high - low) for value, (low, high) in ((x, box["x"]), (y, box["y"])))
        return box["left"] + box["width"] * across, box["top"] + box["height"] * (1 - down)

    report = finecal.evaluate(logits, labels, mask)
    (point,) = root.one("g", id="tradeoff-finecal-tradeoff-zero").all("use")
    drawn = [float(point.attributes[name]) for name in "xy"]
    assert drawn == pytest.approx(place("tradeoff", report.acc_seen, report.acc_absent), abs=0.01)
    for figure in ("accuracy", "margins"):
        (line,) = root.one("g", id=f"{figure}-finecal-{figure}-zero").all("path")
        numbers = [float(number) for number in re.findall(r"-?\d+\.?\d*", line.attributes["d"])]
        ends = [*place(figure, 0.0, 0.0), *place(figure, 0.0, axes[figure]["line_top"])]
        assert numbers == pytest.approx(ends, abs=0.01)


def test_the_same_samples_give_the_same_page():
    import matplotlib

    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "black", "savefig.facecolor": "red"}):
        styled = finecal.html_report(*problem(), 1.0)
        assert matplotlib.rcParams["font.size"] == 30
    assert styled == usual_page()


# --- from a report ----------------------------------------------------------------------------------------------------


def test_report_shows_all_that_its_margins_tell():
    logits, labels, mask = problem(9)
    names = [f"kind {c}" for c in range(7)]
    html = finecal.evaluate(logits, labels, mask, 1.0, "macro").to_html(class_names=names, title="Margins")
    whole = finecal.html_report(logits, labels, mask, 1.0, average="macro", class_names=names)
    data, expected = data_of(html), data_of(whole)
    assert data["seen_class"] is data["absent_class"] is None
    assert all(np.array_equal(data[key], expected[key]) for key in ("margin", "flags", "label", "gamma", "average"))
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


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_missing_packages_are_named(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"{package}: pip install 'finecal\[report\]'"):
        finecal.html_report(*problem())


# --- slider -----------------------------------------------------------------------------------------------------------


@examples(60)
@given(
    st.lists(st.floats(-(2.0**100), 2.0**100, width=32) | st.sampled_from([0.0, INF, -INF]), min_size=1, max_size=6),
    st.floats(-1e6, 1e6),
)
def test_slider_holds_zero_and_gamma_at_its_steps(margins, gamma):
    margin = np.array(margins, dtype=np.float32)
    flags = np.arange(len(margin)) % 2 == 0
    curve = finecal.Margins(margin, flags, flags | True, None).curve()
    low, high, step = slider_range(Page(curve, gamma))
    assert low <= gamma <= high
    assert low < 0 < high
    assert -low / step == pytest.approx(round(-low / step), rel=1e-9)
    assert 200 <= (high - low) / step <= 2005
