"""Online decoding: a frozen base and heads together, alpha chosen at each call."""

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from mav.cache_schema.errors import UsageError
from mav.pipeline.base.given.wrap import GivenBase, loaded_base
from mav.pipeline.base.model import BaseModel
from mav.pipeline.base.source import resolve_base
from mav.pipeline.decoding.aligned_lm import AlignedLM
from mav.pipeline.decoding.attach import AttachedModel
from mav.pipeline.decoding.exclusive_use import ExclusiveUse
from mav.pipeline.decoding.options import (
    AttachOptions,
    Heads,
    InferenceOptions,
)
from mav.pipeline.decoding.responder import Responder
from mav.pipeline.decoding.steering.strengths import (
    Alpha,
    constant_strengths,
)
from mav.pipeline.decoding.steering.weighted_heads import Limits
from mav.pipeline.decoding.switching import SwitchableModel, described
from mav.pipeline.decoding.trained_head import new_head
from mav.pipeline.head.model import AlignmentHead
from mav.pipeline.runtime.argument_names import (
    tells_of_wrong_arguments,
)
from mav.pipeline.runtime.choices import PromptFormatName, Quantize
from mav.pipeline.runtime.compute_dtype import AUTO, Dtype
from mav.pipeline.runtime.load_options import DeviceMap, LoadOptions


