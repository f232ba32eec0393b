"""Online decoding: a frozen base and a head together, alpha chosen at each call."""

import threading
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
)

from cache_schema.errors import MismatchError, UsageError
from cache_schema.manifest import BaseModelRecord, StatesRecord
from pipeline.aligned_lm import AlignedLM
from pipeline.base_model import IN_MEMORY, BaseModel, load_base
from pipeline.belonging import require_same_vocabulary
from pipeline.decoding import Decoding, Generation, until
from pipeline.head import AlignmentHead, HeadConfig
from pipeline.head_files import load_head
from pipeline.layers import select_layers
from pipeline.transcripts import HUMAN, as_prompt

Say = Callable[[str], None]


class MAVInference:
    """A head and a base to decode with.

    Example:
        mav = MAVInference("runs/head", "meta-llama/Llama-2-7b-hf")
        print(mav.generate_response("How do I say no politely?", alpha=1.0))

    Attributes:
        head: The head, on the base's device and of its type.
        base: The base model in use.
    """

    def __init__(
        self,
        head: str,
        base: str | BaseModel | None = None,
        *,
        gguf_file: str | None = None,
        revision: str | None = None,
        dtype: torch.dtype = torch.bfloat16,
        device: str = "auto",
        say: Say = lambda _: None,
    ) -> None:
        """Load head and base, and check that they belong together.

        Args:
            head: Folder of a head or of a training run, or a hub id.
            base: Hub id, folder, `.gguf` file or loaded base; the one the head was trained on if
                None.
            gguf_file: File inside the base's folder or repository.
            revision: Branch, tag or commit of a hub repository.
            dtype: Element type of both, unless the base is loaded already.
            device: `auto` or a torch device, likewise.
            say: Called with each line worth telling the user.

        Raises:
            MAVError: One cannot be loaded, or they do not belong together.
        """
        stored = load_head(head)
        trained = stored.origin.manifest
        if base is None:
            base = trained.base.id
            if base.startswith(IN_MEMORY):
                raise UsageError(
                    f"The head {head} was trained on a base built in memory; name one with "
                    f"--base-model"
                )
            revision = revision or trained.base.revision
            gguf_file = gguf_file or (None if base.endswith(".gguf") else trained.base.gguf_file)
        if isinstance(base, str):
            base = load_base(
                base, gguf_file=gguf_file, revision=revision, dtype=dtype, device=device
            )
        self._join(stored.head, trained.base, trained.states, base, f"The head {head}", say)

    @classmethod
    def untrained(
        cls,
        base: BaseModel,
        *,
        layer_selection: str = "auto",
        num_layers: int = 3,
        pooled_size: int = 4096,
        expansion_size: int = 16384,
    ) -> "MAVInference":
        """Return a base with a new head, which leaves it as it is until trained."""
        layers = select_layers(layer_selection, num_layers, base.num_hidden_layers)
        named = layer_selection in ("auto", "uniform")
        states = StatesRecord(
            layer_selection=layer_selection if named else "explicit",
            layers=layers,
            pooled_size=pooled_size,
            stored_width=min(base.hidden_size, pooled_size),
            dtype="float32",
        )
        head = AlignmentHead(
            HeadConfig(
                num_layers=len(layers),
                pooled_size=pooled_size,
                expansion_size=expansion_size,
                vocab_size=base.vocab_size,
            )
        ).eval()
        made = cls.__new__(cls)
        made._join(head, base.record(), states, base, "The new head", lambda _: None)
        return made

    def generate_response(self, prompt: str, alpha: float = 1.0, **decoding: Any) -> str:
        """Return the answer to a prompt.

        Args:
            prompt: A user's message, or a transcript that ends in `Assistant:`.
            alpha: Strength of the alignment; 0 is the base itself.
            **decoding: Fields of `Decoding`.
        """
        return self.generate(prompt, alpha, Decoding(**decoding)).response

    def generate(self, prompt: str, alpha: float, decoding: Decoding) -> Generation:
        """Return an answer with its tokens and the time it took."""
        text, inputs = self._inputs(prompt)
        started = perf_counter()
        found = self._run(inputs, alpha, decoding, {})
        tokens = found[0, inputs["input_ids"].shape[1] :]
        decoded = self.base.tokenizer.decode(tokens, skip_special_tokens=True)
        return Generation(
            prompt=text,
            alpha=alpha,
            response=decoded.split(HUMAN)[0].strip(),
            tokens=tuple(tokens.tolist()),
            seconds=perf_counter() - started,
        )

    def stream_response(self, prompt: str, alpha: float = 1.0, **decoding: Any) -> Iterator[str]:
        """Yield the answer to a prompt piece by piece; see `generate_response`."""
        _, inputs = self._inputs(prompt)
        options = Decoding(**decoding)
        streamer = TextIteratorStreamer(
            self.base.tokenizer, skip_prompt=True, skip_special_tokens=True
        )
        failure: list[BaseException] = []
        abandoned = threading.Event()
        extra = {
            "streamer": streamer,
            "stopping_criteria": StoppingCriteriaList([_Abandoned(abandoned)]),
        }

        def run() -> None:
            try:
                self._run(inputs, alpha, options, extra)
            except BaseException as error:
                failure.append(error)
                streamer.end()

        thread = threading.Thread(target=run, name="generate", daemon=True)
        thread.start()
        try:
            yield from until(streamer, HUMAN)
        finally:
            # Also where the caller stops listening: nothing may steer the base any longer.
            abandoned.set()
            thread.join()
        if failure:
            raise failure[0]

    def switch_base_model(
        self,
        base_model: str,
        *,
        gguf_file: str | None = None,
        revision: str | None = None,
        say: Say = lambda _: None,
    ) -> None:
        """Put another base with the same tokenizer under the head.

        Args:
            base_model: Hub id, folder or `.gguf` file.
            gguf_file: File inside the folder or repository.
            revision: Branch, tag or commit of a hub repository.
            say: Called with each line worth telling the user.

        Raises:
            MAVError: It cannot be loaded or does not belong to the head; the base in use stays.
        """
        base = load_base(
            base_model,
            gguf_file=gguf_file,
            revision=revision,
            dtype=self.base.dtype,
            device=str(self.base.device),
        )
        self._join(self.head, self._trained_on, self._states, base, "The head", say)

    def _join(
        self,
        head: AlignmentHead,
        trained_on: BaseModelRecord,
        states: StatesRecord,
        base: BaseModel,
        name: str,
        say: Say,
    ) -> None:
        record = base.record()
        require_same_vocabulary(trained_on, record, name, "the base")
        layers = states.layers
        if record.weights_digest != trained_on.weights_digest:
            layers = _layers_of_other_base(states, trained_on, record)
            say(
                f"{record.id} is another base than the head was trained on ({trained_on.id}), "
                f"with the same tokenizer; reading its layers {list(layers)}"
            )
        self._trained_on, self._states = trained_on, states
        self.base = base
        self.head = head.to(device=base.device, dtype=base.dtype)
        self._aligned = AlignedLM(base, self.head, layers)
        self._one_at_a_time = threading.Lock()

    def _inputs(self, prompt: str) -> tuple[str, Any]:
        text = as_prompt(prompt)
        return text, self.base.tokenizer(text, return_tensors="pt").to(self.base.device)

    def _run(
        self, inputs: Any, alpha: float, decoding: Decoding, extra: dict[str, Any]
    ) -> torch.Tensor:
        tokenizer, sample = self.base.tokenizer, decoding.temperature > 0
        config = GenerationConfig(
            max_new_tokens=decoding.max_new_tokens,
            do_sample=sample,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.eos_token_id,
            stop_strings=[HUMAN],
            **({"temperature": decoding.temperature, "top_p": decoding.top_p} if sample else {}),
            **({"top_k": 0} if sample else {}),
        )
        with (
            self._one_at_a_time,
            torch.random.fork_rng(enabled=decoding.seed is not None),
            self._aligned,
        ):
            self._aligned.alpha = alpha
            if decoding.seed is not None:
                torch.manual_seed(decoding.seed)
            found: torch.Tensor = self.base.model.generate(
                **inputs, generation_config=config, tokenizer=tokenizer, **extra
            )
        return found


