"""A model together with its calibrator, as one module that passes for the model."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from types import MethodType
from typing import Any, NoReturn

import torch
from torch import nn

from .._calibrators.file import save
from .._calibrators.prototypes import Prototypes
from .._core.warning import warn
from .fold import FOLDED, TOGETHER, CalibratedBase, check_uncalibrated, fold_into_head
from .fold_check import looks_folded
from .heads import HeadInputs, HeadLayer, attach_head_inputs, detach_head_inputs, possible_heads, single_head
from .methods import is_method_of, is_running, run_method, uncalibrated
from .output import Output, check_output, logits_of, with_logits


class CalibratedModel(CalibratedBase):
    r"""A model whose logits are calibrated, and which otherwise passes for the model itself.

    .. math:: \tilde z(x) = \mathrm{calibrator}(z(x))

    Parameters
    ----------
    model : nn.Module
        Returns logits `(..., C)`, or `(B, C, ...)` for a calibrator with ``dim=1``, or an output that holds them: a
        mapping, `ModelOutput`, named tuple or dataclass under the name `logits`, a mapping under the name `out` (the
        segmentation models of torchvision), or a tuple of which they are the first floating-point tensor of two or more
        dimensions. Two of the same shape are refused without `output`.
    calibrator : nn.Module
        From logits to logits of the same shape: one of finecal's calibrators, or several in an ``nn.Sequential``.
        `Prototypes` take features as well: the inputs of the model's final linear layer, which a hook on it records.
    output : str or callable, optional
        Where the logits are in another output, which calibrated ones are put back into: a key or attribute, or a
        function that returns one of its tensors, or a view of one, such as ``lambda out: out[1]``. To be pickled, a
        function needs a name.

    Attributes
    ----------
    model, calibrator : nn.Module
        As given; `model` is the uncalibrated one. Its other public names, such as `config`, are read and set through
        the wrapper as well. Methods that call the model's `forward`, such as `generate`, `predict` or `predict_step`,
        give calibrated results. Others raise ValueError if they give logits (timm's `forward_head`), or write or
        convert the model alone (`save`, `to_torchscript`): `fold` first.

    Raises
    ------
    TypeError
        If `model` or `calibrator` is no ``nn.Module``, or `model` is a calibrator; in `forward`, if the output of the
        model holds no logits, as that of a detector, into whose class head a calibrator can be folded.
    ValueError
        If `model` is calibrated already: it holds a calibrator, or one is folded into its head; in `forward` and
        `save_pretrained`, if one was folded since. With `Prototypes`: if the final linear layer is not found, has other
        sizes, or runs several times for a batch, or if they are one part of several.

    Warns
    -----
    FinecalWarning
        If nothing is recorded as folded, but the biases of the head look as if `calibrator` had been.

    Notes
    -----
    `forward` has the model's own signature, and returns an output of the same type. Logits are calibrated in train and
    eval mode alike; everything else in the output, a loss included, stays as the model computed it. The keys of the
    `state_dict` begin with ``model.`` and ``calibrator.``. Calibration costs a pass over the logits, `O(NC)`.

    Examples
    --------
    >>> import torch, finecal
    >>> calibrator = finecal.AdditiveBias([True, True, False], gamma=1.5)
    >>> calibrated = finecal.CalibratedModel(torch.nn.Linear(8, 3), calibrator)
    >>> calibrated
    CalibratedModel(Linear, AdditiveBias(gamma=1.5, seen=2, absent=1))
    >>> x = torch.ones(1, 8)
    >>> calibrated(x) - calibrated.model(x)
    tensor([[0.0000, 0.0000, 1.5000]], grad_fn=<SubBackward0>)
    >>> calibrated.in_features
    8
    """

    model: nn.Module
    calibrator: nn.Module
    _heads: tuple[HeadLayer, ...]
    _features: HeadInputs | None
    _output: Output | None

    def __init__(self, model: nn.Module, calibrator: nn.Module, *, output: Output | None = None) -> None:
        super().__init__()
        check_uncalibrated(model, TOGETHER)
        if not isinstance(calibrator, nn.Module):
            raise TypeError(f"calibrator is a {type(calibrator).__name__}; pass a torch.nn.Module such as AdditiveBias")
        if looks_folded(model, calibrator):
            warn(
                "CalibratedModel: the bias of the model's head looks as if the calibrator had been folded into it "
                "(weights that travel as a state_dict lose the record of that); if so, the model is calibrated: use it "
                "alone"
            )
        self.model = model
        self.calibrator = calibrator
        self._output = check_output(output)
        self.training: bool = model.training
        self.__class__ = _class_with_signature_of(model)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model, and calibrate the logits in what it returns."""
        if not torch.compiler.is_compiling() and is_running(self.model):  # in a callback of one of the model's methods
            with uncalibrated(self.model):
                return self._calibrated(self.model, args, kwargs)
        return self._calibrated(self.model, args, kwargs)

    def _calibrated(self, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the model, or its `forward`, and calibrate the logits in what it returns."""
        self._check_not_folded()
        if self._features is None and isinstance(self.calibrator, Prototypes):  # folded, and taken out again
            self._features = _features_for(self.model, self.calibrator)
        if self._features is None:
            output = run(*args, **kwargs)
            if isinstance(output, torch.fx.Proxy):  # the calibrator becomes one node, since its checks cannot be traced
                tracer: Any = output.tracer
                return tracer.create_proxy("call_module", tracer.path_of_module(self.calibrator), (output,), {})
            return with_logits(output, self.calibrator(logits_of(output, self._output)), self._output)
        self._features.arm()
        try:
            output = run(*args, **kwargs)
            features = self._features.pop()
        finally:
            self._features.clear()
        return with_logits(output, self.calibrator(logits_of(output, self._output), features), self._output)

    def __getattr__(self, name: str) -> Any:
        modules = self.__dict__.get("_modules", {})
        if name in modules:
            return modules[name]
        if name.startswith("_") or "model" not in modules:
            # Private names (`_hf_hook`, `__deepcopy__`) are bookkeeping of the model itself, and wrong for the wrapper.
            return super().__getattr__(name)
        value = getattr(modules["model"], name)
        return self._calibrated_method(value) if is_method_of(value, modules["model"]) else value

    def _calibrated_method(self, method: MethodType) -> Callable[..., Any]:
        """Return a method of the model that runs with the model's `forward` calibrated."""

        @functools.wraps(method)
        def run(*args: Any, **kwargs: Any) -> Any:
            result = run_method(method, args, kwargs, self._calibrated, self._classes())
            return self if result is method.__self__ else result

        return run

    def __setattr__(self, name: str, value: Any) -> None:
        model = self.__dict__.get("_modules", {}).get("model")
        if name in ("model", "calibrator") and isinstance(value, nn.Module):  # refused before it is set
            parts = {**self.__dict__.get("_modules", {}), name: value}
            _features_for(parts["model"], parts.get("calibrator"))
        own = name in ("model", "calibrator") or name in self.__dict__ or hasattr(type(self), name)
        if own or name.startswith("_") or not hasattr(model, name):
            super().__setattr__(name, value)
        else:
            setattr(model, name, value)
        if isinstance(value, nn.Module):
            self._heads = possible_heads(self.model, self._classes())
            self._features = _features_for(self.model, self._modules.get("calibrator"))

    def __reduce__(self) -> tuple[Any, ...]:
        state = self.__getstate__()  # type: ignore[no-untyped-call]
        del state["_heads"], state["_features"]  # found again in the copy, which the model may make in its own way
        return CalibratedModel, (self.model, self.calibrator), state  # the class has no name to be imported by

    def __deepcopy__(self, memo: dict[int, Any]) -> CalibratedModel:
        for path, module in self.named_modules():
            for name, value in vars(module).items():
                if isinstance(value, torch.Tensor) and not value.is_leaf:
                    raise ValueError(
                        f"{path}.{name} is computed from other tensors, as by the old torch.nn.utils.weight_norm, and "
                        "torch cannot copy such a model: use torch.nn.utils.parametrizations.weight_norm, or take the "
                        "norm out first, torch.nn.utils.remove_weight_norm(module)"
                    )
        make, parts, state = self.__reduce__()
        copied: CalibratedModel = make(*copy.deepcopy(parts, memo))
        copied.__setstate__(copy.deepcopy(state, memo))  # type: ignore[no-untyped-call]
        memo[id(self)] = copied
        return copied

    def __repr__(self) -> str:
        return f"CalibratedModel({type(self.model).__name__}, {self.calibrator!r})"

    def fold(self, inputs: object) -> nn.Module:
        """Put the calibrator into the head of the model, in place, by `fold_into_head`, and return the model.

        Parameters
        ----------
        inputs : tensor, tuple of positional arguments, mapping of keyword arguments, or None
            As in `fold_into_head`; with None the fold is not checked.

        Returns
        -------
        nn.Module
            `model` itself, with a record in its head, as in `fold_into_head`. This wrapper refuses to run from now on;
            keep `calibrator` for `unfold_from_head`.

        Raises
        ------
        TypeError, ValueError
            As `fold_into_head`; the model is then bit for bit as it was.

        Warns
        -----
        FinecalWarning
            As `fold_into_head`.

        Examples
        --------
        >>> import torch, finecal
        >>> calibrator = finecal.AdditiveBias([True, True, False], gamma=1.5)
        >>> finecal.CalibratedModel(torch.nn.Linear(8, 3), calibrator).fold(
        ...     torch.ones(1, 8)
        ... )
        Linear(in_features=8, out_features=3, bias=True)
        """
        model = fold_into_head(self.model, self.calibrator, inputs=inputs, output=self._output)
        self._heads += tuple(module for module in model.modules() if hasattr(module, FOLDED))
        if self._features is not None:  # a folded model is to be pickled and loaded without finecal
            detach_head_inputs(single_head(model))
            self._features = None
        return model

    def save_pretrained(self, save_directory: str | PathLike[str], **kwargs: Any) -> None:
        """Save the model with its own `save_pretrained`, and the calibrator beside it as ``finecal.safetensors``.

        Parameters
        ----------
        save_directory : path
            Load with ``CalibratedModel(AutoModel....from_pretrained(directory), finecal.load(file))``.
        **kwargs
            For the model's `save_pretrained`. A `state_dict` may be the wrapper's or the model's.

        Raises
        ------
        AttributeError
            If the model has no `save_pretrained`.
        ValueError
            If ``push_to_hub=True``, or a calibrator was folded into the model's head.
        """
        self._check_not_folded()
        model: Any = self.model
        save_model = model.save_pretrained
        if kwargs.get("push_to_hub"):
            self.push_to_hub()
        state = kwargs.get("state_dict")
        if state is not None and {key.partition(".")[0] for key in state} == {"model", "calibrator"}:
            kwargs["state_dict"] = {k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")}
        if kwargs.get("is_main_process", True):
            directory = Path(save_directory)
            directory.mkdir(parents=True, exist_ok=True)
            save(self.calibrator, directory / "finecal.safetensors")
        save_model(save_directory, **kwargs)

    def push_to_hub(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse: the model's own `push_to_hub` would upload it without the calibrator."""
        raise ValueError(
            "push_to_hub would upload the model without its calibrator; write both with save_pretrained(directory), "
            "then huggingface_hub.upload_folder(repo_id=..., folder_path=directory)"
        )

    def merge_and_unload(self, *args: Any, **kwargs: Any) -> CalibratedModel:
        """Merge the adapters of a PEFT model into its weights; return the merged model with the same calibrator."""
        model: Any = self.model
        return CalibratedModel(model.merge_and_unload(*args, **kwargs), self.calibrator, output=self._output)

    def _classes(self) -> int | None:
        """Return the number of classes of the calibrator, if it has a number for each."""
        calibrator = self._modules.get("calibrator")
        per_class = [] if calibrator is None else [buffer.shape[0] for buffer in calibrator.buffers() if buffer.ndim]
        return per_class[0] if per_class else None

    def _check_not_folded(self) -> None:
        """Refuse a model that was folded since: `fold_into_head` changes the model without its wrappers."""
        for head in self._heads:
            if hasattr(head, FOLDED):  # which torch.compile guards, unlike what is in `vars`
                raise ValueError(
                    "a calibrator was folded into the model's head after this CalibratedModel was made, so the model "
                    "would be calibrated twice: use its attribute `model`, which is calibrated now, or take the "
                    "calibrator out again with unfold_from_head"
                )


def _features_for(model: nn.Module, calibrator: nn.Module | None) -> HeadInputs | None:
    """Return the hook that records the inputs of the head, or None if the calibrator takes no features."""
    if not isinstance(calibrator, Prototypes):
        if calibrator is not None and any(isinstance(part, Prototypes) for part in calibrator.modules()):
            raise ValueError("calibrator holds Prototypes beside others, but these take features: pass them alone")
        return None
    head = single_head(model)
    classes, width = calibrator.weight.shape
    if (head.out_features, head.in_features) != (classes, width):
        raise ValueError(
            f"the final linear layer takes {head.in_features} features for {head.out_features} classes, but the "
            f"prototypes are of {width} features for {classes} classes; fit them to this model"
        )
    return attach_head_inputs(head)


def _class_with_signature_of(model: nn.Module) -> type[CalibratedModel]:
    """Return a subclass with the signature of the model's `forward`, as Hugging Face's Trainer reads it."""

    def forward(self: CalibratedModel, *args: Any, **kwargs: Any) -> Any:
        return CalibratedModel.forward(self, *args, **kwargs)

    inner: Any = model
    if hasattr(model, "get_base_model"):
        inner = inner.get_base_model()
    try:
        signature = inspect.signature(inner.forward)
    except (TypeError, ValueError):  # a forward in C++, as of a ScriptModule
        return CalibratedModel
    itself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    shown = signature.replace(parameters=[itself, *signature.parameters.values()])
    forward.__signature__ = shown  # type: ignore[attr-defined]
    forward.__wrapped__ = getattr(inner.forward, "__func__", forward)  # type: ignore[attr-defined]  # for torch.fx
    forward.__doc__ = CalibratedModel.forward.__doc__
    members = {"forward": forward, "__module__": __name__, "__doc__": CalibratedModel.__doc__}
    return type("CalibratedModel", (CalibratedModel,), members)
