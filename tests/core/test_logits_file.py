import io
import os
import pickle
import re
import struct
import subprocess
import sys
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file as safetensors_save

import finecal
from finecal._core.files import npy_bytes, write_atomically
from finecal._core.logits_file import LogitsFile, read_array, read_logits, write_logits, write_predictions
from sentences import says

SUFFIXES = [".npz", ".npy", ".safetensors"]


SOURCE = os.path.dirname(os.path.dirname(finecal.__file__))
NAMES = ("cat", "guinea pig", "d,o,g", "hen")


@pytest.fixture
def content(rng):
    logits = torch.from_numpy(rng.normal(size=(6, 4)).astype(np.float32))
    return LogitsFile(logits, torch.tensor([0, 1, 2, 3, 0, 1]), NAMES)


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


# --- features ---------------------------------------------------------------------------------------------------------


def test_features_are_read_from_a_file_with_logits_and_alone(content):
    features = np.arange(18, dtype=np.float32).reshape(6, 3)
    tensors = {"logits": content.logits, "features": torch.from_numpy(features)}
    np.savez("f.npz", logits=content.logits, features=features)
    np.save("f.npy", features)
    torch.save(tensors, "f.pt")
    torch.save(tensors["features"], "alone.pt")
    safetensors_save(tensors, "f.safetensors")
    for name in ("f.npz", "f.npy", "f.pt", "alone.pt", "f.safetensors"):
        np.testing.assert_array_equal(read_array(Path(name), "features"), features)
    for name in ("f.npz", "f.pt", "f.safetensors"):
        assert torch.equal(read_logits(name).logits, content.logits)
    np.savez("misnamed.npz", feature=features)
    with says(
        "misnamed.npz: it has no 'features', but 'feature'; name it 'features' if it is that, and less alike if not"
    ):
        read_array(Path("misnamed.npz"), "features")


# --- writing ----------------------------------------------------------------------------------------------------------


def test_writes_no_pickles(tmp_path, content):
    with says("a.pt cannot be written: choose a name that ends with .npz or .npy or .safetensors"):
        write_logits("a.pt", content)
    assert os.listdir(tmp_path) == []


def test_predictions(tmp_path):
    classes = torch.tensor([2, 0])
    write_predictions("p.npy", classes, NAMES)
    np.testing.assert_array_equal(np.load("p.npy", allow_pickle=False), [2, 0])
    write_predictions("p.csv", classes)
    assert (tmp_path / "p.csv").read_text() == "sample,class\n0,2\n1,0\n"
    write_predictions("p.csv", classes, NAMES)
    assert (tmp_path / "p.csv").read_text() == 'sample,class,name\n0,2,"d,o,g"\n1,0,cat\n'


# --- logits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_round_trip(content, suffix, dtype):
    path = f"logits{suffix.upper()}"
    logits = content.logits.to(dtype)
    write_logits(path, LogitsFile(logits.T.contiguous().T, content.labels, content.class_names))
    back = read_logits(path)
    widened = dtype == torch.bfloat16 and suffix in (".npz", ".npy")
    assert back.logits.dtype == (torch.float32 if widened else dtype)
    assert torch.equal(back.logits, logits.to(back.logits.dtype))
    if suffix == ".npy":
        assert back.labels is None
        assert back.class_names is None
    else:
        assert torch.equal(back.labels, content.labels)
        assert back.class_names == NAMES


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_round_trip_of_logits_alone(content, suffix):
    write_logits(f"logits{suffix}", LogitsFile(content.logits))
    back = read_logits(f"logits{suffix}")
    assert torch.equal(back.logits, content.logits)
    assert back.labels is None
    assert back.class_names is None


