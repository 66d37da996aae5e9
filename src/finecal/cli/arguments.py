"""The arguments of the command line."""

import argparse
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TextIO, TypeAlias

from .._version import __version__
from ..evaluation.accuracies import AVERAGES
from ..evaluation.logit_gaps import GAPS
from ..gamma.search import SEARCH_OBJECTIVES
from ..inputs.warning import FinecalWarning
from ..logits.file import LOGITS_SUFFIXES, PREDICTION_SUFFIXES
from ..results.display import visible
from . import commands
from .estimate import METHODS
from .estimate import estimate as estimate_gamma

_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``finecal``; bad input ends it with one sentence on stderr and exit status 2, as argparse does.

    Ctrl-C ends it with exit status 130, as shells have it. Files are written whole or not at all.
    """
    if hasattr(sys.stdout, "reconfigure"):
        # The demo has characters that not every console can show.
        sys.stdout.reconfigure(errors="replace")
    args = _parser().parse_args(argv)
    try:
        with _finecal_warnings() as sentences:
            args.run(args, sentences)
    except (ValueError, OSError, ImportError) as error:
        args.parser.error(str(error))
    except KeyboardInterrupt:
        print(f"{args.parser.prog}: interrupted", file=sys.stderr)
        return _INTERRUPTED
    return 0


@contextmanager
def _finecal_warnings() -> Iterator[list[str]]:
    """Show each FinecalWarning once, in one line, and collect their sentences."""
    sentences: list[str] = []
    show = warnings.showwarning

    def collect(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if not issubclass(category, FinecalWarning):
            show(message, category, filename, lineno, file, line)
        elif str(message) not in sentences:
            sentences.append(str(message))
            print(f"warning: {visible(str(message), and_lines=True)}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("always", FinecalWarning)
        warnings.showwarning = collect
        yield sentences


# --- arguments --------------------------------------------------------------------------------------------------------


_NEGATIVE = re.compile(r"-(\d[\d_]*\.?\d*|\.\d+)(e[+-]?\d+)?$|-(inf|infinity|nan)$", re.IGNORECASE)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, without repeating the usage, and takes every negative number for one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Its own pattern knows no exponents, and takes -1e-3 for an option.
        self._negative_number_matcher = _NEGATIVE

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {visible(message, and_lines=True)}\n")


_Subparsers: TypeAlias = "argparse._SubParsersAction[Any]"
_SEEN = (
    "text file of the seen classes' names, one per line, or of their indices; .npy file with a mask, one boolean per "
    "class"
)
_FEATURES = (
    "of LOGITS, for a GAMMA with prototypes: (N, D), what the final linear layer takes, under 'features' or alone"
)


class _Shared(NamedTuple):
    """Arguments that several commands have."""

    inputs: _Parser
    output: _Parser
    use: _Parser
    averaging: _Parser


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="finecal",
        description="Bring back the classes that fine-tuning seems to have lost: find one number, gamma, that is added "
        "to the logits of the absent classes.",
    )
    parser.add_argument("--version", action="version", version=f"finecal {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    shared = _shared()
    for add in (_add_estimate, _add_evaluate, _add_apply, _add_report, _add_demo):
        add(subparsers, shared)
    return parser


def _shared() -> _Shared:
    inputs = _Parser(add_help=False)
    inputs.add_argument(
        "logits",
        type=Path,
        metavar="LOGITS",
        help="scores before softmax over all classes: .npz, .pt or .safetensors with 'logits', perhaps 'labels' and "
        "'class_names'; .npy or .pt with the logits alone",
    )
    inputs.add_argument("--labels", type=Path, metavar="FILE", help="the labels, in place of those in LOGITS")
    inputs.add_argument("--class-names", type=Path, metavar="FILE", help="text file with one class name per line")
    output = _Parser(add_help=False)
    output.add_argument("--json", action="store_true", help="print JSON in place of a table")

    use = _Parser(add_help=False)
    use.add_argument("--gamma", required=True, metavar="GAMMA", help="a number, or what finecal estimate -o wrote")
    use.add_argument("--seen", metavar="SPEC", help=f"{_SEEN} (default: as in GAMMA)")
    use.add_argument("--features", type=Path, metavar="FILE", help=_FEATURES)

    averaging = _Parser(add_help=False)
    averaging.add_argument(
        "--average", default="micro", choices=AVERAGES, help="every sample counts the same (default), or every class"
    )
    return _Shared(inputs, output, use, averaging)


def _add_estimate(subparsers: _Subparsers, shared: _Shared) -> None:
    methods = "\n".join(f"  {name:<18} {method.logits}" for name, method in METHODS.items())
    estimate = subparsers.add_parser(
        "estimate",
        parents=[shared.inputs, shared.output],
        help="estimate gamma",
        description="Estimate gamma.",
        epilog=f"what LOGITS must be, by --method:\n{methods}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    estimate.add_argument(
        "--seen",
        metavar="SPEC",
        help=f"required: {_SEEN}; or 'labels', the classes that occur in LOGITS, if these are all of the fine-tuning "
        "data",
    )
    estimate.add_argument(
        "--method",
        default="auto",
        choices=METHODS,
        metavar="NAME",
        help="see below (default: auto, by what is given)",
    )
    estimate.add_argument("--held-out", action="store_true", default=None, help="the model was not trained on LOGITS")
    estimate.add_argument("--unlabelled", type=Path, metavar="FILE", help="logits of unlabelled samples of all classes")
    estimate.add_argument(
        "--features",
        type=Path,
        metavar="FILE",
        help="of the unlabelled samples, to make prototypes of the classes as well: (N, D), what the final linear "
        "layer takes, under 'features' or alone",
    )
    estimate.add_argument(
        "--seen-share",
        type=float,
        metavar="SHARE",
        help="of seen samples in the unlabelled ones, or else where the model will be used, in (0, 1)",
    )
    estimate.add_argument(
        "--objective", choices=SEARCH_OBJECTIVES, help="what search_gamma optimises (default: overall)"
    )
    estimate.add_argument(
        "--max-seen-drop",
        type=float,
        metavar="DROP",
        help="loss of Acc_S/Y that seen_budget_gamma (default: 0.02) or search_gamma (default: any) may cost",
    )
    estimate.add_argument("--confidence", type=float, metavar="C", help="of seen_budget_gamma (default: 0.95)")
    estimate.add_argument("--bootstrap", type=int, dest="n_bootstrap", metavar="N", help="resamplings for an interval")
    estimate.add_argument("--seed", type=int, help="of random pairs and resamplings (default: 0)")
    estimate.add_argument(
        "--engine",
        choices=["ray"],
        metavar="ray",
        help="LOGITS is a folder of .parquet, .npz or .safetensors files with 'logits' and 'labels', too many for one "
        f"machine; for --method {' or '.join(GAPS)} (needs the extra 'ray')",
    )
    estimate.add_argument("--no-progress", action="store_true", help="show no bar of the files that ray has read")
    estimate.add_argument(
        "-o",
        dest="output",
        type=Path,
        metavar="gamma.json",
        help="file for evaluate and apply; with prototypes, or for finecal.load, a .safetensors (needs the extra 'io')",
    )
    estimate.set_defaults(run=estimate_gamma, parser=estimate)


def _add_evaluate(subparsers: _Subparsers, shared: _Shared) -> None:
    evaluate = subparsers.add_parser(
        "evaluate",
        parents=[*shared],
        help="show the accuracies before and after",
        description="Show the accuracies of labelled LOGITS at gamma = 0 and at GAMMA, and with prototypes if it has "
        "some.",
    )
    evaluate.set_defaults(run=commands.evaluate, parser=evaluate)


def _add_apply(subparsers: _Subparsers, shared: _Shared) -> None:
    apply = subparsers.add_parser(
        "apply",
        parents=[shared.inputs, shared.output, shared.use],
        help="write calibrated logits or predictions",
        description="Write LOGITS with gamma added to the absent classes, and prototypes if GAMMA has some, or the "
        "classes predicted.",
    )
    apply.add_argument(
        "-o",
        dest="output",
        type=Path,
        required=True,
        metavar="OUT",
        help=f"{', '.join(LOGITS_SUFFIXES)} (.npy: the logits alone), or for predictions "
        f"{' or '.join(PREDICTION_SUFFIXES)}",
    )
    apply.add_argument("--predictions", action="store_true", help="write the predicted classes instead of logits")
    apply.set_defaults(run=commands.apply, parser=apply)


def _add_report(subparsers: _Subparsers, shared: _Shared) -> None:
    report = subparsers.add_parser(
        "report",
        parents=[shared.inputs, shared.averaging],
        help="write a page that shows what gamma does",
        description="Write an HTML page, complete in one file, on what gamma does to labelled LOGITS, with a slider "
        "that moves it (needs the extra 'report').",
    )
    report.add_argument(
        "--gamma",
        metavar="GAMMA",
        help="where the page opens: a number, or what finecal estimate -o wrote (default: the oracle, the best gamma "
        "on these very labels)",
    )
    report.add_argument("--seen", metavar="SPEC", help=f"{_SEEN} (default: as in GAMMA)")
    report.add_argument("--features", type=Path, metavar="FILE", help=_FEATURES)
    report.add_argument("--title", metavar="TEXT", help="heading of the page (default: the name of LOGITS)")
    report.add_argument("-o", dest="output", type=Path, required=True, metavar="report.html", help="file to write")
    report.set_defaults(run=commands.report, parser=report)


def _add_demo(subparsers: _Subparsers, shared: _Shared) -> None:
    demo = subparsers.add_parser(
        "demo",
        help="see it work on real data",
        description="Fine-tune a small network on half of its classes and bring the others back (40 seconds on "
        "a CPU; needs the extra 'demo').",
    )
    demo.add_argument("--out", type=Path, metavar="DIR", help="where to write the report, pictures and logits")
    demo.add_argument("--seed", type=int, default=0, help="of data, model and training (default: 0)")
    demo.set_defaults(run=commands.demo, parser=demo)
