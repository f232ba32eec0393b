"""The model `mav` of lm-eval: its own `HFLM`, every pass of which a head steers.

Shape legend: B sequences, S positions, V vocabulary.
"""

import copy
import inspect
import logging
import math
from collections.abc import Sequence
from typing import Any, Final

import torch
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from torch import Tensor

from mav.cache_schema.errors import UsageError
from mav.pipeline.decoding.inference import MAVInference

_OF_PASSES: Final = (
    "add_bos_token",
    "batch_size",
    "chat_template_args",
    "enable_thinking",
    "logits_cache",
    "max_batch_size",
    "max_length",
    "mixed_precision_dtype",
    "prefix_token_id",
    "softmax_dtype",
    "think_end_token",
    "truncation",
)
"""Arguments of `HFLM` that matter for a model that is loaded already; it ignores the others."""

_UNASKED: Final = "cuda:0"
"""What lm-eval's command line gives as the device where the user gives none."""


@register_model("mav")
class SteeredLM(HFLM):  # type: ignore[misc]
    """A base with a head, as lm-eval takes models: log-likelihoods, rolling ones and generation.

    At alpha 0 every result is `HFLM`'s on the base alone, bit by bit, as the head is not computed.
    Prompts are those of the tasks; the form of prompts that the head was trained in is not used.

    Attributes:
        alpha: Strength of the passes that follow.

    Example:
        python -m mav.pipeline.harness --model mav --model_args head=runs/head,alpha=1 --tasks blimp
    """

    def __init__(
        self,
        head: str | MAVInference | None = None,
        alpha: float = 1.0,
        base_model: str | None = None,
        device: str | None = None,
        **options: Any,
    ) -> None:
        """Load base and head.

        Args:
            head: Folder of a head or of a training run, or a hub id; or both loaded already.
            alpha: Strength; no schedule, as log-likelihoods count no tokens of an answer.
            base_model: Hub id, folder or `.gguf` file; the base the head was trained on if None.
            device: `auto` if None, or a torch device; `cuda:0` is `auto` where there is no CUDA.
            **options: Further arguments of `MAVInference`, such as `dtype` and `quantize`, and
                those of `HFLM` that concern passes rather than loading, such as `batch_size` and
                `max_length`.

        Raises:
            MAVError: Base or head cannot be loaded, or they do not belong together.
            UsageError: There is no head, an argument is unknown, or alpha is not a number.
        """
        if head is None:  # as it is where lm-eval's command line is given none
            raise UsageError("model_args: got no head, expected head=DIR, or a hub id")
        passes = {name: options.pop(name) for name in _OF_PASSES if name in options}
        loading = [*inspect.signature(MAVInference).parameters][2:]
        if unknown := sorted({*options} - {*loading}):
            raise UsageError(
                f"model_args: got {', '.join(unknown)}, expected head, alpha, base_model or one of "
                f"{', '.join(sorted({*loading, *_OF_PASSES}))}"
            )
        known = isinstance(alpha, int | float) and not isinstance(alpha, bool)
        if not known or not math.isfinite(alpha):
            raise UsageError(f"alpha: got {alpha!r}, expected a finite number")
        if isinstance(head, MAVInference):
            self._mav = head
        else:
            if device == _UNASKED and not torch.cuda.is_available():
                device = None
            self._mav = MAVInference(head, base_model, device=device or "auto", **options)
        self.alpha = float(alpha)
        base = self._mav.base
        # A copy, as lm-eval gives its tokenizer a padding token.
        super().__init__(pretrained=base.model, tokenizer=copy.deepcopy(base.tokenizer), **passes)

    def loglikelihood(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Return each continuation's log-probability and whether it is the most probable one."""
        logprobs: list[tuple[float, bool]] = super().loglikelihood(
            requests, disable_tqdm or _quiet()
        )
        return logprobs

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """Return the log-probability of each text as a whole."""
        logprobs: list[float] = super().loglikelihood_rolling(requests, disable_tqdm or _quiet())
        return logprobs

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Return a response to each prompt."""
        responses: list[str] = super().generate_until(requests, disable_tqdm or _quiet())
        return responses

    def _model_call(self, inps: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return logits [B, S, V] for tokens [B, S]."""
        with self._mav.steering(self.alpha):
            logits: Tensor = super()._model_call(inps, *args, **kwargs)
        return logits

    def _model_generate(self, *args: Any, **kwargs: Any) -> Tensor:
        with self._mav.steering(self.alpha):
            tokens: Tensor = super()._model_generate(*args, **kwargs)
        return tokens


def _quiet() -> bool:
    """Whether progress is hidden; see `runtime.progress`."""
    return logging.getLogger("mav").level > logging.INFO
