"""A page read as a browser would read it, and pages that several tests look at."""

import base64
import json
import math
from functools import cache
from html.parser import HTMLParser

import numpy as np

import finecal

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
    return unpacked(json.loads(read(html).one("script", id="data").text))


def unpacked(value):
    types = {"float32": "<f4", "float64": "<f8", "uint8": "<u1", "uint16": "<u2", "uint32": "<u4"}
    if isinstance(value, dict) and "base64" in value:
        return np.frombuffer(base64.b64decode(value["base64"]), types[value["type"]])
    return {key: unpacked(item) for key, item in value.items()} if isinstance(value, dict) else value


def absent_at(data, tally, gamma):
    """Return how many samples of each group of a tally there are, and how many are predicted absent at gamma."""
    group = np.repeat(np.arange(len(tally["cells"])), tally["cells"])
    absent = data["levels"][tally["level"]].astype(np.float64) < gamma
    found = np.zeros((2, len(tally["cells"])), dtype=int)
    np.add.at(found[0], group, tally["samples"])
    np.add.at(found[1], group[absent], tally["samples"][absent])
    return found


def right_at(data, gamma):
    """Return the right samples of each class at gamma, from nothing but the data of the page."""
    hits, absent = absent_at(data, data["classes"]["hits"], gamma)
    return np.where(data["classes"]["is_seen"], hits - absent, absent)


def accuracies_at(data, gamma):
    """Return the accuracy on seen, on absent and on all samples, micro, from nothing but the data of the page."""
    (absent_miss, seen_miss, absent_hit, seen_hit), below = absent_at(data, data["samples"], gamma)
    seen, absent = seen_hit - below[3], below[2]
    sizes = seen_hit + seen_miss, absent_hit + absent_miss
    return seen / sizes[0], absent / sizes[1], (seen + absent) / sum(sizes)


def confused_at(data, gamma):
    """Return the most confused pairs at gamma, with their samples, from nothing but the data of the page."""
    pairs = data["pairs"]
    sizes, absent = absent_at(data, pairs["samples"], gamma)
    counts = np.where(data["classes"]["is_seen"][pairs["label"]], absent, sizes - absent)
    order = sorted(counts.nonzero()[0], key=lambda pair: (-counts[pair], pair))[: data["shown_pairs"]]
    return [(int(pairs["label"][p]), int(pairs["predicted"][p]), int(counts[p])) for p in order]


def changes_at(data, gamma):
    """Return sample, label, and predictions at 0 and at gamma of the first changes, from the data of the page."""
    changes = data["changes"]
    margin = data["levels"][changes["level"]].astype(np.float64)
    chosen = ((margin < gamma) != (margin < 0)).nonzero()[0][: data["shown_changes"]]
    before, now = (
        np.where(margin < value, changes["absent_class"], changes["seen_class"])[chosen] for value in (0.0, gamma)
    )
    rows = zip(changes["sample"][chosen], changes["label"][chosen], before, now, strict=True)
    return [list(map(int, row)) for row in rows]


def problem(seed=0, samples=60, classes=7):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, samples)
    mask = np.arange(classes) % 2 == 0
    logits = rng.normal(size=(samples, classes)) + 2 * np.eye(classes)[labels] + 2 * mask
    return logits.astype(np.float32), labels, mask
