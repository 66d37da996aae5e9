"""Folders of images and tables of texts, as ``finecal fold`` reads them."""

import csv
import json
import os
from pathlib import Path

import pytest

from finecal._cli.data import Columns, read_dataset
from sentences import says

PLAIN = Columns()


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(name, text, encoding="utf-8"):
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return path


# --- tables -----------------------------------------------------------------------------------------------------------

TEXTS = ["plain", 'quoted, with "marks"', "two\nlines", "Grüße, 你好", "", "  blanks  ", "x" * 200_000]
LABELS = ["cat", "0", "a b", "é", "cat", "10", "-1"]


@pytest.mark.parametrize(("suffix", "delimiter"), [(".csv", ","), (".TSV", "\t")])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_tables_come_back_as_they_were_written(suffix, delimiter, encoding):
    path = Path(f"data{suffix}")
    with open(path, "w", encoding=encoding, newline="") as file:
        rows = csv.writer(file, delimiter=delimiter)
        rows.writerow(["id", "text", "label"])
        rows.writerows((number, *pair) for number, pair in enumerate(zip(TEXTS, LABELS, strict=True)))
    limit = csv.field_size_limit()
    samples = read_dataset(path, PLAIN)
    assert (samples.items, samples.labels, samples.path) == (TEXTS, LABELS, path)
    assert samples.kind == "texts"
    assert csv.field_size_limit() == limit
    assert read_dataset(path, PLAIN, with_labels=False).labels is None


@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".json"])
def test_json_lines_keep_indices_as_numbers(suffix):
    labels = [3, "cat", 0]
    lines = [json.dumps({"sentence": text, "labels": label, "more": [1]}) for text, label in zip("abc", labels)]  # noqa: B905
    samples = read_dataset(write(f"data{suffix}", "\n\n".join(lines) + "\n"), PLAIN)
    assert (samples.items, samples.labels) == (["a", "b", "c"], labels)


def test_columns_by_name():
    path = write("data.csv", "text,review,label,stars\na,b,c,d\n")
    assert read_dataset(path, Columns("review", "stars")).items == ["b"]
    assert read_dataset(path, Columns("review", "stars")).labels == ["d"]
    assert read_dataset(path, PLAIN).items == ["a"]


def test_columns_are_never_guessed():
    path = write("data.csv", "review,label\na,b\n")
    with says(
        "data.csv has no column called 'text' or 'sentence' (it has 'review', 'label'); name the one with the text by "
        "--text-column"
    ):
        read_dataset(path, PLAIN)
    with says(
        "data.csv has no column 'stars' (it has 'review', 'label'); name the one with the label by --label-column"
    ):
        read_dataset(path, Columns("review", "stars"))
    path = write("both.jsonl", '{"text": "a", "sentence": "b", "label": 0}')
    with says("both.jsonl has columns 'text' and 'sentence'; say by --text-column which is the text"):
        read_dataset(path, PLAIN)
    path = write("wide.csv", ",".join("abcdefgh") + "\n" + ",".join("abcdefgh"))
    with says(
        "wide.csv has no column called 'text' or 'sentence' (it has 'a', 'b', 'c', 'd', 'e' and 3 more); name the one "
        "with the text by --text-column"
    ):
        read_dataset(path, PLAIN)


def test_words_and_their_tags():
    lines = ['{"tokens": ["a", "b"], "ner_tags": ["O", 2]}', '{"tokens": [], "ner_tags": []}']
    path = write("words.json", "\n".join([*lines, '{"tokens": ["c"], "ner_tags": ["X"], "label": 1}']))
    samples = read_dataset(path, PLAIN)
    assert (samples.kind, samples.items, samples.labels) == ("words", [["a", "b"], ["c"]], [["O", 2], ["X"]])
    assert read_dataset(path, PLAIN, with_labels=False).items == samples.items
    path = write("own.jsonl", '{"text": "a b", "tokens": ["a", "b"], "pos": ["X", "Y"]}')
    assert read_dataset(path, Columns("tokens", "pos")).labels == [["X", "Y"]]
    path = write("both.jsonl", '{"text": "a b", "tokens": ["a", "b"], "label": 0}')
    assert read_dataset(path, PLAIN).items == ["a b"]


