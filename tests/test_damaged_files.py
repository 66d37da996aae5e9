"""Whatever comes from outside is read as it was written, or refused in one sentence that names the file."""

import contextlib
import io
import json
import string
import warnings
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from damage import KINDS, LABELS, LOGITS, Refusal, outcome
from finecal._cli.arguments import main
from finecal._core.files import npz_bytes
from finecal._core.warning import FinecalWarning
from profiles import examples


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The bytes of a file of each kind, and a folder."""
    folder = tmp_path_factory.mktemp("damaged")
    contents = {}
    for name, kind in KINDS.items():
        kind.write(folder / kind.file)
        contents[name] = (folder / kind.file).read_bytes(), outcome(kind, folder / kind.file)
    return folder, contents


@st.composite
def damages(draw):
    """Return a function from bytes to damaged ones."""
    start, length = draw(st.floats(0, 1)), draw(st.integers(1, 40))
    what = draw(st.sampled_from(["flip", "cut", "repeat", "replace", "end", "insert"]))
    mask, filling = draw(st.integers(1, 255)), draw(st.binary(min_size=1, max_size=12))

    def damage(data):
        at = min(int(start * len(data)), len(data) - 1)
        before, piece, after = data[:at], data[at : at + length], data[at + length :]
        return {
            "flip": data[:at] + bytes([data[at] ^ mask]) + data[at + 1 :],
            "cut": before + after,
            "repeat": before + piece + piece + after,
            "replace": before + filling + after,
            "end": before,
            "insert": before + filling + piece + after,
        }[what]

    return damage


@pytest.mark.parametrize("name", KINDS)
@examples(500)
@given(damage=damages())
def test_damaged_files(written, name, damage):
    folder, contents = written
    kind, (data, expected) = KINDS[name], contents[name]
    assert not isinstance(expected, Refusal)
    (folder / kind.file).write_bytes(damage(data))
    found = outcome(kind, folder / kind.file)
    assert isinstance(found, Refusal) or found == expected or not kind.is_checked


@pytest.mark.parametrize("name", KINDS)
@examples(100)
@given(data=st.binary(max_size=200))
def test_anything_at_all(written, name, data):
    folder, _ = written
    kind = KINDS[name]
    (folder / kind.file).write_bytes(data)
    outcome(kind, folder / kind.file)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
ENTRIES = ["gamma", "seen_classes", "num_classes", "class_names", "interval", "method", "data", "n", "sha256"]


@examples(500)
@given(record=st.dictionaries(st.sampled_from(ENTRIES), JSON | st.integers(0, 5), min_size=1))
def test_any_record(written, record):
    """With gamma and a number of classes that are right, the other entries are looked at."""
    folder, _ = written
    for entries in (record, {**record, "gamma": 1.5}, {"gamma": 1, "seen_classes": [0], **record, "num_classes": 4}):
        (folder / "a.json").write_text(json.dumps(entries))
        outcome(KINDS["gamma.json"], folder / "a.json")


COMMANDS = ["estimate", "compare", "evaluate", "apply", "report"]
WORDS = st.sampled_from([
    "a.npz", "b.json", "seen.txt", "none.npz", "-o", "out.npz", "out.json", "--gamma", "--seen", "--labels", "--json",
    "--method", "max_logit_gap", "search_gamma", "--train", "--held-out", "--labelled", "--seen-share", "--bootstrap",
    "--max-seen-drop", "0.5",
    "-1e-3", "-.5", "-inf", "nan", "3", "1e400", "--average", "macro", "labels", "--class-names", "--unlabelled",
    "--objective", "nll", "--predictions", "--prototypes", "--test", "--seed", "", "-", "--", "\x1b[31m", "/dev/null",
])  # fmt: skip


@examples(140)
@given(command=st.sampled_from(COMMANDS), words=st.lists(WORDS | st.text(string.printable, max_size=4), max_size=7))
def test_any_command_line(written, command, words):
    """Exit status 0, or 2 and one line that names the program: no traceback."""
    folder, contents = written
    files = {
        "a.npz": npz_bytes({"logits": LOGITS, "labels": LABELS}),
        "b.json": contents["gamma.json"][0],
        "seen.txt": b"0\n2\n",
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    for file in folder.glob("out.*"):
        file.unlink()
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(folder),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", FinecalWarning)
        try:
            status = main([command, *words])
        except SystemExit as error:
            status = error.code
    lines = [line for line in err.getvalue().splitlines() if not line.startswith("warning: ")]
    assert status in (0, 2)
    assert len(lines) == (status == 2), lines
    assert all(line.startswith("finecal") for line in lines)
    assert {name: Path(folder / name).read_bytes() for name in files} == files