@pytest.mark.parametrize("suffix", [suffix for suffix in SUFFIXES if suffix != ".npy"])
def test_round_trip_of_groups(content, suffix):
    groups = torch.arange(len(content.logits)) // 2
    write_logits(f"logits{suffix}", replace(content, groups=groups))
    back = read_logits(f"logits{suffix}")
    assert torch.equal(back.groups, groups)
    assert torch.equal(back.labels, content.labels)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_round_trip_of_gamma(content, suffix):
    write_logits(f"raw{suffix}", content)
    assert read_logits(f"raw{suffix}").gamma == 0
    write_logits(f"calibrated{suffix}", LogitsFile(content.logits, content.labels, NAMES, 6.7))
    back = read_logits(f"calibrated{suffix}", labels="calibrated.npz" if suffix == ".npz" else None)
    assert back.gamma == (0 if suffix == ".npy" else 6.7)
    assert back.class_names == (None if suffix == ".npy" else NAMES)
    write_logits(f"alone{suffix}", LogitsFile(content.logits, gamma=-0.1))
    assert read_logits(f"alone{suffix}").gamma == (0 if suffix == ".npy" else -0.1)


def test_gamma_from_other_writers(content):
    torch.save({"logits": content.logits, "gamma": torch.tensor(1.5)}, "a.pt")
    assert read_logits("a.pt").gamma == 1.5
    np.savez("a.npz", logits=content.logits, gamma=2)
    assert read_logits("a.npz").gamma == 2
    np.savez("a.npz", logits=content.logits, gamma=np.nan)
    with says("a.npz: gamma is nan; it must be finite"):
        read_logits("a.npz")
    np.savez("a.npz", logits=content.logits, gamma=np.ones(4))
    with says("a.npz: gamma is a ndarray; pass a float, a 0-d tensor or a GammaEstimate"):
        read_logits("a.npz")


def test_reads_torch_files(content, dtype):
    logits = content.logits.to(dtype)
    torch.save({"logits": logits, "labels": content.labels, "class_names": list(NAMES)}, "LOGITS.PT")
    back = read_logits("LOGITS.PT")
    assert back.logits.dtype == dtype
    assert torch.equal(back.logits, logits)
    assert torch.equal(back.labels, content.labels)
    assert back.class_names == NAMES


def test_reads_what_others_write(content):
    logits = content.logits.numpy()
    np.save("fortran.npy", np.asfortranarray(logits).astype(">f8"))
    assert torch.equal(read_logits("fortran.npy").logits, content.logits.double())
    torch.save(torch.nn.Parameter(content.logits), "bare.pt")
    bare = read_logits("bare.pt").logits
    assert torch.equal(bare, content.logits)
    assert not bare.requires_grad
    assert read_logits("bare.pt").labels is None
    torch.save({"logits": content.logits}, "legacy.pt", _use_new_zipfile_serialization=False)
    assert torch.equal(read_logits("legacy.pt").logits, content.logits)
    np.savez_compressed("uint8.npz", logits=logits, labels=np.arange(6, dtype=np.uint8) % 4, features=logits)
    assert read_logits("uint8.npz").labels.tolist() == [0, 1, 2, 3, 0, 1]


def test_labels_and_class_names_from_other_files(tmp_path, content):
    np.save("logits.npy", content.logits.numpy())
    np.save("labels.npy", content.labels.numpy())
    torch.save({"logits": content.logits, "labels": 3 - content.labels}, "all.pt")
    (tmp_path / "names.txt").write_text("# four names\n\ncat\nguinea pig\n d,o,g \nhen")
    back = read_logits("logits.npy", labels="labels.npy", class_names="names.txt")
    assert torch.equal(back.labels, content.labels)
    assert back.class_names == NAMES
    assert torch.equal(read_logits("logits.npy", labels="all.pt").labels, 3 - content.labels)
    assert torch.equal(read_logits("all.pt", labels="labels.npy").labels, content.labels)
    assert read_logits("all.pt", with_labels=False).labels is None


def test_labels_that_are_not_wanted_are_not_checked(content):
    np.savez("unlabelled.npz", logits=content.logits, labels=np.full(6, -1))
    assert read_logits("unlabelled.npz", with_labels=False).labels is None
    with says(
        "unlabelled.npz: labels contain -1, outside [0, 4) (4 is the number of columns of the logits); drop such "
        "entries (ignore indices) or map them to class indices"
    ):
        read_logits("unlabelled.npz")


