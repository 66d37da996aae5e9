"""Keep the figures of a version, and compare those of two: what it recovers, the harm it does, and how fast it is.

``record.py quality RUNS`` and ``record.py speed`` write their parts of ``results/VERSION.json``;
``record.py compare A B`` prints what differs between two such files.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import torch
from prototypes import measure
from regimes import REGIMES, all_outcomes

import finecal
from estimators import ALL_NAMES, score, task_files
from finecal._core.results import format_table

RESULTS = Path(__file__).parent / "results"
SHAPE = 50_000, 1000
BOOTSTRAP = 100
"""Resamplings for the intervals of `honesty.py`."""


def summary(figures: Sequence[float]) -> dict[str, float]:
    return {"median": round(statistics.median(figures), 2), "worst": round(min(figures), 2), "models": len(figures)}


def quality(folders: Sequence[Path]) -> dict[str, Any]:
    """Return the figures of `estimators.py`, `honesty.py` and `prototypes.py`: per cent recovered, models, points."""
    paths = task_files(folders)
    runs = [run for run in (score(path, ALL_NAMES) for path in paths) if run.counts]
    recovered = {name: [run.figures[name] for run in runs if name in run.figures] for name in ALL_NAMES}
    regimes, every = {}, all_outcomes(paths, list(REGIMES), BOOTSTRAP)
    for regime in REGIMES:
        found = [of[regime] for of in every if regime in of]
        failed = [of for of in found if of.failed]
        holds = [of.interval_holds for of in found if of.interval_holds is not None]
        regimes[regime] = {
            **summary([of.recovered for of in found if of.has_gain]),
            "regret": round(statistics.fmean(of.gain - of.points for of in found), 3),
            "failed, warned": sum(of.warned for of in failed),
            "failed, silent": sum(not of.warned for of in failed),
            "intervals that hold, %": round(100 * statistics.fmean(holds), 1) if holds else None,
        }
    with_features = [found for path in paths if (found := measure(path, ["gain"])) is not None]
    gains: dict[str, list[float]] = {}
    for found in with_features:
        for name, row in found.parts["gain"].items():
            gains.setdefault(name, []).append(row["Acc_Y/Y"])
    return {
        "estimators": {name: summary(figures) for name, figures in recovered.items() if figures},
        "estimate_gamma": regimes,
        "prototypes over gamma, points": {name: summary(points) for name, points in gains.items()},
    }


def speed() -> dict[str, Any]:
    """Return times of `timings.py` as multiples of one pass over the logits, and of what one would write otherwise."""
    script, shape = Path(__file__).with_name("timings.py"), map(str, SHAPE)
    command = [sys.executable, str(script), "--json", "--shape", *shape]
    printed = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    return {
        line["what"]: {
            "passes": round(line["passes"], 1),
            "MiB": round(line["memory"]),
            "times faster": round(line["other_seconds"] / line["seconds"], 1) if line["other"] else None,
        }
        for line in printed
    }


def versions() -> dict[str, str]:
    libraries = {library.__name__: library.__version__ for library in (finecal, torch, np, scipy)}
    return {**libraries, "python": platform.python_version(), "machine": f"{platform.system()} {platform.machine()}"}


def keep(part: str, figures: Mapping[str, Any]) -> Path:
    """Write a part of the file of this version, and leave the other part as it is."""
    path = RESULTS / f"{finecal.__version__}.json"
    record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    record[part] = {"versions": versions(), "figures": figures}
    path.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8", newline="\n")
    return path


def flat(value: Any, *names: str) -> dict[tuple[str, ...], Any]:
    if not isinstance(value, Mapping):
        return {names: value}
    return {key: figure for name, inner in value.items() for key, figure in flat(inner, *names, name).items()}


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[list[str]]:
    """Return a row for each figure or version that is not the same in both."""
    before, after = flat(old), flat(new)
    keys = [*before, *(key for key in after if key not in before)]
    rows = [[": ".join(key), before.get(key), after.get(key)] for key in keys]
    return [[name, str(one), str(other)] for name, one, other in rows if one != other]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("quality").add_argument("folders", nargs="+", type=Path, help="folders of task files (.npz)")
    commands.add_parser("speed")
    compare = commands.add_parser("compare")
    compare.add_argument("files", nargs=2, type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    if options.command == "compare":
        old, new = (json.loads(path.read_text(encoding="utf-8")) for path in options.files)
        print(format_table(["figure", *(path.stem for path in options.files)], differences(old, new)))
    else:
        print(keep(options.command, quality(options.folders) if options.command == "quality" else speed()))


if __name__ == "__main__":
    main()
