"""Make task files: fine-tuned classifiers of public data, by the paper's protocol. See ../README.md."""

import argparse
import fnmatch
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from catalogue import CATALOGUE
from interpolate import interpolate_all
from make import make_all


def main() -> None:
    parser = argparse.ArgumentParser(prog="runs", description=__doc__)
    parser.add_argument(
        "patterns",
        nargs="*",
        default=["*"],
        help="names of runs, such as 'kanji_*' (default: all)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="folder of the task files; existing ones are kept",
    )
    parser.add_argument(
        "--cache",
        type=Path,
        help="folder of the Debian packages used (default: OUT/packages)",
    )
    parser.add_argument("--jobs", type=int, default=1, help="processes, of one thread each (default 1)")
    parser.add_argument(
        "--list",
        action="store_true",
        help="only print the names of the runs that are missing",
    )
    parser.add_argument(
        "--interpolate",
        action="store_true",
        help="write tables for interpolation.py in place of task files",
    )
    parser.add_argument(
        "--new-head",
        type=float,
        metavar="RATE",
        help="fine-tune a new head of the seen classes alone, at so many times the rate of the body; no controls",
    )
    arguments = parser.parse_args()
    make, suffix = (interpolate_all, "json") if arguments.interpolate else (make_all, "npz")
    cache = arguments.cache or arguments.out / "packages"
    missing = [
        replace(run, recipe=replace(run.recipe, new_head=arguments.new_head))
        for run in CATALOGUE
        if not (run.setting.control and arguments.new_head is not None)
        and any(fnmatch.fnmatch(run.name, pattern) for pattern in arguments.patterns)
        and not (arguments.out / f"{run.name}.{suffix}").exists()
    ]
    if arguments.list:
        print("\n".join(run.name for run in missing))
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    # Neighbours share what is loaded and pre-trained.
    groups = [list(runs) for _, runs in groupby(missing, key=lambda run: run.load)]
    processes = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.jobs, mp_context=processes) as pool:
        for future in [pool.submit(make, runs, arguments.out, cache) for runs in groups]:
            future.result()


if __name__ == "__main__":
    main()