def test_refuses_what_is_not_there(tmp_path, content):
    with says("a.npz does not exist; check the name", FileNotFoundError):
        read_logits("a.npz")
    (tmp_path / "folder.npz").mkdir()
    with says("folder.npz is a directory; give a file in it", IsADirectoryError):
        read_logits("folder.npz")
    (tmp_path / "a.CSV").touch()
    with says("a.CSV has the unknown suffix '.CSV'; save it as .npz or .npy or .pt or .safetensors"):
        read_logits("a.CSV")
    (tmp_path / "a").touch()
    with says("a has no suffix; save it as .npz or .npy or .pt or .safetensors"):
        read_logits("a")
    np.savez("a.npz", scores=content.logits, y=content.labels)
    with says("a.npz: no 'logits' among its arrays ('scores', 'y'); save the logits under this name"):
        read_logits("a.npz")
    np.savez("a.npz")
    with says("a.npz: no 'logits' among its arrays (there are none); save the logits under this name"):
        read_logits("a.npz")
    np.savez("b.npz", logits=content.logits)
    with says("b.npz: no 'labels' among its arrays ('logits'); save the labels under this name"):
        read_logits("b.npz", labels="b.npz")
    torch.save([content.logits], "a.pt")
    with says("a.pt holds a list; save it again: torch.save({'logits': tensor, 'labels': tensor}, file)"):
        read_logits("a.pt")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root reads everything")
def test_refuses_what_may_not_be_read(tmp_path, content):
    np.save("a.npy", content.logits)
    (tmp_path / "a.npy").chmod(0)
    with says("[Errno 13] Permission denied: 'a.npy'", PermissionError):
        read_logits("a.npy")


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".pt"])
@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.9, 0.99])
def test_refuses_truncated_files(tmp_path, content, suffix, share):
    path = tmp_path / f"whole{suffix}"
    logits = content.logits.repeat(50, 1)
    if suffix == ".pt":
        torch.save({"logits": logits}, path)
    else:
        write_logits(path, LogitsFile(logits))
    assert torch.equal(read_logits(path).logits, logits)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    problem = f"(is truncated or no {suffix} file|holds Python objects or is no {suffix} file at all, and [^;]*)"
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))} {problem}; save it again: [^\n]*$"):
        read_logits(path)


def test_says_truncated():
    np.save("a.npy", np.zeros((9, 3)))
    os.truncate("a.npy", 200)
    with says("a.npy is truncated or no .npy file; save it again: numpy.save(file, array)"):
        read_logits("a.npy")


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        (
            "logits",
            np.arange(6),
            "logits has dtype int64; finecal takes float64, float32, float16 or bfloat16 scores: convert with "
            "logits.astype(numpy.float32), or check that logits and labels are not swapped",
        ),
        ("logits", np.zeros(6), "logits has shape (6,); expected (N, C), one row of C class scores per sample"),
        (
            "logits",
            np.full((6, 4), np.nan),
            "logits contain NaN (first in row 0, 6 of 6 rows); drop these samples or repair the model: only finite "
            "values and -inf (a masked class) are legal",
        ),
        (
            "logits",
            np.full((6, 4), 0.25),
            "logits look like probabilities: every row lies in [0, 1] and sums to 1; gamma is added to logits: "
            "pass the scores before softmax, or the logarithms of these probabilities",
        ),
        (
            "logits",
            np.full((6, 4), "1.0"),
            "logits is ndarray of dtype <U3, which torch cannot hold; pass a torch tensor, or a NumPy array of numbers "
            "or booleans",
        ),
        (
            "labels",
            np.zeros(6),
            "labels have dtype float64; expected integer class indices, not a mask or scores (convert whole "
            "numbers that are stored as floats)",
        ),
        (
            "labels",
            np.eye(6, 4, dtype=int),
            "labels have shape (6, 4) for 6 rows of logits; expected (6,), one class index per row; "
            "for one-hot labels use labels.argmax(1)",
        ),
        (
            "class_names",
            np.array(["a", "b"]),
            "there are 2 class names for logits of 4 classes; give one per column, in order",
        ),
        (
            "groups",
            np.arange(5),
            "groups have shape (5,) for 6 rows of logits; expected (6,), the number of the picture (or patient, or "
            "document) that each row comes from",
        ),
        ("class_names", np.arange(4), "class_names have dtype int64 and shape (4,); save a list of texts"),
    ],
)
def test_refuses_bad_arrays(content, key, value, sentence):
    np.savez("a.npz", **{"logits": content.logits.numpy(), "labels": content.labels.numpy(), key: value})
    with says(f"a.npz: {sentence}"):
        read_logits("a.npz")


