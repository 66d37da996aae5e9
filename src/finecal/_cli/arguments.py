"""The arguments of the command line."""

import argparse
import errno
import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TextIO, TypeAlias

from .._core.logits_file import LOGITS_SUFFIXES, PREDICTION_SUFFIXES
from .._core.report import AVERAGES
from .._core.results import visible
from .._core.warning import FinecalWarning, wrap
from .._estimators.gaps import GAPS
from .._estimators.search import SEARCH_OBJECTIVES
from .._estimators.table import choices_for_the_command_line
from .._version import __version__
from . import commands
from .cut_files import explain_cut_files
from .data import LABEL_COLUMNS, TABLE_SUFFIXES, TEXT_COLUMNS
from .estimate import COMPARISON_SUFFIXES, METHODS
from .estimate import compare as compare_estimators
from .estimate import estimate as estimate_gamma
from .fold import fold
from .restore import restore

_INTERRUPTED, _CLOSED_PIPE = 130, 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``finecal``; bad input ends it with one sentence on stderr and exit status 2, as argparse does.

    Ctrl-C ends it with exit status 130, and a reader that takes no more, as ``head``, with 141, as shells have them.
    Files are written whole or not at all.
    """
    if hasattr(sys.stdout, "reconfigure"):
        # The demo has characters that not every console can show.
        sys.stdout.reconfigure(errors="replace")
    parser = _parser()
    try:
        args = parser.parse_args(argv)
        parser = args.parser
        with _finecal_warnings() as sentences, explain_cut_files(vars(args), parser.prog):
            args.run(args, sentences)
        print(end="", flush=True)
    except (ValueError, OSError, ImportError) as error:
        _drop_unwritten()
        if _is_closed_pipe(error):
            return _CLOSED_PIPE
        parser.error(str(error))
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted", file=sys.stderr)
        return _INTERRUPTED
    return 0


def _is_closed_pipe(error: Exception) -> bool:
    """Return whether a reader takes no more; on Windows that is an invalid argument, of no file."""
    if isinstance(error, OSError) and os.name == "nt":
        return error.errno in (errno.EPIPE, errno.EINVAL) and error.filename is None
    return isinstance(error, BrokenPipeError)


def _drop_unwritten() -> None:
    """Leave nothing that Python would try to write again, and fail, when it ends."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextmanager
def _finecal_warnings() -> Iterator[list[str]]:
    """Show each FinecalWarning once, and collect their sentences."""
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
        sentence = str(message.args[0] if isinstance(message, FinecalWarning) else message)
        if not issubclass(category, FinecalWarning):
            show(message, category, filename, lineno, file, line)
        elif sentence not in sentences:
            sentences.append(sentence)
            print(wrap(f"warning: {visible(sentence, and_lines=True)}"), file=sys.stderr)

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

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        if status == 0:
            print(end="", flush=True)
        super().exit(status, message)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {visible(message, and_lines=True)}\n")


