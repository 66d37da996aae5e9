"""Directories that `save_pretrained` of transformers or PEFT has written: classifiers of texts, words or images."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from .._core.files import check_source
from .._core.seen_mask import ordered_class_names
from .._models.fold import FOLDED
from .._models.fold import is_folded as is_recorded
from .._models.heads import find_head
from .._models.restore import RESTORED
from ._saved_model import (
    IGNORED,
    biases_in,
    check_weights,
    copy_others,
    copy_weights,
    explain_load_errors,
    is_without_gamma,
    open_images,
    read_json,
    tensors_of,
    write_card,
    write_record,
)

_TASKS = {
    "SequenceClassification": "text-classification",
    "TokenClassification": "token-classification",
    "ImageClassification": "image-classification",
}
_KINDS = {"text-classification": "texts", "token-classification": "words", "image-classification": "images"}
_OF_TEXTS = ("tokenizer.json", "tokenizer_config.json", "vocab.*", "*.model")
_READER_FILES: dict[str, tuple[str, ...]] = {
    "texts": _OF_TEXTS,
    "words": _OF_TEXTS,
    "images": ("preprocessor_config.json", "processor_config.json"),
}
"""Files of a tokenizer or image processor."""
_CONFIGS = ("config.json", "tokenizer_config.json", "preprocessor_config.json", "processor_config.json")
_CONFIG, _ADAPTER, _CARD = "config.json", "adapter_config.json", "README.md"
_WEIGHTS, _INDEX, _ADAPTER_WEIGHTS = "model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors"
_ADAPTER_FILES = (_ADAPTER, _ADAPTER_WEIGHTS)
_UNLIMITED = 1_000_000
"""Tokenizers without a limit of length have one of 1e30."""


class SavedTransformer:
    """A classifier of transformers, or one with an adapter of PEFT, which is merged.

    Parameters
    ----------
    base : str, optional
        Base model of an adapter: a directory, or a name on the Hub. Default: the one that the adapter names.
    max_length : int, optional
        Most tokens of a text. Default: the limit of the tokenizer, or else of the model.
    is_folded : bool, default False
        Whether to accept gamma in the head.

    Raises
    ------
    ValueError, OSError
        If `path` is no such directory, lacks weights in safetensors, or has code of its own that is not trusted.
    ImportError
        If an adapter needs PEFT, which is not installed.
    """

    def __init__(
        self,
        path: Path,
        base: str | None = None,
        *,
        device: torch.device,
        max_length: int | None = None,
        trust_remote_code: bool = False,
        is_folded: bool = False,
    ) -> None:
        self.path, self._device, self._max_length, self._trusts = path, device, max_length, trust_remote_code
        self._is_adapter = (path / _ADAPTER).is_file()
        source = _base_of(path, base) if self._is_adapter else path
        if self._is_adapter and not trust_remote_code:
            _refuse_code_in(path)
        if base is not None and not self._is_adapter:
            raise ValueError(f"--base {base} is for adapters, and {path} is a whole model; leave it out")
        with _silence_libraries():
            config = _config_of(source, trust_remote_code, is_folded)
            self._task = _task_of(config, source)
            self.kind = _KINDS[self._task]
            self._reader_files = () if _is_of_timm(config) else _READER_FILES[self.kind]
            if self.kind == "images" and max_length is not None:
                raise ValueError(f"--max-length is about texts, and {path} takes images; leave it out")
            self.class_names: tuple[str, ...] | None = ordered_class_names(config.id2label)
            model = self._model(source, config)
            rows = self._rows_of_adapter(model) if self._is_adapter else config.num_labels
            if rows != config.num_labels:
                config.num_labels = rows
                model = self._model(source, config, ignore_mismatched_sizes=True)
                self.class_names = ordered_class_names(config.id2label)
            self.model: nn.Module = (self._merge_adapter(model) if self._is_adapter else model).to(device).eval()
            self._read_with: Any = self._reader(source)

    def inputs(self, items: Sequence[Any]) -> Any:
        """Return texts, sentences as lists of words, or image files as the input of the model."""
        if self.kind == "images":
            from PIL import ImageOps

            images = open_images(items, lambda image: ImageOps.exif_transpose(image).convert("RGB"))
            return {"pixel_values": self._read_with(images, return_tensors="pt")["pixel_values"]}
        return dict(self._encoded(items))

    def _encoded(self, items: Sequence[Any]) -> Any:
        settings = {"is_split_into_words": True} if self.kind == "words" else {}
        return self._read_with(
            list(items),
            truncation=True,
            max_length=self._longest(),
            padding=len(items) > 1,
            return_tensors="pt",
            **settings,
        )

    def at_tokens(self, sentences: Sequence[Any], labels: Sequence[Tensor]) -> Tensor:
        """Return the labels of words at the tokens of `inputs`: at the first of each word; -100 at the others."""
        encoded = self._encoded(sentences)
        placed = torch.full(encoded["input_ids"].shape, IGNORED)
        for row, own in enumerate(labels):
            words = [None, *encoded.word_ids(row)]
            first = [i for i, pair in enumerate(pairwise(words)) if pair[1] not in (None, pair[0])]
            placed[row, first] = own[[words[i + 1] for i in first]]
        return placed

    def write(self, target: Path, added: Tensor, record: Mapping[str, Any], card: str) -> Sequence[str]:
        """Write the directory again with `added` in the bias of the head; for an adapter, the merged model."""
        if self._is_adapter:
            left_out = self._write_whole(target, _ADAPTER_FILES)
        else:
            biases = biases_in(self.model, _weights_in(self.path))
            written = [_CONFIG, _CARD, *(file.name for file in biases)]
            left_out = copy_others(self.path, target, written, is_without_gamma)
            for file, names in biases.items():
                copy_weights(file, target / file.name, names, added)
            write_record(self.path / _CONFIG, target / _CONFIG, FOLDED, record)
        self._write_card(target, card)
        return left_out

    def write_restored(self, target: Path, class_names: Sequence[str], card: str) -> Sequence[str]:
        """Write the model as it is in memory, with the other files of the directory."""
        config: Any = self.model.config
        config.id2label = dict(enumerate(class_names))
        config.label2id = {name: index for index, name in enumerate(class_names)}
        weights = () if self._is_adapter else (_CONFIG, _INDEX, *(file.name for file in _weights_in(self.path)))
        left_out = self._write_whole(target, weights or _ADAPTER_FILES)
        self._write_card(target, card)
        return left_out

    def _write_whole(self, target: Path, replaced: Sequence[str]) -> list[str]:
        left_out = copy_others(self.path, target, (*replaced, _CARD), is_without_gamma)
        with _silence_libraries():
            self.model.save_pretrained(target)  # type: ignore[operator]
            if not self._has_reader(self.path):
                self._read_with.save_pretrained(target)
        return left_out

    def _write_card(self, target: Path, card: str) -> None:
        readme = self.path / _CARD
        old = readme.read_bytes() if readme.is_file() else None
        if old is not None and self._is_adapter:
            old = re.sub(rb"\A(---\n(?:.*\n)*?library_name: )peft$", rb"\1transformers", old, flags=re.MULTILINE)
        write_card(target, old, self.path.resolve().name, card)

    def model_again(self, target: Path) -> nn.Module:
        """Load the copy with its tokenizer or image processor, as its user will."""
        return SavedTransformer(target, device=self._device, trust_remote_code=self._trusts, is_folded=True).model

    def usage(self, target: Path) -> str:
        """Return a line of Python that loads the copy."""
        options = ", trust_remote_code=True" if self._trusts else ""
        if self._max_length is not None:  # A pipeline cuts nothing by itself.
            options += f", truncation=True, max_length={self._max_length}"
        return f'transformers.pipeline("{self._task}", model="{target}"{options})'

    def _rows_of_adapter(self, base: Any) -> int:
        """Return the number of rows of the head that an adapter has of its own, else of the base model's."""
        head = find_head(base)
        names = tensors_of(self.path / _ADAPTER_WEIGHTS)
        wanted = [name for name in names if name.endswith(f"{head.names[0]}.weight")]
        own = tensors_of(self.path / _ADAPTER_WEIGHTS, wanted)
        rows = [len(weight) for weight in own.values() if weight is not None]
        return rows[0] if rows else int(base.config.num_labels)

    def _model(self, source: str | Path, config: Any, **options: Any) -> Any:
        kind = next(name for name, task in _TASKS.items() if task == self._task)
        auto = getattr(transformers, f"AutoModelFor{kind}")
        with explain_load_errors(source, "the model"):
            model, info = auto.from_pretrained(
                source,
                config=config,
                use_safetensors=True,
                output_loading_info=True,
                trust_remote_code=self._trusts,
                local_files_only=isinstance(source, Path),
                **_AS_SAVED,
                **options,
            )
        missing = sorted(info["missing_keys"])
        if missing and not self._is_adapter:
            raise ValueError(
                f"{source}: the weights lack {missing[0]} ({len(missing)} in all), which would be drawn at random; "
                "save the model again after its training"
            )
        self._missing = missing
        return model

    def _merge_adapter(self, base: Any) -> Any:
        """Return the base model with the adapter merged into it."""
        try:
            import peft
        except ImportError as error:
            raise ImportError(f"{self.path} is an adapter, which needs PEFT ({error}): pip install peft") from error
        with explain_load_errors(self.path, "the adapter"):
            model = peft.PeftModel.from_pretrained(base, str(self.path))
        trained = set(getattr(model.peft_config["default"], "modules_to_save", None) or ())
        new = [name for name in self._missing if not trained.intersection(name.split("."))]
        if new:
            raise ValueError(
                f"{self.path}: neither the adapter nor its base model has {new[0]}, which would be drawn at random; "
                "give the model that was fine-tuned as --base"
            )
        if not hasattr(model, "merge_and_unload"):
            kind = model.peft_config["default"].peft_type
            raise ValueError(
                f"{self.path}: an adapter of type {kind} cannot be merged into the weights; keep gamma beside it: see "
                "finecal.calibrate_model"
            )
        if is_recorded(model):
            _refuse_folded(self.path)
        return model.merge_and_unload()

    def _reader(self, source: str | Path) -> Any:
        """Return the tokenizer, or the image processor; an adapter may leave it to its base model."""
        where = self.path if not self._is_adapter or self._has_reader(self.path) else source
        auto, what = (
            (transformers.AutoImageProcessor, "image processor")
            if self.kind == "images"
            else (transformers.AutoTokenizer, "tokenizer")
        )
        # Without these files, transformers may use defaults. timm needs none: its config.json is enough.
        if isinstance(where, Path) and self._reader_files and not self._has_reader(where):
            raise FileNotFoundError(
                f"{where} has no {what}; save the one of the training there: save_pretrained({str(where)!r})"
            )
        with explain_load_errors(where, f"the {what}"):
            reader = auto.from_pretrained(
                where, trust_remote_code=self._trusts, local_files_only=isinstance(where, Path)
            )
        if self.kind == "words" and not reader.is_fast:
            raise ValueError(
                f"{where} has a tokenizer in Python, which does not say which word a token is of; calibrate the model "
                "from Python: finecal.calibrate_model"
            )
        return reader

    def _has_reader(self, folder: Path) -> bool:
        return any(next(folder.glob(name), None) for name in self._reader_files)

    def _longest(self) -> int:
        """Return the most tokens of a text."""
        if self._max_length is not None:
            return self._max_length
        limit: int = self._read_with.model_max_length
        if limit < _UNLIMITED:
            return limit
        positions = getattr(self.model.config, "max_position_embeddings", None)
        return _UNLIMITED if positions is None else int(positions) - 2  # RoBERTa counts positions from 2