def test_without_safetensors(content, monkeypatch):
    write_logits("a.safetensors", content)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    sentence = "safetensors files need the package safetensors: pip install 'finecal[io]'"
    with says(sentence, ImportError):
        read_logits("a.safetensors")
    with says(sentence, ImportError):
        write_logits("b.safetensors", content)
    assert not os.path.exists("b.safetensors")


# --- pickles ----------------------------------------------------------------------------------------------------------


class Payload:
    """Makes a directory when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("executed",)


def save_pickle(path):
    with open(path, "wb") as file:
        pickle.dump(Payload(), file)


OBJECTS = np.array([Payload()], dtype=object)
PICKLES = {
    "objects.npy": lambda path: np.save(path, OBJECTS, allow_pickle=True),
    "logits.npz": lambda path: np.savez(path, logits=OBJECTS),
    "labels.npz": lambda path: np.savez(path, logits=np.zeros((1, 2)), labels=OBJECTS),
    "names.npz": lambda path: np.savez(path, logits=np.zeros((1, 2)), class_names=OBJECTS),
    "gamma.npz": lambda path: np.savez(path, logits=np.zeros((1, 2)), gamma=OBJECTS),
    "whole.pt": lambda path: torch.save(Payload(), path),
    "entry.pt": lambda path: torch.save({"logits": torch.zeros(1, 2), "other": Payload()}, path),
    "legacy.pt": lambda path: torch.save(Payload(), path, _use_new_zipfile_serialization=False),
    "renamed.npy": save_pickle,
    "renamed.npz": save_pickle,
    "renamed.pt": save_pickle,
    "renamed.safetensors": save_pickle,
}


@pytest.mark.parametrize("name", PICKLES)
def test_nothing_is_unpickled(name):
    PICKLES[name](name)
    suffix = os.path.splitext(name)[1]
    problem = f"{name} holds Python objects or is no {suffix} file at all, and finecal never unpickles"
    if suffix == ".safetensors":
        problem = f"{name} is truncated or no .safetensors file"
    with pytest.raises(ValueError, match=f"^{re.escape(problem)}; save it again: [^\n]*$"):
        read_logits(name)
    assert not os.path.exists("executed")


def test_the_payload_works():
    pickle.loads(pickle.dumps(Payload()))
    assert os.path.exists("executed")


def test_entries_unknown_to_finecal_are_not_read():
    np.savez("a.npz", logits=np.ones((1, 2)), other=OBJECTS)
    assert read_logits("a.npz").logits.tolist() == [[1, 1]]
    assert not os.path.exists("executed")


def write_all(content):
    """Write the content as each kind of file that has labels."""
    for suffix in (".npz", ".safetensors"):
        write_logits(f"a{suffix}", content)
    torch.save({"logits": content.logits, "labels": content.labels, "class_names": list(NAMES)}, "a.pt")


@pytest.mark.skipif(os.name != "posix", reason="on Windows a mapped file stays as it is")
@pytest.mark.parametrize("suffix", [".npz", ".pt", ".safetensors"])
def test_a_flipped_bit_is_refused_or_changes_nothing(tmp_path, content, suffix):
    """Every bit of the first hundred and of the last thousand bytes, and some between."""
    write_all(content)
    data = (tmp_path / f"a{suffix}").read_bytes()
    same, refused = describe(read_logits(f"a{suffix}")), 0
    for position in [*range(100), *range(100, len(data), 7), *range(len(data) - 60, len(data))]:
        damaged = bytearray(data)
        damaged[position] ^= 1 << position % 8
        (tmp_path / f"b{suffix}").write_bytes(damaged)
        found = describe_or_refusal(f"b{suffix}")
        refused += isinstance(found, str)
        assert found == same or found.startswith(f"b{suffix}"), position
    assert refused > 100


def describe_or_refusal(path):
    try:
        return describe(read_logits(path))
    except ValueError as error:
        return str(error)


def describe(content):
    return content.logits.tolist(), content.labels.tolist(), content.class_names, content.gamma


def test_says_which_part_is_damaged(tmp_path, content):
    write_all(content)
    needles = {".npz": content.logits.numpy().tobytes(), ".pt": content.labels.numpy().tobytes()}
    names = {".npz": "logits.npy", ".pt": "a/data/1"}
    for suffix, needle in needles.items():
        data = (tmp_path / f"a{suffix}").read_bytes()
        assert needle in data
        (tmp_path / f"b{suffix}").write_bytes(data.replace(needle, bytes([needle[0] ^ 1]) + needle[1:]))
        with pytest.raises(ValueError, match=f"^b{suffix} is damaged in '{names[suffix]}' .*; save it again: "):
            read_logits(f"b{suffix}")
    data = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "b.safetensors").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with says(
        "b.safetensors does not match its checksum, so it was damaged or edited; save it again: "
        "safetensors.torch.save_file({'logits': tensor}, file)"
    ):
        read_logits("b.safetensors")


def test_a_member_missing_in_the_directory_is_not_overlooked(tmp_path, content):
    write_all(content)
    data = (tmp_path / "a.npz").read_bytes()
    with zipfile.ZipFile("a.npz") as archive:
        start, names = archive.start_dir, archive.namelist()
    entries = [b"PK\x01\x02" + entry for entry in data[start : data.rindex(b"PK\x05\x06")].split(b"PK\x01\x02")[1:]]
    for number, name in enumerate(names):
        left = entries[:number] + entries[number + 1 :]
        directory = b"".join(left)
        end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, len(left), len(left), len(directory), start, 0)
        (tmp_path / "b.npz").write_bytes(data[:start] + directory + end)
        with pytest.raises(ValueError, match=r"^b\.npz is damaged: its directory does not tell all that is in it; "):
            read_logits("b.npz")
        assert name not in zipfile.ZipFile("b.npz").namelist()


def test_two_members_of_a_name(content):
    logits = content.logits.numpy()
    for names in (["logits.npy", "labels.npy", "labels.npy"], ["logits.npy", "labels", "labels.npy"]):
        with warnings.catch_warnings(), zipfile.ZipFile("a.npz", "w") as archive:
            warnings.simplefilter("ignore")
            for name in names:
                archive.writestr(name, npy_bytes(logits if name.startswith("logits") else np.zeros(6, int)))
        with says(
            "a.npz holds 'labels' more than once; save it again: numpy.savez(file, logits=logits, labels=labels)"
        ):
            read_logits("a.npz")


def test_a_name_twice_in_safetensors():
    header = b'{"logits":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]},"logits":{"dtype":"F32","shape":[1,2],'
    header += b'"data_offsets":[0,8]}}'
    with open("a.safetensors", "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(ValueError, match="^a.safetensors is damaged: it has the entry 'logits' more than once; save"):
        read_logits("a.safetensors")


@pytest.mark.parametrize(
    ("near", "key"), [("label", "labels"), ("Labels", "labels"), ("classnames", "class_names"), ("gama", "gamma")]
)
def test_a_misnamed_key_is_not_left_out(content, near, key):
    np.savez("a.npz", logits=content.logits, **{near: np.zeros(6, int)})
    torch.save({"logits": content.logits, near: 1, 3: 4}, "a.pt")
    safetensors_save({"logits": content.logits, near: content.labels}, "a.safetensors")
    for suffix in (".npz", ".pt", ".safetensors"):
        with says(f"a{suffix}: it has no {key!r}, but {near!r}; name it {key!r} if it is that, and less alike if not"):
            read_logits(f"a{suffix}")
    labels = content.labels.numpy()
    np.savez("b.npz", **{near: 0, "logits": content.logits, "labels": labels, "class_names": NAMES, "gamma": 0.0})
    assert read_logits("b.npz").class_names == NAMES


@pytest.mark.skipif(os.name != "posix", reason="on Windows a mapped file stays as it is")
def test_files_of_others_have_no_checksum(content):
    safetensors_save(
        {"logits": content.logits, "features": content.logits + 1}, "a.safetensors", {"class_names": "null"}
    )
    with says("a.safetensors: class_names are of type NoneType; save a list of texts"):
        read_logits("a.safetensors")
    safetensors_save({"logits": content.logits, "features": content.logits + 1}, "a.safetensors")
    assert torch.equal(read_logits("a.safetensors").logits, content.logits)


def header_of(shape):
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return buffer.getvalue()


HUGE = (10**9, 1000)


def test_claims_of_a_terabyte_are_not_believed(tmp_path):
    (tmp_path / "a.npy").write_bytes(header_of(HUGE) + bytes(64))
    with says("a.npy is truncated or no .npy file; save it again: numpy.save(file, array)"):
        read_logits("a.npy")
    with zipfile.ZipFile("a.npz", "w") as archive:
        archive.writestr("logits.npy", header_of(HUGE) + bytes(64))
    with pytest.raises(ValueError, match="^a.npz claims 1000000000 x 1000 entries in 'logits.npy', which are not in"):
        read_logits("a.npz")
    header = b'{"logits":{"dtype":"F32","shape":[1000000000,1000],"data_offsets":[0,4000000000000]}}'
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(64))
    with pytest.raises(ValueError, match="^a.safetensors is truncated or no .safetensors file; save it again"):
        read_logits("a.safetensors")
    torch.save({"logits": torch.zeros(1).expand(HUGE)}, "a.pt")
    assert os.path.getsize("a.pt") < 2000
    with pytest.raises(ValueError, match="^a.pt claims 1000000000 x 1000 entries in 'logits', which are not in it"):
        read_logits("a.pt")
    torch.save(torch.empty(HUGE, device="meta"), "a.pt")
    with pytest.raises(ValueError, match="^a.pt claims 1000000000 x 1000 entries in 'logits', which are not in it"):
        read_logits("a.pt")
    torch.save({"logits": torch.ones(6, 4), "labels": torch.zeros(1, dtype=torch.int64).expand(6)}, "a.pt")
    with pytest.raises(ValueError, match="^a.pt claims 6 entries in 'labels', which are not in it"):
        read_logits("a.pt")


def test_what_follows_an_array_is_not_left_out(tmp_path, content):
    np.save("a.npy", content.logits)
    (tmp_path / "a.npy").write_bytes(2 * (tmp_path / "a.npy").read_bytes())
    with says("a.npy holds more than an array of shape 6 x 4; save it again: numpy.save(file, array)"):
        read_logits("a.npy")
    with zipfile.ZipFile("a.npz", "w") as archive:
        archive.writestr("logits.npy", 2 * npy_bytes(content.logits.numpy()))
    with pytest.raises(ValueError, match="^a.npz claims 6 x 4 entries in 'logits.npy', which are not in it"):
        read_logits("a.npz")


def test_class_names_in_lists_without_end(content):
    """Each list holds the one before many times: a few bytes that an array would expand to all there is."""
    names = ["a"] * 9
    for _ in range(30):
        names = [names] * 9
    torch.save({"logits": content.logits, "class_names": names}, "a.pt")
    with pytest.raises(ValueError, match="^a.pt: class_names hold a value of type list; save a list of texts"):
        read_logits("a.pt")


KILLED = """
import os, sys
from finecal._core.files import write_atomically
os.fsync = lambda descriptor: os.kill(os.getpid(), 9)
for name in sys.argv[1:]:  # one process each, forked, so that torch is imported once
    if (child := os.fork()) == 0:
        write_atomically(name, b"new")
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_leftovers_of_a_killed_write_are_removed_by_the_next(tmp_path):
    command, environment = (
        [sys.executable, "-c", KILLED, "a.bin", "a.bin", "b.bin"],
        os.environ | {"PYTHONPATH": SOURCE},
    )
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout.split() == ["-9"] * 3
    # The second one has removed what the first one had left.
    assert len(list(tmp_path.glob(".finecal-*.tmp"))) == 2
    write_atomically("a.bin", b"whole")
    (left,) = tmp_path.glob(".finecal-*.tmp")
    write_atomically("b.bin", b"whole")
    assert not left.exists()
    assert sorted(os.listdir()) == ["a.bin", "b.bin"]