class _EpilogInLines(argparse.HelpFormatter):
    """Leaves the lines of a text with more than one as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)


_Subparsers: TypeAlias = "argparse._SubParsersAction[Any]"
_SEEN = (
    "text file of the seen classes' names, one per line, or of their indices; .npy file with a mask, one boolean per "
    "class"
)
_FILES = (
    "scores before softmax over all classes: .npz, .pt or .safetensors with 'logits', perhaps 'labels', 'features', "
    "'groups' (which picture or patient each sample is of), 'pretrained_logits' and 'class_names'; .npy or .pt with "
    "the logits alone"
)
_TABLES = f"{', '.join(TABLE_SUFFIXES[:-1])} or {TABLE_SUFFIXES[-1]}"
_LABELLED = {
    "--train": "labelled samples that the model was fine-tuned on",
    "--held-out": "labelled samples of the seen classes that it was not trained on",
    "--labelled": "labelled samples of all classes",
}


class _Shared(NamedTuple):
    """Arguments that several commands have."""

    data: _Parser
    inputs: _Parser
    output: _Parser
    use: _Parser
    averaging: _Parser
    running: _Parser


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="finecal",
        description="Bring back the classes that fine-tuning seems to have lost: find one number, gamma, that is added "
        "to the logits of the absent classes.",
    )
    parser.add_argument("--version", action="version", version=f"finecal {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    shared = _shared()
    for add in (
        _add_estimate,
        _add_compare,
        _add_evaluate,
        _add_apply,
        _add_report,
        _add_fold,
        _add_restore,
        _add_demo,
    ):
        add(subparsers, shared)
    return parser


def _shared() -> _Shared:
    class_names = _Parser(add_help=False)
    class_names.add_argument("--class-names", type=Path, metavar="FILE", help="text file with one class name per line")
    data = _Parser(add_help=False, parents=[class_names])
    for option, what in _LABELLED.items():
        data.add_argument(option, type=Path, nargs="+", metavar=("FILE", "LABELS"), help=what)
    data.add_argument(
        "--unlabelled", type=Path, metavar="FILE", help="samples of all classes; their labels are not looked at"
    )
    data.add_argument(
        "--seen-share",
        type=float,
        metavar="SHARE",
        help="of seen samples in the unlabelled ones, or else where the model will be used, in (0, 1)",
    )
    data.add_argument(
        "--seen",
        metavar="SPEC",
        help=f"required: {_SEEN}; or 'labels', the classes that occur in --train (else in --held-out), if these are "
        "all of the fine-tuning data",
    )
    data.add_argument("--bootstrap", type=int, dest="n_bootstrap", metavar="N", help="resamplings for intervals")
    data.add_argument("--seed", type=int, help="of random pairs and resamplings (default: 0)")

    inputs = _Parser(add_help=False, parents=[class_names])
    inputs.add_argument("logits", type=Path, metavar="LOGITS", help=f"the samples: {_FILES}")
    inputs.add_argument("--labels", type=Path, metavar="FILE", help="the labels, in place of those in LOGITS")
    output = _Parser(add_help=False)
    output.add_argument("--json", action="store_true", help="print JSON in place of a table")

    use = _Parser(add_help=False)
    use.add_argument("--gamma", required=True, metavar="GAMMA", help="a number, or what finecal estimate -o wrote")
    use.add_argument("--seen", metavar="SPEC", help=f"{_SEEN} (default: as in GAMMA)")

    averaging = _Parser(add_help=False)
    averaging.add_argument(
        "--average", default="micro", choices=AVERAGES, help="every sample counts the same (default), or every class"
    )
    running = _Parser(add_help=False)
    running.add_argument("--text-column", metavar="NAME", help=f"of the tables (default: {' or '.join(TEXT_COLUMNS)})")
    running.add_argument(
        "--label-column", metavar="NAME", help=f"of the tables (default: {' or '.join(LABEL_COLUMNS)})"
    )
    running.add_argument(
        "--max-length", type=int, metavar="N", help="tokens of a text (default: as many as the tokenizer takes)"
    )
    running.add_argument(
        "--max-samples", type=int, default=10_000, metavar="N", help="of each data set, at random (default: 10000)"
    )
    running.add_argument(
        "--batch-size", type=int, default=32, metavar="N", help="samples that the model runs on at once (default: 32)"
    )
    running.add_argument(
        "--device", metavar="DEVICE", help='such as "cpu" or "cuda:0" (default: cuda where there is one)'
    )
    running.add_argument(
        "--seed", type=int, default=0, help="of the choice of samples, and of random pairs (default: 0)"
    )
    running.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the model")
    running.add_argument("--no-progress", action="store_true", help="show no bars")
    return _Shared(data, inputs, output, use, averaging, running)


def _add_estimate(subparsers: _Subparsers, shared: _Shared) -> None:
    methods = "\n".join(f"  {name:<18} {method.data}" for name, method in METHODS.items())
    estimate = subparsers.add_parser(
        "estimate",
        parents=[shared.data, shared.output],
        help="estimate gamma",
        description=f"Estimate gamma from what is given. Each FILE holds samples: {_FILES}. LABELS is a file with the "
        "labels, if they are not in FILE.",
        epilog=(
            "what you have, how much of the best gamma's gain is recovered (median), and the options for it:\n"
            f"{choices_for_the_command_line()}\n\nwhat each --method needs:\n{methods}"
        ),
        formatter_class=_EpilogInLines,
    )
    estimate.add_argument(
        "--method",
        default="auto",
        choices=METHODS,
        metavar="NAME",
        help="see below (default: auto, from all that is given)",
    )
    estimate.add_argument(
        "--prototypes",
        action="store_true",
        help="make prototypes of the classes as well, of --unlabelled with features; those of --held-out check them",
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
    estimate.add_argument(
        "--engine",
        choices=["ray"],
        metavar="ray",
        help="--train or --held-out is a folder of .parquet, .npz or .safetensors files with 'logits' and 'labels', "
        f"too many for one machine; for --method {' or '.join(GAPS)} (needs the extra 'ray')",
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


def _add_compare(subparsers: _Subparsers, shared: _Shared) -> None:
    compare = subparsers.add_parser(
        "compare",
        parents=[shared.data, shared.output],
        help="estimate gamma in every way that the data allow, side by side",
        description="Estimate gamma in every way that the data allow, and show what each costs the seen classes. With "
        "--test, show the accuracies that each reaches as well. Files are as for finecal estimate; features in those "
        "of --unlabelled and --test add prototypes, 'pretrained_logits' in --test the model before fine-tuning.",
    )
    compare.add_argument(
        "--test",
        type=Path,
        nargs="+",
        metavar=("FILE", "LABELS"),
        help="labelled samples of all classes to score every gamma on",
    )
    compare.add_argument(
        "-o",
        dest="output",
        type=Path,
        metavar="FILE",
        help=f"{', '.join(COMPARISON_SUFFIXES)}: as --json prints it, the table, or a row per estimator (needs pandas)",
    )
    compare.set_defaults(run=compare_estimators, parser=compare)


def _add_evaluate(subparsers: _Subparsers, shared: _Shared) -> None:
    evaluate = subparsers.add_parser(
        "evaluate",
        parents=[shared.inputs, shared.output, shared.use, shared.averaging],
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
    report.add_argument("--title", metavar="TEXT", help="heading (default: what the page shows, and LOGITS)")
    report.add_argument("-o", dest="output", type=Path, required=True, metavar="report.html", help="file to write")
    report.set_defaults(run=commands.report, parser=report)


def _add_fold(subparsers: _Subparsers, shared: _Shared) -> None:
    fold_command = subparsers.add_parser(
        "fold",
        parents=[shared.running, shared.output],
        help="put gamma into a saved model, without code",
        usage="finecal fold MODEL_DIR --train DATA --out NEW_DIR [options]\n"
        "       finecal fold MODEL.onnx --train DATA --out NEW.onnx [options]\n"
        "       finecal fold --timm NAME --checkpoint FILE --train DATA --out NEW [options]",
        description="Estimate gamma for a saved classifier from its fine-tuning data, and write a copy of it with "
        "gamma in its head, which is loaded as before and needs no finecal.",
    )
    add = fold_command.add_argument
    add(
        "model",
        type=Path,
        nargs="?",
        metavar="MODEL_DIR",
        help="directory that save_pretrained of transformers or PEFT has written: a classifier of texts, words or "
        "images (needs the extra 'transformers'); or an .onnx file (needs the extra 'onnx')",
    )
    add("--timm", metavar="NAME", help="in place of MODEL_DIR: the name of a model of timm (needs the extra 'timm')")
    add("--checkpoint", type=Path, metavar="FILE", help="its weights, in .safetensors")
    add(
        "--train",
        type=Path,
        required=True,
        metavar="DATA",
        help="the samples that the model was fine-tuned on: a folder with a sub-folder of images for each class, or a "
        f"table of texts, {_TABLES}; for a token classifier a .jsonl with a list of words, 'tokens', and their tags, "
        "'ner_tags', on each line; for MODEL.onnx an .npz with 'labels' and an array for each input, or a table of "
        "numbers. The classes that occur in it are the seen ones",
    )
    add(
        "--out",
        type=Path,
        required=True,
        metavar="NEW",
        help="directory to be made; for --timm also a file that ends with .safetensors, for MODEL.onnx one that ends "
        "with .onnx",
    )
    add(
        "--held-out",
        type=Path,
        metavar="DATA",
        help="labelled samples that the model was not trained on: gamma gets better, and what it costs is measured; "
        "with samples of absent classes, which serve for nothing else, what it gains is shown as well",
    )
    add("--unlabelled", type=Path, metavar="DATA", help="samples of all classes, as the model meets them in use")
    add(
        "--max-seen-drop",
        type=float,
        metavar="DROP",
        help="most that accuracy on seen classes may fall, as a fraction, with 95 %% confidence; needs --held-out",
    )
    add(
        "--seen-share",
        type=float,
        metavar="SHARE",
        help="of seen samples in the unlabelled ones, or else where the model will be used, in (0, 1)",
    )
    add("--seen", metavar="SPEC", help=f"{_SEEN} (default: the classes that occur in --train)")
    add(
        "--class-names",
        "--class-map",
        type=Path,
        metavar="FILE",
        help="text file with one class name per line, in the order of the model's outputs, for labels that are names "
        "which the model does not have",
    )
    add("--base", metavar="DIR", help="of an adapter: its base model (default: the one that it names)")
    add("--output-name", metavar="NAME", help="of the output of MODEL.onnx with the logits, where it has several")
    fold_command.set_defaults(run=fold, parser=fold_command)


def _add_restore(subparsers: _Subparsers, shared: _Shared) -> None:
    restore_command = subparsers.add_parser(
        "restore",
        parents=[shared.running, shared.output],
        help="give a saved model whose head was made anew a head of all classes",
        usage="finecal restore FINE_TUNED PRETRAINED --data DATA --out NEW [options]",
        description="Write a copy of a classifier that was fine-tuned with a new head of a few classes, in whose head "
        "are the other classes of the pre-trained model as well. It is loaded as before and needs no finecal.",
    )
    add = restore_command.add_argument
    add(
        "model",
        type=Path,
        metavar="FINE_TUNED",
        help="directory that save_pretrained of transformers (needs the extra 'transformers') or save_for_hf of timm "
        "(needs the extra 'timm') has written: a classifier of texts or of images; with --timm also a file of weights "
        "in .safetensors",
    )
    add("pretrained", type=Path, metavar="PRETRAINED", help="the same of the model before fine-tuning, with its head")
    add("--timm", metavar="NAME", help="the name of a model of timm, of which a file has the weights")
    add(
        "--data",
        type=Path,
        required=True,
        metavar="DATA",
        help="labelled samples of the fine-tuned classes, such as those of the fine-tuning: a folder with a sub-folder "
        f"of images for each class, or a table of texts, {_TABLES}",
    )
    add(
        "--out",
        type=Path,
        required=True,
        metavar="NEW",
        help="directory to be made; with --timm also a file that ends with .safetensors",
    )
    add(
        "--held-out",
        type=Path,
        metavar="DATA",
        help="labelled samples of all classes, which serve only to show accuracies: of the pre-trained model and of "
        "the restored one, whose indices labels may be",
    )
    add(
        "--unlabelled",
        type=Path,
        metavar="DATA",
        help="samples of all classes, as the model meets them in use: the restored classes get better",
    )
    add("--prototypes", action="store_true", help="add prototypes of the classes, made of --unlabelled")
    add("--seen-share", type=float, metavar="SHARE", help="of fine-tuned classes where the model will be used")
    add(
        "--new-to-old",
        type=Path,
        metavar="FILE",
        help="text file with a line for each class of FINE_TUNED: name or index of its class in PRETRAINED, -1 if that "
        "has none (default: by the names in both config.json)",
    )
    for option, of in (("--class-names", "FINE_TUNED"), ("--pretrained-names", "PRETRAINED")):
        add(
            option,
            type=Path,
            metavar="FILE",
            help=f"text file with one class name of {of} per line, in the order of its outputs (default: as in its "
            "config.json)",
        )
    restore_command.set_defaults(run=restore, parser=restore_command)


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
