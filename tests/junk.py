"""What a user may pass by mistake, and what finecal makes of it."""

import datetime
import inspect
import math
import os
import warnings
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pandas as pd
import torch

import finecal

_PACKAGE = os.path.dirname(os.path.abspath(finecal.__file__)) + os.sep


class Opaque:
    """An object of nobody's."""


class Hostile:
    """An object that fails at every attempt to make a number or an array of it."""

    def __float__(self):
        raise RuntimeError("no number")

    def __index__(self):
        raise RuntimeError("no index")

    def __array__(self, *args, **kwargs):
        raise RuntimeError("no array")


def _quantized():
    return torch.quantize_per_tensor(torch.ones(4, 3), 0.1, 0, torch.qint8)


KINDS = {
    "None": lambda: None,
    "text": lambda: "text",
    "empty text": lambda: "",
    "bytes": lambda: b"bytes",
    "object": Opaque,
    "hostile object": Hostile,
    "dict": lambda: {"a": 1},
    "set": lambda: {"a", "b"},
    "generator": lambda: (x for x in "ab"),
    "function": lambda: len,
    "class": lambda: Opaque,
    "class of numbers": lambda: int,
    "empty list": list,
    "ragged list": lambda: [[1], [1, 2]],
    "list of None": lambda: [None, None],
    "object array": lambda: np.array([Opaque(), "a", None], dtype=object),
    "complex": lambda: 1 + 2j,
    "complex array": lambda: np.ones((4, 3), dtype=complex),
    "complex tensor": lambda: torch.ones(4, 3, dtype=torch.complex64),
    "NaN": lambda: float("nan"),
    "inf": lambda: float("inf"),
    "negative": lambda: -3,
    "huge int": lambda: 10**400,
    "bool": lambda: True,
    "numpy bool": lambda: np.True_,
    "date": lambda: datetime.date(2024, 1, 1),
    "empty array": lambda: np.empty(0),
    "empty matrix": lambda: np.empty((0, 0), dtype=np.float32),
    "five dimensions": lambda: np.ones((1, 2, 1, 2, 1), dtype=np.float32),
    "text array": lambda: np.array(["a", "b", "c"]),
    "dates": lambda: np.array(["2024-01-01"] * 3, dtype="datetime64[D]"),
    "structured array": lambda: np.zeros(3, dtype=[("a", "f4"), ("b", "i4")]),
    "masked array": lambda: np.ma.masked_invalid([1.0, np.nan, 2.0]),
    "sparse tensor": lambda: torch.eye(4).to_sparse(),
    "meta tensor": lambda: torch.ones(4, 3, device="meta"),
    "nested tensor": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "quantized tensor": _quantized,
    "float8 tensor": lambda: torch.ones(4, 3).to(torch.float8_e4m3fn),
    "series of text": lambda: pd.Series(["a", "b", "c"]),
    "frame of text": lambda: pd.DataFrame({"a": ["x", "y"], "b": ["z", None]}),
    "categorical": lambda: pd.Categorical(["a", "b", "a"]),
}


def _first(value):
    """The array in an argument: of a pair, its first."""
    return value[0] if isinstance(value, tuple) else value


def _same_place(value, array):
    return (array, *value[1:]) if isinstance(value, tuple) else array


def _holds_texts(array):
    return isinstance(array, np.ndarray) and array.dtype.kind == "U"


def _texts(array):
    return np.full(np.shape(array), "a")


def _with_first(array, number):
    changed = np.array(array, dtype=np.float64)
    changed.flat[0] = number
    return torch.from_numpy(changed).float() if isinstance(array, torch.Tensor) else changed


OF_ITS_SHAPE = {
    "complex": lambda array: np.asarray(array).astype(complex),
    "complex tensor": lambda array: torch.as_tensor(array).to(torch.complex64),
    "texts": _texts,
    "objects": lambda array: np.full(np.shape(array), None),
    "dates": lambda array: np.zeros(np.shape(array), dtype="datetime64[s]"),
    "long doubles": lambda array: np.asarray(array).astype(np.longdouble),
    "NaN in it": lambda array: _with_first(array, math.nan),
    "+inf in it": lambda array: _with_first(array, math.inf),
    "sparse": lambda array: torch.as_tensor(array).to_sparse(),
    "meta": lambda array: torch.as_tensor(array).to("meta"),
    "float8": lambda array: torch.as_tensor(array).to(torch.float8_e4m3fn),
    "masked": lambda array: np.ma.masked_array(np.asarray(array), mask=np.ones(np.shape(array), dtype=bool)),
    "one entry more": lambda array: np.concatenate([np.asarray(array), np.asarray(array)[:1]]),
    "one dimension more": lambda array: np.asarray(array)[None],
    "a column": lambda array: np.asarray(array)[..., None],
    "empty": lambda array: np.asarray(array)[:0],
    "a frame of texts": lambda array: pd.DataFrame(_texts(array).reshape(len(array), -1)),
}
"""Junk that looks like the argument until one looks at the entries, for arguments that are arrays or start with one."""


@dataclass(frozen=True)
class Call:
    """A public callable, and arguments that are right."""

    name: str
    function: object
    arguments: object
    """Gives new ones each time: some are changed or used up."""
    unchecked: dict = field(default_factory=dict)
    """Kinds of junk, by argument, that go to code that is not finecal's: its error comes, whatever it is."""
    passed_on: tuple = ()
    """Arguments that go there as they are, whatever they are."""

    def junk(self):
        """Yield every argument that can be given by name, each kind of junk for it, and what makes such junk."""
        variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        right = self.arguments()
        names = [p.name for p in inspect.signature(self.function).parameters.values() if p.kind not in variable]
        for name in names or right:
            kinds = dict(KINDS)
            if isinstance(_first(right.get(name)), (np.ndarray, torch.Tensor)) and not _holds_texts(right[name]):
                for kind, change in OF_ITS_SHAPE.items():
                    kinds[f"{kind}, of its shape"] = partial(_changed, right[name], change)
            for kind, make in kinds.items():
                if name not in self.passed_on and kind not in self.unchecked.get(name, ()):
                    yield name, kind, make

    def may_be_none(self, name):
        """Whether None is what an argument is by default."""
        parameter = inspect.signature(self.function).parameters.get(name)
        return parameter is not None and parameter.default is None

    def run(self, **junk):
        return quietly(self.function, **(self.arguments() | junk))


def _changed(value, change):
    return _same_place(value, change(_first(value)))


def quietly(function, *args, **arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*args, **arguments)


def outcome(call, name, make, synonyms=()):
    """Return "legal", "clear" or what is wrong with the error that came."""
    junk = quietly(make)
    try:
        call.run(**{name: junk})
    except BaseException as error:
        if type(error) not in (TypeError, ValueError):
            return f"{type(error).__name__}: {error}"
        trace = error.__traceback__
        while trace.tb_next is not None:
            trace = trace.tb_next
        if not trace.tb_frame.f_code.co_filename.startswith(_PACKAGE):
            return f"not from finecal: {type(error).__name__}: {error}"
        if not any(word in str(error) for word in (name, *synonyms)):
            return f"does not name {name}: {error}"
        return "clear"
    return "legal"