@pytest.mark.skipif(os.name != "posix", reason="locks of POSIX")
def test_two_writers_at_a_time_do_not_disturb_each_other(monkeypatch):
    fsync, other = os.fsync, []

    def meanwhile(descriptor):
        monkeypatch.setattr(os, "fsync", fsync)
        write_atomically("a.bin", b"other")
        other.append(os.listdir())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", meanwhile)
    write_atomically("a.bin", b"first")
    assert len(other[0]) == 2
    assert os.listdir() == ["a.bin"]
    with open("a.bin", "rb") as file:
        assert file.read() == b"first"


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_a_private_file_is_private_on_its_way(tmp_path, monkeypatch):
    (tmp_path / "a.bin").touch(0o600)
    modes, fsync = [], os.fsync

    def watch(descriptor):
        modes.append(os.fstat(descriptor).st_mode & 0o777)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watch)
    write_atomically("a.bin", b"secret")
    assert modes == [0o600]
    assert (tmp_path / "a.bin").stat().st_mode & 0o777 == 0o600
    (tmp_path / "a.bin").chmod(0o640)
    write_atomically("a.bin", b"shared")
    assert modes == [0o600, 0o600]
    assert (tmp_path / "a.bin").stat().st_mode & 0o777 == 0o640


# --- mapped files -----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="maps of Linux")
@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
def test_logits_are_mapped_not_read(tmp_path, content, suffix):
    write_logits(f"a{suffix}", LogitsFile(content.logits.repeat(4000, 1)))
    found = read_logits(f"a{suffix}").logits
    with open("/proc/self/maps") as maps:
        lines = [line.split(maxsplit=5) for line in maps if line.endswith(f"{tmp_path}/a{suffix}\n")]
    spans = [[int(end, 16) for end in line[0].split("-")] for line in lines]
    assert any(start <= found.data_ptr() < end for start, end in spans)


