"""Figures of a version: the file that there is, and what a comparison shows."""

import json

import pytest
import record

import finecal


def test_this_version_has_a_file():
    kept = json.loads((record.RESULTS / f"{finecal.__version__}.json").read_text(encoding="utf-8"))
    assert kept["quality"]["versions"]["finecal"] == finecal.__version__
    assert kept["quality"]["figures"].keys() == {"estimators", "estimate_gamma", "prototypes over gamma, points"}


def test_compares_what_differs(tmp_path, capsys):
    for name, figures in {"1": {"a": 1.0, "b": {"c": 2}}, "2": {"a": 1.0, "b": {"c": 3}, "d": None, "e": 4}}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps({"speed": figures}))
    record.main(["compare", str(tmp_path / "1.json"), str(tmp_path / "2.json")])
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    assert rows[2:] == [["speed: b: c", "2", "3"], ["speed: e", "None", "4"]]


def test_keeps_the_other_part(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    record.keep("quality", {"a": 1})
    path = record.keep("speed", {"b": 2})
    kept = json.loads(path.read_text(encoding="utf-8"))
    assert (kept["quality"]["figures"], kept["speed"]["figures"]) == ({"a": 1}, {"b": 2})
    with pytest.raises(SystemExit):
        record.main([])
