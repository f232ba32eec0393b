"""Options of decoding, and its results."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Union, get_args

from mav.cache_schema.errors import UsageError
from mav.pipeline.preferences.chat_template import parse_date
from mav.pipeline.runtime.argument_names import NamedArguments
from mav.pipeline.runtime.choices import CacheImplementation, PromptFormatName
from mav.pipeline.runtime.load_options import BaseOptions
from mav.pipeline.runtime.options import check_options, option, token_biases

if TYPE_CHECKING:
    from mav.pipeline.head.model import AlignmentHead

OneHead = Union[str, Path, "AlignmentHead"]
"""Where a head is, or the head itself."""
Heads = Union[OneHead, Mapping[str, OneHead]]  # noqa: UP007
"""A head, or several by name."""

_COLDEST: Final = 1e-4
"""Lower temperatures choose the most probable token in any case, and would overflow."""
_HOTTEST: Final = 1e4
_LARGEST_SEED: Final = 2**62
_LATER: Final = ("steer_above", "frequency_penalty", "presence_penalty", "logit_bias")
"""Fields of `GenerationOptions` that early files of answers do not have."""


@dataclass(frozen=True, kw_only=True)
class AttachOptions(NamedArguments):
    """Options for attaching a head to a base.

    Attributes:
        allow_tokenizer_mismatch: Accept a base with another tokenizer of the same size.
        prompt_form: Form of prompts; `auto` is what the head was trained in.
        template_date: Date given to a chat template that asks for it, as YYYY-MM-DD, or
            `today`; the day of the head's training data if None.
        int8_head: Keep the head's weights in a byte each; needs torchao.
        base_generation_config: Take what the user leaves open from the base's generation_config.
    """

    allow_tokenizer_mismatch: bool = option(
        False, help="Accept a base with another tokenizer of the same size."
    )
    prompt_form: PromptFormatName = option(
        "auto",
        choices=get_args(PromptFormatName),
        help="HH-RLHF's transcript, or the base's chat template; auto is the format of the head's "
        "training.",
    )
    template_date: str | None = option(
        None,
        metavar="DATE",
        default_text="as in training",
        help="Date given to a chat template that asks for it: YYYY-MM-DD or today.",
    )
    int8_head: bool = option(False, help="Keep the head's weights in one byte each; needs torchao.")
    base_generation_config: bool = option(
        False, help="Take options that are not given from the base's generation_config."
    )

    def __post_init__(self) -> None:
        check_options(self)
        if self.template_date is not None:
            parse_date(self.template_date)


@dataclass(frozen=True, kw_only=True)
class InferenceOptions(BaseOptions, AttachOptions):
    """How a base is loaded and a head attached to it; the fields are those of both."""

    def __post_init__(self) -> None:
        AttachOptions.__post_init__(self)  # which checks every field


@dataclass(frozen=True, kw_only=True)
class GenerationOptions(NamedArguments):
    """Options of generation.

    Attributes:
        max_new_tokens: Most tokens of a response.
        temperature: 0 takes the most probable token; more samples.
        top_k: Sample from so many of the most probable tokens; 0 from all.
        top_p: Nucleus to sample from.
        min_p: Sample only tokens at least so probable, relative to the most probable one.
        repetition_penalty: What logits of tokens that came before are divided or multiplied by; 1
            leaves them alone.
        frequency_penalty: What is taken from a logit for each time that its token came in the
            response; below 0 it is added.
        presence_penalty: What is taken once from the logit of a token that came in the response.
        logit_bias: What is added to logits, as token ids with numbers from -100 to 100, or a
            mapping of these. As the two before, it comes after `repetition_penalty`.
        seed: Seed of the sampling, of a whole batch; None leaves the random state alone.
        steer_above: Entropy of the base's own distribution of the next token, in nats; heads are
            computed and added only at tokens where it is above that. None steers every token.
        num_beams: Beams to search with; 1 searches none.
        stop: Strings that end a response and are not part of it.
        cache_implementation: `dynamic` grows with the response, `static` has its full size from the
            start, which is what can be compiled, `none` runs the whole text again for every token.
        compile: Compile the base with its head, whose first response takes long; takes the static
            cache.
    """

    max_new_tokens: int = option(128, whole=True, at_least=1, help="Most tokens of a response.")
    temperature: float = option(0.0, number=True, at_least=0, at_most=_HOTTEST, help="0 is greedy.")
    top_k: int = option(
        0, whole=True, at_least=0, help="Most probable tokens to sample from; 0 is all."
    )
    top_p: float = option(1.0, number=True, above=0, at_most=1, help="Nucleus to sample from.")
    min_p: float = option(
        0.0,
        number=True,
        at_least=0,
        at_most=1,
        help="Minimum probability, relative to the largest.",
    )
    repetition_penalty: float = option(1.0, number=True, above=0, help="1 is no penalty.")
    frequency_penalty: float = option(
        0.0,
        number=True,
        at_least=-2,
        at_most=2,
        help="Taken from a logit for each time its token came in the answer.",
    )
    presence_penalty: float = option(
        0.0,
        number=True,
        at_least=-2,
        at_most=2,
        help="Taken once from the logits of tokens that came in the answer.",
    )
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = option(
        None,
        whole=True,
        at_least=-_LARGEST_SEED,
        at_most=_LARGEST_SEED,
        help="Seed of the sampling.",
    )
    steer_above: float | None = option(
        None,
        number=True,
        at_least=0,
        metavar="NATS",
        default_text="everywhere",
        help="Steer only tokens at which the base's entropy is above this.",
    )
    num_beams: int = option(1, whole=True, at_least=1, help="Beams to search with.")
    stop: tuple[str, ...] = option((), help="Text that ends a response; may be repeated.")
    cache_implementation: CacheImplementation = option(
        "dynamic",
        choices=get_args(CacheImplementation),
        help="How the past is kept; static has its full size from the start.",
    )
    compile: bool = option(False, help="Compile base and head; takes a static cache.")

    def __post_init__(self) -> None:
        check_options(self)
        self._take_stop()
        object.__setattr__(self, "logit_bias", token_biases("logit_bias", self.logit_bias))
        if self.compile and self.cache_implementation != "static":
            raise UsageError(
                f"compile: got {self.cache_implementation} as `cache_implementation`, expected "
                f"static"
            )
        if self.compile and self.steer_above is not None:
            raise UsageError(
                "compile: got True with `steer_above`, expected one of them, as each token's own "
                "entropy decides whether the heads run, which compiled code cannot"
            )

    def _take_stop(self) -> None:
        given: Any = self.stop
        stops = (given,) if isinstance(given, str) else given
        if not isinstance(stops, Sequence) or not all(isinstance(stop, str) for stop in stops):
            raise UsageError(f"stop: got {given!r}, expected a text, or a list of texts")
        if "" in stops:
            raise UsageError("stop: got an empty string, expected text that ends a response")
        object.__setattr__(self, "stop", tuple(stops))

    def require_tokens(self, vocab_size: int) -> None:
        """Refuse a bias of a token that a base does not have.

        Args:
            vocab_size: Number of the base's logits.

        Raises:
            UsageError: There is such a bias.
        """
        if self.logit_bias and self.logit_bias[-1][0] >= vocab_size:
            raise UsageError(
                f"logit_bias: got the token {self.logit_bias[-1][0]}, expected 0 to "
                f"{vocab_size - 1}"
            )

    def recorded(self) -> dict[str, Any]:
        """Return all fields as plain values, for a file of answers to say how they were made.

        Fields that files begun by earlier versions do not have are left out at their defaults, so
        that such files go on.
        """
        values = dataclasses.asdict(self)
        values["logit_bias"] = [[*pair] for pair in self.logit_bias]
        for field in dataclasses.fields(self):
            if field.name in _LATER and getattr(self, field.name) == field.default:
                del values[field.name]
        return values

    def with_seed_offset(self, number: int) -> "GenerationOptions":
        """Return a copy for one of several responses or batches, with its own seed.

        Args:
            number: Of the response, from 0. Each has the next seed; the smallest follow the
                largest.
        """
        if self.seed is None:
            return self
        seed = self.seed + number
        if seed > _LARGEST_SEED:
            # A power of two less: generators that read only the last bits get others all the same.
            seed -= 2 * _LARGEST_SEED
        return dataclasses.replace(self, seed=seed)

    def require_streamable(self) -> None:
        """Refuse options under which no text is final before the end, such as beams.

        Raises:
            UsageError: It searches with beams.
        """
        if self.num_beams > 1:
            raise UsageError(
                f"num_beams: got {self.num_beams}, expected 1, as an answer that beams search "
                f"for cannot be streamed"
            )

    @property
    def samples(self) -> bool:
        """Whether tokens are sampled; at temperatures near 0 the most probable one is taken."""
        return self.temperature >= _COLDEST

    @property
    def unused(self) -> tuple[str, ...]:
        """Fields that are set and have no effect, because nothing is sampled."""
        if self.samples:
            return ()
        of_sampling = ("top_k", "top_p", "min_p", "seed")
        return tuple(
            field.name
            for field in dataclasses.fields(self)
            if field.name in of_sampling and getattr(self, field.name) != field.default
        )


@dataclass(frozen=True, kw_only=True)
class Generation:
    """One response.

    Attributes:
        prompt: The prompt, as the model saw it.
        alpha: Strength, or its schedule as `AlphaSchedule.parse` reads it; of several heads these
            by name.
        response: The response's text.
        tokens: Ids of the new tokens, the one that ended them included.
        finish: `stop` where the base ended the response or a stop string came, else `length`.
        seconds: Time taken, by all responses of its batch together.
        steered_tokens: How many of the tokens heads were added at; None without `steer_above`.
    """

    prompt: str
    alpha: float | str | dict[str, float | str]
    response: str
    tokens: tuple[int, ...]
    finish: Literal["stop", "length"]
    seconds: float
    steered_tokens: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; `steered_tokens` only with `steer_above`."""
        values = dataclasses.asdict(self)
        if self.steered_tokens is None:
            del values["steered_tokens"]
        return values