class MAVInference(Responder):
    """A head and a base to decode with, or several heads by name.

    Example:
        mav = MAVInference("runs/head", "meta-llama/Llama-2-7b-hf")
        print(mav.generate_response("How do I say no politely?", alpha=1.0))

        both = MAVInference({"helpful": "runs/a", "harmless": "runs/b"})
        print(both.generate_response("Hello", alpha={"helpful": 1.0, "harmless": 0.5}))
    """

    @tells_of_wrong_arguments
    def __init__(
        self,
        head: Heads,
        base: GivenBase | None = None,
        tokenizer: Any = None,
        *,
        gguf_file: str | None = None,
        revision: str | None = None,
        dtype: Dtype = AUTO,
        device: str = "auto",
        device_map: DeviceMap | None = None,
        quantize: Quantize | None = None,
        prompt_form: PromptFormatName = "auto",
        template_date: str | None = None,
        allow_tokenizer_mismatch: bool = False,
        int8_head: bool = False,
        base_generation_config: bool = False,
        gguf_cache: bool = True,
        merge_adapter: bool = False,
    ) -> None:
        """Load heads and base, and check that they belong together.

        A model that is loaded already is left as it was: its mode and configuration are changed
        only during calls, its weights and what requires gradients never, and `close()`, or leaving
        the context, removes the hooks.

        Args:
            head: Folder of a head or of a training run, a hub id, or an `AlignmentHead`; or several
                by name. Several add up, z_base + sum_i alpha_i a_i, and each call names an alpha
                for each.
            base: Hub id, folder or `.gguf` file, an adapter's too; or a loaded transformers model,
                PEFT's around one, or a `BaseModel`. The one the head was trained on if None.
            tokenizer: The tokenizer of a loaded model; that of the files it names if None.
            gguf_file: File inside the base's folder or repository.
            revision: Branch, tag or commit of a hub repository.
            dtype: Element type of both, unless the base is loaded already: a name, torch's type, or
                `auto` for what the device multiplies natively.
            device: `auto` or a torch device, likewise.
            device_map: How the base is spread over several devices; see `LoadOptions`.
            quantize: How its weights are quantized when it is loaded.
            prompt_form: `hh`, `chat` (the base's chat template), or `auto`, which is what the
                head was trained in.
            template_date: Date given to a chat template that asks for it, as YYYY-MM-DD or
                `today`; if None, that of the head's training data, else today.
            allow_tokenizer_mismatch: Accept a base with another tokenizer of the same size.
            int8_head: Keep the head's weights in a byte each; needs torchao.
            base_generation_config: Decode as the base's generation_config says, where nothing
                else is asked for; else only the tokens that end responses are taken from it.
            gguf_cache: Keep GGUF weights as safetensors in the cache folder, and use them.
            merge_adapter: Merge an adapter into its base; see `LoadOptions`.

        Raises:
            MAVError: One cannot be loaded, or they do not belong together.
        """
        self._begin(
            SwitchableModel.load(
                head,
                _loaded_or_named(base, tokenizer),
                InferenceOptions(
                    gguf_file=gguf_file,
                    revision=revision,
                    dtype=dtype,
                    device=device,
                    device_map=device_map,
                    quantize=quantize,
                    prompt_form=prompt_form,
                    template_date=template_date,
                    allow_tokenizer_mismatch=allow_tokenizer_mismatch,
                    int8_head=int8_head,
                    base_generation_config=base_generation_config,
                    gguf_cache=gguf_cache,
                    merge_adapter=merge_adapter,
                ),
            )
        )

    @classmethod
    def from_options(
        cls, head: Heads, base: str | Path | BaseModel | None, options: InferenceOptions
    ) -> "MAVInference":
        """Load head and base as the constructor does, which takes the options one by one."""
        made = cls.__new__(cls)
        made._begin(SwitchableModel.load(head, base, options))
        return made

    def _begin(self, model: SwitchableModel) -> None:
        self._in_use, self._model = ExclusiveUse(), model
        self._watch()

    def _watch(self) -> None:
        if self.base.borrowed:
            # Its owner may drop this object without closing it.
            weakref.finalize(self, self._model.close).atexit = False

    @classmethod
    def with_new_head(
        cls, base: BaseModel, *, rules: AttachOptions | None = None, **head: Any
    ) -> "MAVInference":
        """Return a base with a new head, which leaves it as it is until trained.

        Args:
            base: The base.
            rules: How prompts are written and what is allowed.
            **head: `head_type`, `layer_selection`, `num_layers`, `pooled_size`, `expansion_size`
                and `rank`; sizes that are left out follow the base.
        """
        made = cls.__new__(cls)
        placement = LoadOptions(dtype=base.dtype, device=str(base.device))
        made._begin(
            SwitchableModel(base, new_head(base, **head), rules or AttachOptions(), placement)
        )
        return made

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the base in use."""
        return self.base.tokenizer

    @property
    def head(self) -> AlignmentHead:
        """The head, on the base's device and of its type; `heads` has several."""
        if self.head_names:
            raise UsageError(f"head: there are {', '.join(self.head_names)}; use `heads`")
        return self.joined.aligned.head

    @property
    def recommended_alpha(self) -> float | None:
        """The strength that training with `target_kl` found for the head; None without one."""
        found = None if self.head_names else self._model.trained.parts[0].recommended
        return None if found is None else found.alpha

    @property
    def heads(self) -> dict[str, AlignmentHead]:
        """The heads by name, on the base's device and of its type."""
        return dict(zip(self.head_names, self.joined.aligned.heads, strict=True))

    @property
    def head_digest(self) -> str:
        """SHA-256 over the heads' weights."""
        return self._model.trained.digest

    @property
    def int8_head(self) -> bool:
        """Whether weights of a head are int8."""
        return self._model.trained.quantized

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"MAVInference({described(self._model)})"

    @contextmanager
    def _handed_out(self) -> Iterator[AttachedModel]:
        with self._in_use.hand_out():
            joined = self.joined
            with joined.base.in_use():
                yield joined

    @contextmanager
    def steering(self, alpha: Alpha | Sequence[Alpha], steer_above: Limits = None) -> Iterator[Any]:
        """Yield the transformers model with the head attached, for direct use.

        What a call of its `generate()` leaves open, the base's own generation_config fills.

        Args:
            alpha: Strength, one for all rows or one for each; no schedule, as passes of one's
                own count no tokens of a response.
            steer_above: Entropy of the base in nats, one for all rows or one for each; tokens at
                which it is not above that are the base's. None steers every token.

        Raises:
            UsageError: It is open already, an alpha is not a finite number, or a limit below 0.

        Example:
            with mav.steering(1.5) as model:
                model.generate(**inputs, num_beams=4, num_return_sequences=2)
        """
        strengths = constant_strengths(alpha, self.head_names)
        with self._handed_out() as joined, joined.aligned.steering(strengths, steer_above):
            yield joined.base.model

    @contextmanager
    def exclusive(self) -> Iterator[AlignedLM]:
        """Yield base and head for your own decoder, while nothing else decodes."""
        with self._handed_out() as joined:
            yield joined.aligned

    def switch_base_model(
        self,
        base_model: GivenBase,
        tokenizer: Any = None,
        *,
        gguf_file: str | None = None,
        revision: str | None = None,
    ) -> None:
        """Switch to another base; the one in use is freed before the other is loaded.

        Args:
            base_model: Hub id, folder or `.gguf` file; or a model that is loaded already.
            tokenizer: The tokenizer of a loaded model; that of the files it names if None.
            gguf_file: File inside the folder or repository.
            revision: Branch, tag or commit of a hub repository.

        Raises:
            MAVError: It does not belong to the head or cannot be loaded; the base in use stays,
                loaded again if need be.
            UsageError: `steering` or `exclusive` is open.
        """
        with self._in_use.acquire():
            given = loaded_base(base_model, tokenizer)
            self._model.switch(given or resolve_base(str(base_model), gguf_file, revision))
            self._watch()

    def close(self) -> None:
        """Detach the head; the base is as it was before.

        Raises:
            UsageError: `steering` or `exclusive` is open.
        """
        with self._in_use.acquire():
            self._model.close()


def _loaded_or_named(base: GivenBase | None, tokenizer: Any) -> str | Path | BaseModel | None:
    if base is None and tokenizer is not None:
        raise UsageError("tokenizer: got one without its model, expected both")
    loaded = None if base is None else loaded_base(base, tokenizer, "base")
    return base if base is None or isinstance(base, str | Path) else loaded