@pytest.mark.skipif(os.name != "posix", reason="on Windows a mapped file stays as it is")
@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
def test_a_mapped_file_may_be_replaced(tmp_path, content, suffix):
    path = f"a{suffix}"
    write_logits(path, LogitsFile(content.logits.repeat(4000, 1)))
    old = read_logits(path).logits
    write_logits(path, LogitsFile(-content.logits[:1]))
    assert torch.equal(old, content.logits.repeat(4000, 1))
    assert torch.equal(read_logits(path).logits, -content.logits[:1])


@pytest.mark.parametrize("array", [np.zeros((0, 3), np.float32), np.ones((2, 3), ">f8"), np.ones((3, 2)).T])
def test_every_layout_can_be_mapped(array):
    np.save("a.npy", array)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = read_logits("a.npy").logits
    assert found.shape == array.shape
    assert found.tolist() == array.tolist()


def test_an_array_marked_as_a_folder_is_not_what_was_in_memory_before(tmp_path, content):
    write_all(content)
    data = bytearray((tmp_path / "a.pt").read_bytes())
    attributes = data.rindex(b"PK\x01\x02", 0, data.rindex(b"a/data/0")) + 38
    data[attributes] ^= 0x10
    (tmp_path / "a.pt").write_bytes(data)
    with pytest.raises(
        ValueError, match=r"^a\.pt is damaged in 'a/data/0' \(it is marked as a folder\); save it again"
    ):
        read_logits("a.pt")
