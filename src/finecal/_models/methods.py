"""Methods of a model, such as `generate` and `predict_step`, run while its `forward` is calibrated."""

from __future__ import annotations

import functools
import re
import threading
from collections.abc import Callable, Coroutine, Generator, Iterable, Iterator, Mapping, ValuesView
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import MappingProxyType, MethodType
from typing import Any, NoReturn, TypeAlias

import numpy as np
from torch import Tensor, nn

from .heads import find_head, wrap

Calibrate: TypeAlias = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
"""Calls a `forward` with positional and named arguments, and calibrates what it returns."""

_WRITES = re.compile(r"save(?!_hyperparameters)|dump|push_to|upload|.*script")
"""TorchScript is compiled from the source of `forward`, whatever the instance has in its place."""
_CONVERTS = re.compile(r"export|onnx|tensorrt|serialize")


@dataclass
class _Call:
    """A method that runs: the modules that stand for its model, how they are calibrated, and how often what has run."""

    modules: tuple[nn.Module, ...]
    calibrate: Calibrate
    forwards: int = 0
    heads: int = 0


_running: ContextVar[Mapping[int, _Call | None]] = ContextVar("_running", default=MappingProxyType({}))
"""By the id of a module: the method of it that runs in this thread or task; None where it is to run uncalibrated."""
_changing = threading.Lock()


def is_method_of(value: object, model: nn.Module) -> bool:
    """Whether `value` is a method bound to the model, or to what it wraps."""
    return isinstance(value, MethodType) and any(value.__self__ is module for module in _unwrapped(model))


def is_running(model: nn.Module) -> bool:
    """Whether a method of the model runs in this thread or task, with the model's `forward` calibrated."""
    return _running.get().get(id(model)) is not None


def run_method(
    method: MethodType, args: tuple[Any, ...], kwargs: dict[str, Any], calibrate: Calibrate, classes: int | None
) -> Any:
    """Run a method of a model with the model's `forward` calibrated, and restore it.

    Other threads that call the model meanwhile are not concerned. A generator runs calibrated step by step, a coroutine
    from its start to its end.

    Raises
    ------
    ValueError
        If the method would write the model without its calibrator; if it gives logits, or the model in another form,
        and did not call `forward`.
    """
    name = method.__name__
    model: Any = method.__self__
    if _WRITES.match(name):
        _refuse(name, "would write or convert the model without its calibrator")
    call = _Call(tuple(_unwrapped(model)), calibrate)
    with _calibrated(call):
        result = method(*args, **kwargs)
    if isinstance(result, Generator):
        return _steps(result, call)
    if isinstance(result, Coroutine):
        return _awaited(result, call)
    if not call.forwards and (call.heads or _CONVERTS.search(name) or _holds_logits(result, model, classes)):
        _refuse(name, f"of {type(model).__name__} does not call the model's forward, so its result is not calibrated")
    return result


def _refuse(name: str, why: str) -> NoReturn:
    raise ValueError(
        f"{name} {why}: fold the calibrator into the head, model = calibrated.fold(inputs), then call model.{name}"
    )


@contextmanager
def uncalibrated(model: nn.Module) -> Iterator[None]:
    """Let the model run uncalibrated in this thread, also within its methods."""
    with _set(_unwrapped(model), None):
        yield


@contextmanager
def _calibrated(call: _Call) -> Iterator[None]:
    """Run with the calibrated `forward`, and count how often it and the head run."""
    model = call.modules[0]

    def count(*_: object) -> None:
        call.heads += _running.get().get(id(model)) is call

    handles = [head.register_forward_pre_hook(count) for head in _heads_of(model)]
    for module in call.modules:
        _replace_forward(module)
    try:
        with _set(call.modules, call):
            yield
    finally:
        for module in call.modules:
            _restore_forward(module)
        for handle in handles:
            handle.remove()


@contextmanager
def _set(modules: Iterable[nn.Module], call: _Call | None) -> Iterator[None]:
    token = _running.set({**_running.get(), **dict.fromkeys(map(id, modules), call)})
    try:
        yield
    finally:
        _running.reset(token)


def _unwrapped(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the model, and the modules that it wraps (torch.compile, PEFT): its methods may call any of them."""
    inner: nn.Module | None = model
    while inner is not None:
        yield inner
        inner = wrap(inner)


def _heads_of(model: nn.Module) -> tuple[nn.Module, ...]:
    try:
        return find_head(model).layers
    except Exception:  # methods of the user's model may raise any
        return ()


def _entry(module: nn.Module) -> str:
    """Return the name of the method that ``module(...)`` runs: `forward` in torch, `call` in Keras."""
    is_own = type(module).__call__ is not nn.Module.__call__
    return "call" if is_own and callable(getattr(module, "call", None)) else "forward"


def _replace_forward(module: nn.Module) -> None:
    """Put a `forward` into the instance that calibrates in the threads and tasks in which a method of it runs."""
    entry = _entry(module)
    with _changing:
        forward: Any = getattr(module, entry)
        if hasattr(forward, "finecal_methods"):
            forward.finecal_methods += 1
            return

        def run(*args: Any, **kwargs: Any) -> Any:
            call = _running.get().get(id(module))
            if call is None:
                return forward(*args, **kwargs)
            call.forwards += 1
            with _set(call.modules, None):  # a model that calls itself is calibrated once
                return call.calibrate(forward, args, kwargs)

        calibrated: Any = functools.wraps(forward)(run)
        calibrated.finecal_methods = 1
        calibrated.finecal_before = vars(module).get(entry)
        vars(module)[entry] = calibrated


def _restore_forward(module: nn.Module) -> None:
    entry = _entry(module)
    with _changing:
        forward: Any = vars(module).get(entry)
        if not hasattr(forward, "finecal_methods"):  # the method has put another one in its place
            return
        forward.finecal_methods -= 1
        if forward.finecal_methods:
            return
        if forward.finecal_before is None:
            del vars(module)[entry]
        else:
            vars(module)[entry] = forward.finecal_before


def _holds_logits(result: object, model: nn.Module, classes: int | None) -> bool:
    """Whether a result looks like logits of a model whose head is not known, so that its runs were not counted."""
    if _heads_of(model):
        return False
    values = result.values() if isinstance(result, Mapping) else result
    arrays = values if isinstance(values, (tuple, list, ValuesView)) else [values]
    shapes = {tuple(array.shape) for array in arrays if isinstance(array, (Tensor, np.ndarray)) and array.ndim > 1}
    weights = {tuple(weight.shape) for weight in model.parameters()}  # as Keras's `get_weights` returns them
    return any(classes in (shape[1], shape[-1]) for shape in shapes - weights)


def _steps(generator: Generator[Any, Any, Any], call: _Call) -> Generator[Any, Any, Any]:
    """Run each step of a generator calibrated, and what happens between them not."""
    sent = None
    try:
        while True:
            with _calibrated(call):
                try:
                    item = generator.send(sent)
                except StopIteration as stop:
                    return stop.value
            sent = yield item
    finally:
        generator.close()


async def _awaited(coroutine: Coroutine[Any, Any, Any], call: _Call) -> Any:
    with _calibrated(call):
        return await coroutine