def _refuse_folded(path: object) -> None:
    raise ValueError(
        f"{path} has gamma in its head already, as its configuration records; use it as it is, or start from the "
        "directory that it was made from"
    )


def _base_of(path: Path, base: str | None) -> str | Path:
    """Return the directory of an adapter's base model, or its name on the Hub."""
    check_weights(path, [_ADAPTER_WEIGHTS], "adapter_model.bin")
    name = read_json(path / _ADAPTER).get("base_model_name_or_path") if base is None else base
    if not isinstance(name, str) or not name:
        raise ValueError(f"{path / _ADAPTER} does not say which model the adapter is for; give its directory as --base")
    if Path(name).is_dir():
        return Path(name)
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise FileNotFoundError(
            f"{path} is an adapter of {name}, which is no directory here; give that of its base model as --base"
        )
    return name


def _config_of(source: str | Path, trusts: bool, is_folded: bool) -> Any:
    """Return the configuration of a model, after checking that its weights exist; runs none of its code."""
    if isinstance(source, Path):
        if not (source / _CONFIG).is_file():
            raise FileNotFoundError(f"{source} has no {_CONFIG}; give a directory that save_pretrained has written")
        check_weights(source, [_WEIGHTS, _INDEX], "pytorch_model.bin")
        if not trusts:
            _refuse_code_in(source)
        entries = read_json(source / _CONFIG)
        if not is_folded and (entries.get(FOLDED) or entries.get(RESTORED)):
            _refuse_folded(source)
    try:
        config = transformers.AutoConfig.from_pretrained(
            source, trust_remote_code=trusts, local_files_only=isinstance(source, Path)
        )
    except OSError as error:
        if isinstance(source, Path):
            raise
        raise FileNotFoundError(
            f"the base model {source} is no directory, and cannot be had from the Hub now; download it, or give its "
            "directory as --base"
        ) from error
    except (ValueError, KeyError) as error:
        raise ValueError(f"{source}: the model cannot be loaded ({error})") from error
    if not trusts:
        _refuse_code(source, config.to_dict())
    return config