WORDS = "where a list of words has to be"
CLASS = "where the name or the index of a class has to be"
LIST = "'tokens' is [\"a\"], where a text has to be"
TAGS = "where a list of 2 tags has to be, one for each word"
OBJECT = "write one JSON object on each line"


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.csv", "", " has no rows; give data with at least one sample"),
        ("a.csv", "text,label\n\n", " has no rows; give data with at least one sample"),
        (
            "a.csv",
            "text,label\na,b\nc, d, e\n",
            ", line 3: a row of 3 cells under a header of 2; quote texts that have the delimiter or a line end in them",
        ),
        ("a.csv", "text,text\na,b\n", " has two columns 'text'; rename one of them"),
        ("a.csv", "text,label\na,b\nc,\n", f", line 3: 'label' is \"\", {CLASS}"),
        ("a.jsonl", "[1, 2]", f", line 1: a list; {OBJECT}"),
        ("a.jsonl", '{"text": "a", "text": "b"}', f", line 1: it has the entry 'text' more than once; {OBJECT}"),
        (
            "a.jsonl",
            '{"text": "a", "label": 0}\n\n{"label": 1}',
            ", line 3: 'text' is missing, where a text has to be",
        ),
        ("a.jsonl", '{"text": null, "label": 0}', ", line 1: 'text' is null, where a text has to be"),
        ("a.jsonl", '{"text": "a", "label": 1.5}', f", line 1: 'label' is 1.5, {CLASS}"),
        ("a.jsonl", '{"text": "a", "label": true}', f", line 1: 'label' is true, {CLASS}"),
        ("a.jsonl", '{"tokens": "a b", "label": 0}\n{"tokens": ["a"], "label": 0}', f", line 2: {LIST}"),
        ("a.jsonl", '{"tokens": ["a", 1], "ner_tags": [0, 1]}', f", line 1: 'tokens' is [\"a\", 1], {WORDS}"),
        ("a.jsonl", '{"tokens": ["a"], "ner_tags": [1]}\n{"tokens": "b"}', f", line 2: 'tokens' is \"b\", {WORDS}"),
        ("a.jsonl", '{"tokens": ["a", "b"], "ner_tags": [1]}', f", line 1: 'ner_tags' is [1], {TAGS}"),
        ("a.jsonl", '{"tokens": ["a", "b"], "ner_tags": 1}', f", line 1: 'ner_tags' is 1, {TAGS}"),
        ("a.jsonl", '{"tokens": ["a"], "ner_tags": [true]}', f", line 1: 'ner_tags' is [true], {CLASS}"),
        ("a.jsonl", '{"tokens": [], "ner_tags": []}', " has no rows; give data with at least one sample"),
        (
            "a.parquet",
            "",
            " is no data that finecal reads: give a folder of images, or a table that ends with .csv, .tsv, .jsonl, "
            ".ndjson or .json",
        ),
    ],
)
def test_refuses_rows_that_cannot_be_read(name, content, sentence):
    path = write(name, content)
    with says(f"{name}{sentence}"):
        read_dataset(path, PLAIN)


def test_says_on_which_line_the_syntax_ends():
    """In words of the standard library, which differ by version."""
    path = write("a.csv", 'text,label\na,b\n"a"b,c\n')
    with pytest.raises(ValueError, match=r"^a\.csv, line 3: .+; quote texts as CSV has it$"):
        read_dataset(path, PLAIN)
    path = write("a.jsonl", '{"text": "a", "label": 0}\n{]')
    with pytest.raises(ValueError, match=rf"^a\.jsonl, line 2: .+; {OBJECT}$"):
        read_dataset(path, PLAIN)


def test_refuses_other_encodings_and_missing_files():
    path = write("a.csv", "text,label\né,b\n", "latin-1")
    with says("a.csv is no text file in UTF-8; convert it"):
        read_dataset(path, PLAIN)
    with says("b.csv does not exist; check the name", FileNotFoundError):
        read_dataset(Path("b.csv"), PLAIN)


# --- images -----------------------------------------------------------------------------------------------------------


def test_folders_of_images():
    for name in ("train/cat/2.png", "train/cat/1.JPG", "train/cat/more/3.jpeg", "train/ant/a.webp"):
        write(name, "")
    for name in ("train/.cache/x.png", "train/cat/.hidden.png", "train/cat/notes.txt", "train/top.png"):
        write(name, "")
    samples = read_dataset(Path("train"), PLAIN)
    files = ["ant/a.webp", "cat/1.JPG", "cat/2.png", "cat/more/3.jpeg"]
    assert samples.items == [Path("train", name) for name in files]
    assert samples.labels == ["ant", "cat", "cat", "cat"]
    assert samples.kind == "images"
    unlabelled = read_dataset(Path("train"), PLAIN, with_labels=False)
    assert unlabelled.labels is None
    assert sorted(unlabelled.items) == sorted([*samples.items, Path("train/top.png")])


def test_refuses_folders_without_classes_or_images():
    write("flat/a.png", "")
    with says("flat has no sub-folders; put the images of each class into one that is named as the class"):
        read_dataset(Path("flat"), PLAIN)
    write("train/cat/a.png", "")
    write("train/dog/a.txt", "")
    suffixes = ".jpg, .jpeg, .png, .ppm, .pgm, .bmp, .tif, .tiff, .webp"
    with says(
        f"{Path('train/dog')} has no image, so it does not tell whether the class is seen; remove it, or put the "
        f"images there ({suffixes})"
    ):
        read_dataset(Path("train"), PLAIN)
    Path("empty").mkdir()
    with says(f"empty has no images ({suffixes}); give data with at least one sample"):
        read_dataset(Path("empty"), PLAIN, with_labels=False)


def test_a_choice_at_random():
    path = write("a.csv", "text,label\n" + "".join(f"t{i},c{i}\n" for i in range(100)))
    samples = read_dataset(path, PLAIN)
    assert samples.chosen(100, 0) is samples
    chosen = samples.chosen(30, 0)
    numbers = [int(text[1:]) for text in chosen.items]
    assert len(numbers) == 30
    assert numbers == sorted(set(numbers))
    assert chosen.labels == [f"c{number}" for number in numbers]
    assert chosen == samples.chosen(30, 0)
    assert chosen != samples.chosen(30, 1)
    assert read_dataset(path, PLAIN, with_labels=False).chosen(30, 0).items == chosen.items


@pytest.mark.skipif(os.name != "posix", reason="links of POSIX")
def test_links_between_folders_are_followed_once():
    """A folder of a class may be a link; one that leads back to where it was found is no further folder."""
    write("elsewhere/a.png", "")
    write("data/dog/b.png", "")
    Path("data/cat").symlink_to(Path("elsewhere").resolve(), target_is_directory=True)
    Path("elsewhere/loop").symlink_to(Path("elsewhere").resolve(), target_is_directory=True)
    Path("data/dog/up").symlink_to(Path("data/dog").resolve(), target_is_directory=True)
    samples = read_dataset(Path("data"), PLAIN)
    assert samples.items == [Path("data/cat/a.png"), Path("data/dog/b.png")]
    assert samples.labels == ["cat", "dog"]
