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