def _refuse_code_in(folder: Path) -> None:
    """Refuse a directory whose configurations name code of their own to run."""
    for name in _CONFIGS:
        if (folder / name).is_file():
            _refuse_code(folder, read_json(folder / name))


def _refuse_code(source: object, entries: Mapping[str, Any]) -> None:
    """Refuse code of the model's own, and kernels that would be downloaded."""
    if entries.get("auto_map"):
        raise ValueError(
            f"{source} comes with code of its own ({', '.join(map(str, entries['auto_map'].values()))}), and none was "
            "run; read it, and say --trust-remote-code if it may run"
        )
    for key in ("attn_implementation", "_attn_implementation"):
        if "/" in str(entries.get(key, "")):
            raise ValueError(
                f"{source} asks for the kernel {entries[key]} of the Hub, which is code, and none was run; say "
                "--trust-remote-code if it may run"
            )


def _task_of(config: Any, source: object) -> str:
    """Return the task of the model's pipeline."""
    if _is_of_timm(config):
        return "image-classification"
    names = [*(config.architectures or ()), *(getattr(config, "auto_map", None) or ())]
    tasks = {task for name in names for part, task in _TASKS.items() if f"For{part}" in name}
    if len(tasks) != 1:
        what = " and ".join(names) or "a model of no name"
        raise ValueError(
            f"{source} holds {what}, which is no classifier of texts, words or images with a head (a ...For"
            f"{' or ...For'.join(_TASKS)}); calibrate it from Python: finecal.calibrate_model"
        )
    if config.num_labels < 2 or config.problem_type not in (None, "single_label_classification"):
        raise ValueError(
            f"{source} is for {config.problem_type or 'regression'}; gamma is for classifiers that give each sample "
            "one of several classes"
        )
    return tasks.pop()


def _is_of_timm(config: Any) -> bool:
    """Whether timm has saved the model; its configuration then describes the preprocessing of images."""
    return getattr(config, "pretrained_cfg", None) is not None


def _weights_in(folder: Path) -> list[Path]:
    if (folder / _WEIGHTS).is_file():
        return [folder / _WEIGHTS]
    names = sorted(set(read_json(folder / _INDEX)["weight_map"].values()))
    for name in names:
        if Path(name).name != name:
            raise ValueError(f"{folder / _INDEX} names {name!r}, which is no file of this directory")
        check_source(folder / name)
    return [folder / name for name in names]


@contextmanager
def _silence_libraries() -> Iterator[None]:
    """Silence logs, progress bars and FutureWarnings of transformers and PEFT."""
    logging = transformers.utils.logging
    verbosity, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logging.set_verbosity(verbosity)
        if has_bars:
            logging.enable_progress_bar()


_AS_SAVED = {"dtype" if tuple(map(int, transformers.__version__.split(".")[:2])) >= (4, 56) else "torch_dtype": "auto"}
"""Option that keeps the dtype of the weights; its name depends on the version."""
