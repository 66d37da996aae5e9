"""Every result as a dict, a table of pandas, Markdown and HTML."""

import json
import math
import pickle
import re
import sys
from dataclasses import fields, replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

import finecal
from finecal.results.records import to_json

CLASSES = 6
MASK = np.arange(CLASSES) < 3
NAMES = [
    "report",
    "curve",
    "estimate",
    "comparison",
    "diagnosis",
    "probabilities",
    "scores",
    "bins",
    "class_bias",
    "temperature",
]
SHOWN = [name for name in NAMES if name not in ("scores", "bins", "temperature")]
TABLES = ["report", "comparison", "diagnosis", "probabilities", "class_bias"]


def make_results(convert):
    """One result of each class, of logits that `convert` makes of an array."""
    rng = np.random.default_rng(0)
    labels = np.arange(240) % CLASSES
    pretrained = rng.normal(size=(240, CLASSES)) + 2.0 * np.eye(CLASSES)[labels]
    logits, seen, mask = pretrained + 3.0 * MASK, MASK[labels], convert(MASK)
    z, y = convert(logits), convert(labels)
    curve, probabilities = finecal.tradeoff_curve(z, y, mask), finecal.evaluate_probabilities(z, y, mask, 1.5, n_bins=4)
    head, pretrained_head = (convert(rng.normal(size=(CLASSES, 4))) for _ in range(2))
    train = convert(logits[seen]), convert(labels[seen])
    with pytest.warns(finecal.FinecalWarning, match="features"):
        diagnosis = finecal.diagnose(
            z,
            y,
            mask,
            pretrained_logits=convert(pretrained),
            features=convert(rng.normal(size=(240, 4))),
            pretrained_features=convert(rng.normal(size=(240, 4))),
            head=(head, None),
            pretrained_head=(pretrained_head, None),
        )
    return {
        "report": curve.at(1.5),
        "curve": curve,
        "estimate": finecal.max_logit_gap(*train, mask, n_bootstrap=9),
        "comparison": finecal.compare_estimators(mask, held_out=train, test=(z, y), n_bootstrap=9),
        "diagnosis": diagnosis,
        "probabilities": probabilities,
        "scores": probabilities.seen,
        "bins": probabilities.all.bins,
        "class_bias": finecal.fit_class_bias(z, y, mask).report,
        "temperature": finecal.fit_temperature(z, y).report,
    }


@pytest.fixture(scope="module")
def results():
    return make_results(np.asarray)


@pytest.fixture(scope="module")
def results_of_tensors():
    return make_results(torch.as_tensor)


