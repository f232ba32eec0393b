"""Wrong arguments are errors that name the right one, by what other libraries call it."""

import dataclasses
import difflib
import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, Final, ParamSpec, Self, TypeVar

from mav.cache_schema.errors import UsageError

P = ParamSpec("P")
T = TypeVar("T")

_CALLED_OTHERWISE: Final = {
    "do_sample": "temperature",
    "temp": "temperature",
    "max_tokens": "max_new_tokens",
    "max_gen_len": "max_new_tokens",
    "stop_strings": "stop",
    "stop_sequences": "stop",
    "stopping_criteria": "stop",
    "beams": "num_beams",
    "random_seed": "seed",
    "use_cache": "cache_implementation",
    "generation_config": "decoding",
    "torch_dtype": "dtype",
    "load_in_4bit": "quantize",
    "load_in_8bit": "quantize",
    "quantization_config": "quantize",
    "strength": "alpha",
    "scale": "alpha",
    "coefficient": "alpha",
    "processing_class": "tokenizer",
    "model": "base_model",
    "model_name_or_path": "base_model",
    "pretrained_model_name_or_path": "base_model",
    "dataset": "data",
    "train_dataset": "data",
    "eval_dataset": "eval_cache",
    "max_seq_length": "max_length",
    "lr": "learning_rate",
    "num_train_epochs": "num_epochs",
    "epochs": "num_epochs",
    "per_device_train_batch_size": "batch_size",
    "gradient_accumulation_steps": "grad_accum",
    "save_steps": "eval_steps",
    "optim": "optimizer",
    "loss_type": "objective",
    "logging_dir": "output_dir",
    "early_stopping_patience": "early_stopping",
    "column_mapping": "columns",
    "map_fn": "transform",
    "repo_id": "repository",
}
"""What transformers, TRL, vLLM or OpenAI call an argument -> its name here."""
_HINTS: Final = {
    "do_sample": "0 takes the most probable token, more samples",
    "num_return_sequences": "give the prompt several times to `generate_batch`",
    "num_samples": "give the prompt several times to `generate_batch`",
    "load_in_4bit": "as in quantize='nf4'",
    "load_in_8bit": "as in quantize='int8'",
    "trust_remote_code": "no code of a checkpoint is ever run",
    "use_cache": "'none' keeps no past",
    "attn_implementation": "load the model yourself and give it with its tokenizer",
}


def wrong_argument(name: str, expected: Iterable[str], subject: str) -> UsageError:
    """Return the error for an argument that there is not, naming the one that was meant.

    Args:
        name: The argument.
        expected: Those there are.
        subject: What takes them.
    """
    known = sorted({*expected} - {"self"})
    right = _CALLED_OTHERWISE.get(name)
    if right not in known:
        right = next(iter(difflib.get_close_matches(name, known, 1)), None)
    hint = _HINTS.get(name)
    if right is not None:
        remedy = f"use `{right}`" + (f" ({hint})" if hint else "")
    else:
        remedy = hint or f"expected one of {', '.join(known)}"
    return UsageError(f"{name}: not an argument of {subject}; {remedy}")


class NamedArguments:
    """A dataclass of options that tells of a wrong argument by a `UsageError`."""

    def __new__(cls, *unnamed: Any, **given: Any) -> Self:
        """Check the names; the dataclass itself takes the values."""
        names = [field.name for field in dataclasses.fields(cls) if field.init]  # type: ignore[arg-type]
        if unnamed:
            raise UsageError(
                f"{cls.__name__}: got {unnamed[0]!r} without a name, expected arguments by name: "
                f"{', '.join(names)}"
            )
        for name in given:
            if name not in names:
                raise wrong_argument(name, names, cls.__name__)
        return super().__new__(cls)


def tells_of_wrong_arguments(function: Callable[P, T]) -> Callable[P, T]:
    """Make a function raise a `UsageError` for arguments it does not take, instead of TypeError."""
    signature = inspect.signature(function)
    open_ended = any(
        each.kind is inspect.Parameter.VAR_KEYWORD for each in signature.parameters.values()
    )
    subject = function.__qualname__.removesuffix(".__init__").rpartition(".")[2]

    @functools.wraps(function)
    def checked(*args: P.args, **given: P.kwargs) -> T:
        for name in () if open_ended else given:
            if name not in signature.parameters:
                raise wrong_argument(name, signature.parameters, subject)
        try:
            signature.bind(*args, **given)
        except TypeError as error:
            raise UsageError(f"{subject}: {error}; it takes {signature}") from None
        return function(*args, **given)

    return checked


def require_one(given: object, name: str, instead: str) -> None:
    """Refuse several prompts where one is taken; a list of messages is one.

    Args:
        given: What was given.
        name: The argument.
        instead: What takes several.

    Raises:
        UsageError: It is a list of texts, or of lists.
    """
    if isinstance(given, list | tuple) and any(isinstance(each, str | list) for each in given):
        raise UsageError(f"{name}: got a list of {len(given)}, expected one; {instead}")