class _Abandoned(StoppingCriteria):  # type: ignore[misc]
    """Ends a generation nobody listens to any longer."""

    def __init__(self, event: threading.Event) -> None:
        self._event = event

    def __call__(self, input_ids: torch.Tensor, _: Any, **__: Any) -> torch.Tensor:
        return torch.full((len(input_ids),), self._event.is_set(), device=input_ids.device)


def create_mav(base_model: str, head: str | None = None, **options: Any) -> MAVInference:
    """Return a base joined with a trained head, or with a new one that changes nothing yet.

    Args:
        base_model: Hub id, folder or `.gguf` file.
        head: Folder or hub id of a trained head, or None for a new one.
        **options: With a head, those of `MAVInference`; without, those of
            `MAVInference.untrained`.
    """
    if head is not None:
        return MAVInference(head, base_model, **options)
    loading = {
        k: options.pop(k) for k in ("gguf_file", "revision", "dtype", "device") if k in options
    }
    return MAVInference.untrained(load_base(base_model, **loading), **options)


def _layers_of_other_base(
    states: StatesRecord, trained_on: BaseModelRecord, record: BaseModelRecord
) -> tuple[int, ...]:
    """Return the same choice of layers, by strategy, on a base of another depth."""
    if record.num_hidden_layers == trained_on.num_hidden_layers:
        return states.layers
    if states.layer_selection == "explicit":
        raise MismatchError(
            f"The head reads layers {list(states.layers)} of {trained_on.num_hidden_layers}, "
            f"chosen by index, but {record.id} has {record.num_hidden_layers} layers; only heads "
            f"trained with --layer-selection auto or uniform can go to a base of another depth."
        )
    return select_layers(states.layer_selection, len(states.layers), record.num_hidden_layers)