class Reader(HTMLParser):
    """Collects the cells of the tables and the paragraphs, and fails where tags are not balanced."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tables, self.paragraphs, self.pictures = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            self.pictures.append(dict(attrs))
            return
        self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append("")
        elif tag == "p":
            self.paragraphs.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1] in ("th", "td"):
            self.tables[-1][-1][-1] += data
        else:
            assert self.open[-1] == "p"
            self.paragraphs[-1] += data


def markdown_tables(text):
    """Return the cells of each table, which must be a paragraph of its own."""
    tables = [part.splitlines() for part in text.split("\n\n") if part.startswith("|")]
    assert sum(map(len, tables)) == len(re.findall(r"^\|.*\|$", text, re.MULTILINE))
    cells = [[[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines] for lines in tables]
    for rows in cells:
        assert all(re.fullmatch("-{2,}[-:]", cell) for cell in rows.pop(1))
    return cells


# --- dicts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_dicts_have_the_fields_and_survive_json(results, name):
    result, record = results[name], results[name].to_dict()
    expected = [field.name for field in fields(result)]
    if name == "curve":
        described = re.findall(r"^    (\w+(?:, \w+)*) : ", finecal.TradeoffCurve.__doc__, re.MULTILINE)
        expected = ["ausuc", *", ".join(described).split(", ")]
        expected.remove("samples")
    if name == "diagnosis":
        expected.insert(0, "verdict")
    assert list(record) == expected
    assert json.loads(json.dumps(record), parse_constant=lambda _: None) == json.loads(to_json(record))

    def plain(value):
        if type(value) is dict:
            return all(type(key) is str and plain(entry) for key, entry in value.items())
        return all(map(plain, value)) if type(value) is list else type(value) in (int, float, str, type(None))

    assert plain(record)


@pytest.mark.parametrize("name", NAMES)
def test_tensors_give_the_same(results, results_of_tensors, name):
    same = results_of_tensors[name]
    assert to_json(same.to_dict()) == to_json(results[name].to_dict())
    if hasattr(same, "to_pandas"):
        assert same.to_pandas().equals(results[name].to_pandas())
    if name in SHOWN:
        assert same.to_markdown() == results[name].to_markdown()


def test_dicts_on_a_device(device):
    logits, labels = 2 * torch.eye(3, device=device), torch.arange(3, device=device)
    curve = finecal.tradeoff_curve(logits, labels, [True, True, False])
    assert curve.to_dict()["acc_all"] == curve.to_pandas()["acc_all"].tolist() == curve.acc_all.tolist()


def test_dict_of_a_report_is_flat(results):
    report = results["report"]
    assert report.to_dict() == {field.name: getattr(report, field.name) for field in fields(report)}


def test_dict_of_an_estimate_has_python_numbers(results):
    estimate = replace(results["estimate"], gamma=np.float64(1.25), interval=(1.0, math.inf))
    assert type(estimate.to_dict()["gamma"]) is float
    assert estimate.to_dict()["interval"] == [1.0, math.inf]


def test_nested_dicts(results):
    record = results["diagnosis"].to_dict()
    assert record["gain"] == results["diagnosis"].gain._asdict()
    assert record["finetuned_gaps"]["absent"]["max_gap"] == results["diagnosis"].finetuned_gaps.absent.max_gap
    assert record["oracle"] == results["diagnosis"].oracle.to_dict()
    first = results["comparison"].to_dict()["rows"][0]
    assert first["estimate"] == results["comparison"].rows[0].estimate.to_dict()
    probabilities = results["probabilities"].to_dict()
    assert to_json(probabilities["seen"]["bins"]) == to_json(results["probabilities"].seen.bins.to_dict())


# --- tables of pandas -------------------------------------------------------------------------------------------------


def test_reports_can_be_put_together(results):
    pandas = pytest.importorskip("pandas")
    gammas = [0.0, 1.0, 2.5]
    table = pandas.concat([results["curve"].at(gamma).to_pandas() for gamma in gammas], ignore_index=True)
    assert table["gamma"].tolist() == gammas
    assert table["acc_all"].tolist() == [results["curve"].at(gamma).acc_all for gamma in gammas]
    assert table["n_seen"].dtype == "int64"


def test_table_of_an_estimate_has_numbers_or_nan(results):
    pandas = pytest.importorskip("pandas")
    estimates = [
        replace(results["estimate"], warnings=("one", "two")),
        finecal.GammaEstimate(2.0, "mine", "a guess", 0),
    ]
    table = pandas.concat([estimate.to_pandas() for estimate in estimates], ignore_index=True)
    assert table["gamma"].tolist() == [results["estimate"].gamma, 2.0]
    assert (table["interval_low"][0], table["interval_high"][0]) == results["estimate"].interval
    assert table["warnings"].tolist() == ["one; two", ""]
    floats = table.drop(columns=["method", "data", "n", "warnings"])
    assert floats.dtypes.eq("float64").all()
    assert floats.loc[1].isna().sum() == 4
    names = {field.name for field in fields(finecal.GammaEstimate)}
    assert {*table} == names - {"interval"} | {"interval_low", "interval_high"}


def test_table_of_a_curve_has_each_operating_point(results):
    curve = results["curve"]
    table = curve.to_pandas()
    assert len(table) == len(curve.gamma)
    assert (table["gamma_low"] < table["gamma"]).all()
    assert (table["gamma"] <= table["gamma_high"]).all()
    assert (table["gamma_high"][:-1].to_numpy() == table["gamma_low"][1:].to_numpy()).all()
    assert np.isinf(table[["gamma_low", "gamma_high"]].to_numpy()).sum() == 2
    for row in table.iloc[::17].itertuples():
        at = curve.at(row.gamma)
        assert (row.acc_seen, row.acc_absent, row.acc_all) == (at.acc_seen, at.acc_absent, at.acc_all)
        assert row.seen_correct == round(at.acc_seen * curve.n_seen)


def test_table_of_a_comparison_has_each_estimator(results):
    comparison = results["comparison"]
    table = comparison.to_pandas()
    assert table["method"].tolist() == [row.method for row in comparison.rows]
    assert table["gamma"].tolist() == [row.estimate.gamma for row in comparison.rows]
    assert table["acc_seen"].tolist() == [row.report.acc_seen for row in comparison.rows]
    assert (table["interval_low"] <= table["interval_high"]).all()
    assert table["recovered"].iloc[-1] == 1


def test_what_a_comparison_lacks_is_nan():
    logits = np.tile([[9.0, 4.0, 1.0], [8.0, 3.0, 0.0]], (5, 1))
    table = finecal.compare_estimators([True, False, False], train=(logits, [0] * 10)).to_pandas()
    assert table[["gamma", "interval_low", "acc_all", "recovered"]].dtypes.eq("float64").all()
    assert table["gamma"].isna().all()
    assert table["error"].str.contains("one seen class").all()


def test_tables_of_groups_models_and_bins(results):
    probabilities, diagnosis, bins = results["probabilities"], results["diagnosis"], results["bins"]
    table = probabilities.to_pandas()
    assert table.index.tolist() == ["seen", "absent", "all"]
    assert table.loc["absent", "ece"] == probabilities.absent.ece
    assert table["gamma"].eq(1.5).all()
    assert "bins" not in table
    table = diagnosis.to_pandas()
    assert table.index.tolist() == ["pretrained", "finetuned", "oracle"]
    assert table.loc["oracle"].to_dict() == diagnosis.oracle.to_dict()
    table = bins.to_pandas()
    assert table["low"].tolist() == [0, 0.25, 0.5, 0.75]
    assert table["high"].tolist() == [0.25, 0.5, 0.75, 1]
    assert table["count"].sum() == probabilities.all.n


def test_without_pandas(results, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install pandas"):
        results["report"].to_pandas()


# --- Markdown and HTML ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHOWN)
def test_markdown_and_html_hold_the_same(results, name):
    result, page = results[name], Reader(results[name]._repr_html_())
    text = result.to_markdown()
    assert markdown_tables(text) == page.tables
    paragraphs = [part.removeprefix("> ") for part in text.split("\n\n") if not part.startswith("|")]
    assert paragraphs == page.paragraphs
    for line in text.splitlines() if name in TABLES else ():
        assert not line.startswith("|") or line in str(result).splitlines()


def test_tables_show_the_numbers(results):
    report, curve = results["report"], results["curve"]
    (table,) = markdown_tables(report.to_markdown())
    assert [float(cell) for cell in table[1][1:]] == pytest.approx(
        [100 * report.acc_seen, 100 * report.acc_absent, 100 * report.acc_all], abs=0.05
    )
    (table,) = markdown_tables(curve.to_markdown())
    for (name, _, *cells), objective in zip(table[2:], ("overall", "balanced", "harmonic"), strict=True):
        at = curve.at(curve.best(objective))
        assert "oracle" in name
        shown = [at.acc_seen, at.acc_absent, at.acc_all, at.balanced, at.harmonic_mean]
        assert [float(cell) / 100 for cell in cells] == pytest.approx(shown, abs=0.0005)


def test_numbers_stand_to_the_right(results):
    html = results["report"]._repr_html_()
    assert re.search(r'<td style="text-align: right[^>]*>\d', html)
    assert re.search(r'<th scope="row" style="text-align: left[^>]*>every class', html)


def test_warnings_stand_out_and_nothing_is_taken_for_a_tag(results):
    evil = "<script>alert('x')</script> & | <!-- y"
    estimate = replace(results["estimate"], method=evil, warnings=(evil,))
    page = Reader(estimate._repr_html_())
    assert page.paragraphs[-1] == f"warning: {evil}"
    assert "<script" not in estimate._repr_html_()
    assert "border-left" in estimate._repr_html_()
    assert r"> warning: \<script>alert('x')\</script> & | \<!-- y" in estimate.to_markdown()
    assert f"warning: {evil}" in str(estimate)

    comparison = finecal.EstimatorComparison((finecal.ComparedEstimate(evil, "x\ny", estimate),))
    assert "<script" not in comparison._repr_html_()
    (table,) = markdown_tables(comparison.to_markdown())
    assert table[1][0].replace("\\", "") == evil
    assert table[1][-1] == "x y"


def test_markdown_shows_a_text_as_it_is(results):
    text = r"*a* **b** `c` ~~d~~ [e](f) &amp; &#60; __g__ _h i_ <j> \ max_logit_gap Acc_S/Y 1 < 2 & 3 [0, C)"
    shown = (
        r"\*a\* \*\*b\*\* \`c\` \~\~d\~\~ [e]\(f) \&amp; \&#60; \_\_g\_\_ \_h i\_ \<j> \\ "
        "max_logit_gap Acc_S/Y 1 < 2 & 3 [0, C)"
    )
    assert replace(results["estimate"], warnings=(text,)).to_markdown().endswith(f"\n\n> warning: {shown}")


def test_an_average_over_classes_is_named():
    report = finecal.evaluate(2 * np.eye(3), [0, 1, 2], [True, True, False], 0.5, "macro")
    assert str(report).startswith("gamma = 0.5 (macro)\n|")


@pytest.mark.parametrize("label", [0, 5])
def test_samples_of_one_group(label, results):
    logits = 2 * np.eye(CLASSES)[[label] * 3]
    curve, probabilities = (
        function(logits, [label] * 3, MASK) for function in (finecal.tradeoff_curve, finecal.evaluate_probabilities)
    )
    record, missing = curve.at(0.0).to_dict(), "acc_absent" if label == 0 else "acc_seen"
    assert math.isnan(record[missing])
    assert json.loads(to_json(record))[missing] is None
    assert math.isnan(curve.at(0.0).to_pandas()[missing].item())
    assert len(markdown_tables(curve.to_markdown())[0]) == 2
    for result in (curve, curve.at(0.0), probabilities):
        page = Reader(result._repr_html_())
        assert page.tables == markdown_tables(result.to_markdown())
        assert not page.pictures
        assert "nan" not in str(page.tables)
        assert "-" in str(page.tables)


@pytest.mark.parametrize("name", NAMES)
def test_pickled_results_are_the_same(results, name):
    back = pickle.loads(pickle.dumps(results[name]))
    assert to_json(back.to_dict()) == to_json(results[name].to_dict())


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_a_large_curve_stays_small_in_a_notebook(rng):
    labels = rng.integers(0, CLASSES, 60_000)
    logits = rng.normal(size=(60_000, CLASSES)) + 2 * np.eye(CLASSES)[labels]
    curve = finecal.tradeoff_curve(logits, labels, MASK)
    assert len(curve.gamma) > 40_000
    html = curve._repr_html_()
    assert len(html) < 100_000
    (picture,) = Reader(html).pictures
    assert picture["src"].startswith("data:image/png;base64,iVBOR")
    assert "Acc_U/Y" in picture["alt"]


def test_without_matplotlib_there_is_the_table(results, monkeypatch):
    for module in [module for module in sys.modules if module.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    page = Reader(results["curve"]._repr_html_())
    assert page.tables
    assert not page.pictures


@pytest.mark.parametrize("name", ["curve", "comparison", "diagnosis", "probabilities", "margins"])
def test_plots_draw_on_the_axes_given(results, name):
    figure = pytest.importorskip("matplotlib.figure").Figure()
    ax = figure.subplots()
    result = results["curve"].samples if name == "margins" else results[name]
    assert result.plot(ax) is ax
    assert ax.has_data()


# --- documentation ----------------------------------------------------------------------------------------------------


def test_python_of_the_page_runs(capsys, tmp_path, monkeypatch):
    rng = np.random.default_rng(1)
    labels = np.arange(240) % CLASSES
    logits = rng.normal(size=(240, CLASSES)) + 2.0 * np.eye(CLASSES)[labels] + 3.0 * MASK
    monkeypatch.chdir(tmp_path)
    Path("finecal-demo").mkdir()
    for name, rows in {"train": MASK[labels], "test": labels >= 0}.items():
        np.savez(f"finecal-demo/{name}.npz", logits=logits[rows], labels=labels[rows])
    names = {}
    text = (Path(__file__).parents[2] / "docs" / "how-to" / "results.md").read_text(encoding="utf-8")
    for block in re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        exec(block, names)
    assert names["table"].index.tolist() == ["before", "after"]
    assert list(names["record"])[:3] == [field.name for field in fields(names["report"])][:3]
    assert names["points"].loc[names["best"], "acc_seen"] >= 0.8
    assert "own group allowed" in capsys.readouterr().out
