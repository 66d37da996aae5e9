"""Causal language models as classifiers: a prompt whose answer is one of K label tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from .._core.arrays import check_count, check_finite, check_flag
from .._core.checks import check_index_dtype, labels_as_tensor
from .._core.samples import Samples
from .._models.collect import collect_logits
from .._models.fold_check import shift_by
from .._models.output import logits_of


def label_token_ids(tokenizer: Any, choices: Sequence[str], *, prompt: str = "") -> tuple[int, ...]:
    """Return the token that each choice is behind a prompt.

    Parameters
    ----------
    tokenizer : callable
        Gives ``{"input_ids": ...}`` for a text, or a list of them for a list of texts, as Hugging Face's tokenizers do.
    choices : sequence of str
        The answers, each as it follows the prompt: most tokenizers need a space before it, as in " yes".
    prompt : str, default ""
        A prompt as the model gets it.

    Returns
    -------
    tuple of int
        For `logit_bias`, in the order of the choices.

    Raises
    ------
    TypeError
        If an argument is of another type.
    ValueError
        If a choice is not exactly one token behind the prompt, or two are the same one.

    Examples
    --------
    >>> def tokenizer(text):
    ...     return {"input_ids": [ord(letter) for letter in text]}
    >>> label_token_ids(tokenizer, ["A", "B"], prompt="Answer: ")
    (65, 66)
    """
    texts = _texts(choices, "choices")
    if not isinstance(prompt, str):
        raise TypeError(f"prompt is a {type(prompt).__name__}; pass the text of a prompt")
    before = list(_tokens(tokenizer, prompt))
    found = []
    for text in texts:
        tokens = list(_tokens(tokenizer, prompt + text))
        if not text or tokens[:-1] != before:
            raise ValueError(
                f"choices have {text!r}, which is not one token behind the prompt: its tokens are {tokens[-6:]} at the "
                f"end, in place of {before[-5:]} and one more; a space before it, {' ' + text.strip()!r}, or at the "
                "end of the prompt may be missing or too many, or take words that are one token, such as letters"
            )
        found.append(int(tokens[-1]))
    if len(set(found)) < len(found):
        raise ValueError(f"choices {texts} have the tokens {found}, of which two are the same; take other words")
    return tuple(found)


def label_token_samples(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[str],
    answers: Sequence[str] | None = None,
    *,
    choices: Sequence[str],
    batch_size: int = 16,
    progress: bool = True,
) -> Samples:
    """Score prompts whose answer is one of K tokens: the logits of these tokens behind each prompt.

    Parameters
    ----------
    model : nn.Module
        A causal language model, which takes `input_ids` and returns logits `(B, L, V)`, as those of Hugging Face do.
    tokenizer : callable
        As in `label_token_ids`.
    prompts : sequence of N str
        As the model is to get them, a chat template applied.
    answers : sequence of N str, optional
        The right choice of each prompt. Default: unlabelled samples.
    choices : sequence of K str
        As in `label_token_ids`: the classes, in this order.
    batch_size : int, default 16
        Most prompts in a batch. Those of a batch have the same number of tokens, so nothing is padded.
    progress : bool, default True
        Whether to show a bar, if tqdm is installed.

    Returns
    -------
    Samples
        `(N, K)` logits on the CPU, in the order of the prompts, and labels if there are answers.

    Raises
    ------
    TypeError, ValueError
        As `label_token_ids` and `collect_logits`; ValueError if there are no prompts, the answers are not as many or
        not among the choices, or a choice is not a token of its own behind every prompt.

    See Also
    --------
    logit_bias : puts gamma into a server of language models.

    Examples
    --------
    >>> import torch
    >>> def tokenizer(texts):
    ...     ids = [[ord(letter) for letter in text] for text in texts]
    ...     return {"input_ids": ids if isinstance(texts, list) else sum(ids, [])}
    >>> model = torch.nn.Sequential(torch.nn.Embedding(128, 8), torch.nn.Linear(8, 128))
    >>> model.forward = lambda input_ids: model[1](model[0](input_ids))
    >>> label_token_samples(
    ...     model, tokenizer, ["1+1=", "2+1="], ["2", "3"], choices=["2", "3"]
    ... )
    Samples(2 x 2 logits, labels)
    """
    texts, names = _texts(prompts, "prompts"), _texts(choices, "choices")
    size = check_count(batch_size, "batch_size")
    if size == 0:
        raise ValueError("batch_size is 0; pass how many prompts may be in a batch")
    check_flag(progress, "progress")
    token_ids = label_token_ids(tokenizer, names, prompt=texts[0])
    rows = [list(row) for row in _tokens(tokenizer, texts)]
    if empty := [text for text, row in zip(texts, rows, strict=True) if not row]:
        raise ValueError(
            f"prompts have {empty[0]!r}, of which the tokenizer makes no token; the model needs one at least"
        )
    longer = _tokens(tokenizer, [text + names[0] for text in texts])
    for text, row, with_choice in zip(texts, rows, longer, strict=True):
        if list(with_choice) != [*row, token_ids[0]]:
            raise ValueError(
                f"choices have {names[0]!r}, which is the token {token_ids[0]} behind the first of prompts, but other "
                f"tokens behind {text[-20:]!r}; let all prompts end alike"
            )
    labels = None if answers is None else _labels(answers, names, len(texts))
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))

    def batches() -> Iterator[tuple[dict[str, Any], Tensor | None]]:
        last = {"logits_to_keep": 1} if "logits_to_keep" in signature(model.forward).parameters else {}
        for some in _of_one_length(order, rows, size):
            inputs = {"input_ids": torch.tensor([rows[index] for index in some]), **last}
            yield inputs, None if labels is None else labels[some]

    chosen = torch.tensor(token_ids)
    samples = collect_logits(
        model, batches(), batch=lambda pair: pair, output=partial(_last_logits, chosen=chosen), progress=progress
    )
    return samples[torch.tensor(order).argsort()]


def logit_bias(calibrator: nn.Module, token_ids: Sequence[int], *, offset: float = 0.0) -> dict[int, float]:
    r"""Return what a server of language models has to add to the logits of tokens, for calibrated answers.

    .. math:: b_{t_c} = \gamma \, [c \in U] + \mathrm{offset}

    Parameters
    ----------
    calibrator : AdditiveBias, ClassBias, or an nn.Sequential of these
        Of the K classes.
    token_ids : sequence of K int
        The token of each class, as `label_token_ids` finds them; ``range(V)`` if all tokens are classes.
    offset : float, default 0
        Added to all K, so that no other token is chosen: 50, for example.

    Returns
    -------
    dict of int to float
        By token, without those to which 0 is added. vLLM (``SamplingParams(logit_bias=)``) and OpenAI-compatible
        servers take it; for Hugging Face's ``generate(sequence_bias=)`` and `generation_config` make it ``[[[token],
        bias] for token, bias in biases.items()]``.

    Raises
    ------
    TypeError, ValueError
        If the calibrator does more than add to the logits, or is for another number of classes; if tokens are negative
        or repeated, or `offset` is not finite.

    Notes
    -----
    Servers add it at every step: ask for one token. OpenAI's interface takes biases in [-100, 100] only.

    Examples
    --------
    >>> import finecal
    >>> finecal.sequences.logit_bias(
    ...     finecal.AdditiveBias([True, False], gamma=1.5), [317, 347]
    ... )
    {347: 1.5}
    """
    ids = labels_as_tensor(list(token_ids) if isinstance(token_ids, range) else token_ids, "token_ids")
    if ids.ndim != 1 or len(ids) == 0:
        raise ValueError(f"token_ids have shape {tuple(ids.shape)}; expected one token for each class")
    tokens = check_index_dtype(ids, "token_ids").tolist()
    if min(tokens) < 0 or len(set(tokens)) < len(tokens):
        raise ValueError("token_ids are negative or repeated; expected one token for each class")
    added = check_finite(offset, "offset")
    biases = shift_by(calibrator, len(tokens)).double() + added
    if len(biases) != len(tokens):
        raise ValueError(f"token_ids are {len(tokens)}, but calibrator is for {len(biases)} classes; give one for each")
    return {token: bias for token, bias in zip(tokens, biases.tolist(), strict=True) if bias}


def _tokens(tokenizer: Any, texts: str | list[str]) -> Any:
    """Return the tokens of a text, or of each of several."""
    try:
        return tokenizer(texts)["input_ids"]
    except Exception as error:  # the user's tokenizer may raise any
        raise TypeError(
            f"tokenizer is of type {type(tokenizer).__name__}, and tokenizer({texts!r:.40})['input_ids'] fails "
            f"({type(error).__name__}: {error})"
        ) from error


def _texts(given: object, name: str) -> list[str]:
    """Return a non-empty sequence of texts as a list."""
    if isinstance(given, (str, bytes)) or not isinstance(given, Sequence) or not all(isinstance(x, str) for x in given):
        raise TypeError(f"{name} is a {type(given).__name__}; pass a list of texts")
    if not given:
        raise ValueError(f"{name} is empty; pass at least one text")
    return list(given)


def _labels(answers: object, names: list[str], prompts: int) -> Tensor:
    """Return the class of each answer."""
    texts = _texts(answers, "answers")
    if len(texts) != prompts:
        raise ValueError(f"answers are {len(texts)} for {prompts} prompts; give one for each")
    unknown = sorted(set(texts) - set(names))
    if unknown:
        raise ValueError(f"answers have {unknown[:5]}, which are none of the choices {names[:5]}, spaces included")
    return torch.tensor([names.index(text) for text in texts])


def _of_one_length(order: list[int], rows: list[list[int]], size: int) -> Iterator[list[int]]:
    """Yield batches of at most `size` indices of rows of the same length, in the given order."""
    some: list[int] = []
    for index in order:
        if some and (len(some) == size or len(rows[index]) != len(rows[some[0]])):
            yield some
            some = []
        some.append(index)
    yield some


def _last_logits(output: object, chosen: Tensor) -> Tensor:
    """Return the logits of some tokens at the last position."""
    logits = logits_of(output)
    return logits[:, -1, chosen.to(logits.device)]
