"""Results as dicts, as JSON and as tables of pandas."""

import inspect
import json
import math
import pickle
import re
import sys
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

import finecal
from every_result import NAMES, SHOWN, make_results
from finecal._core.results import decoded_fields, encoded_fields, to_json


@pytest.fixture(scope="module")
def results_of_tensors():
    return make_results(torch.as_tensor)


# --- dicts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_dicts_have_the_fields_and_survive_json(results, name):
    result, record = results[name], results[name].to_dict()
    expected = [field.name for field in fields(result)]
    if name in ("curve", "iou_curve"):
        described = re.findall(r"^(\w+(?:, \w+)*) : ", inspect.getdoc(type(result)), re.MULTILINE)
        expected = ", ".join(described).split(", ")
    if name == "curve":
        expected = ["ausuc", *(field for field in expected if field != "samples")]
    if name == "diagnosis":
        expected.insert(0, "verdict")
    assert list(record) == expected
    assert json.loads(json.dumps(record), parse_constant=lambda _: None) == json.loads(to_json(record))

    def plain(value):
        if type(value) is dict:
            return all(type(key) is str and plain(entry) for key, entry in value.items())
        return all(map(plain, value)) if type(value) is list else type(value) in (bool, int, float, str, type(None))

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
    assert table[["seen_share_source", "cost_source"]].isna().all(axis=None)
    floats = table.drop(columns=["method", "data", "n", "warnings", "seen_share_source", "cost_source"])
    assert floats.dtypes.eq("float64").all()
    assert floats.loc[1].isna().sum() == 6
    names = {field.name for field in fields(finecal.GammaEstimate)}
    assert {*table} == names - {"interval", "weights", "sources"} | {"interval_low", "interval_high"}


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


@pytest.mark.parametrize("name", NAMES)
def test_pickled_results_are_the_same(results, name):
    back = pickle.loads(pickle.dumps(results[name]))
    assert to_json(back.to_dict()) == to_json(results[name].to_dict())


def test_an_estimate_comes_back_from_json(results):
    estimate = replace(results["estimate"], weights={"a": 0.25, "b": math.inf}, sources={"train": 3})
    encoded = json.loads(json.dumps(encoded_fields(estimate), allow_nan=False))
    assert decoded_fields(encoded, "it", finecal.GammaEstimate) == estimate
    del encoded["weights"], encoded["sources"]
    earlier = decoded_fields(encoded, "it", finecal.GammaEstimate)
    assert (earlier.weights, earlier.sources) == ({}, {})
    for wrong in ({"a": "x"}, ["a"], 3):
        with pytest.raises(ValueError, match="^'weights' in its metadata is "):
            decoded_fields(encoded | {"weights": wrong}, "it", finecal.GammaEstimate)
