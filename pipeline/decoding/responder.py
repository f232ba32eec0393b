"""What a base and heads that were loaded do with prompts: answer, stream and score."""

import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from mav.cache_schema.errors import UsageError
from mav.pipeline.base.model import BaseModel
from mav.pipeline.decoding.attach import AttachedModel
from mav.pipeline.decoding.exclusive_use import ExclusiveUse
from mav.pipeline.decoding.generate import decode, respond
from mav.pipeline.decoding.options import Generation, GenerationOptions
from mav.pipeline.decoding.scoring import Score, score_responses
from mav.pipeline.decoding.steering.counting import said_of
from mav.pipeline.decoding.steering.strengths import (
    Alpha,
    Strength,
    as_strength,
    strength_for_each,
)
from mav.pipeline.decoding.switching import SwitchableModel
from mav.pipeline.decoding.text_stream import Abandoned, TextStream, stream_from
from mav.pipeline.preferences.prompt_format import Messages
from mav.pipeline.runtime.argument_names import require_one

_log = logging.getLogger(__name__)

Prompt = str | Messages


class Responder:
    """Base and heads, whatever loaded them, one use at a time."""

    _in_use: ExclusiveUse
    _model: SwitchableModel

    @property
    def joined(self) -> AttachedModel:
        """The base in use and the head in it.

        Raises:
            BaseModelError: The last switch failed, and the base before it could not be loaded
                again.
        """
        return self._model.attached

    @property
    def base(self) -> BaseModel:
        """The base model in use."""
        return self.joined.base

    @property
    def head_names(self) -> tuple[str, ...]:
        """Names of the heads; none of one head without a name."""
        return self._model.trained.names

    def decoding(self, **given: Any) -> GenerationOptions:
        """Return generation options: as given, else the base's (if asked for) or the defaults.

        Args:
            **given: Fields of `GenerationOptions`.

        Raises:
            UsageError: One of them is invalid.
        """
        return GenerationOptions(**{**self.joined.settings, **given})

    @contextmanager
    def _using(self) -> Iterator[AttachedModel]:
        """Yield base and heads, ready to run, while nothing else uses them."""
        with self._in_use.acquire():
            joined = self.joined
            with joined.base.in_use():
                yield joined

    def _decoding(
        self, decoding: GenerationOptions | None, given: Mapping[str, Any]
    ) -> GenerationOptions:
        if decoding is None:
            return self.decoding(**given)
        if not isinstance(decoding, GenerationOptions):
            raise UsageError(
                f"decoding: got {type(decoding).__name__}, expected GenerationOptions, or its "
                f"fields by name, such as max_new_tokens=64"
            )
        return dataclasses.replace(decoding, **given) if given else decoding

    def generate_response(self, prompt: Prompt, alpha: Alpha = 1.0, **decoding: Any) -> str:
        """Return the response to a prompt.

        Args:
            prompt: A user's message, messages with `role` and `content`, or a transcript that
                ends in `Assistant:`.
            alpha: Strength of the alignment, or a schedule over the response; 0 is the base itself.
                Of several heads each by name: `{"helpful": 1, "harmless": "0:2,64:0.5"}`.
            **decoding: Fields of `GenerationOptions`.
        """
        return self.generate(prompt, alpha, **decoding).response

    def generate(
        self,
        prompt: Prompt,
        alpha: Alpha = 1.0,
        decoding: GenerationOptions | None = None,
        **given: Any,
    ) -> Generation:
        """Return a response with its tokens and the time it took; see `generate_batch`."""
        require_one(prompt, "prompt", "`generate_batch` takes several")
        return self.generate_batch([prompt], alpha, decoding, **given)[0]

    def generate_batch(
        self,
        prompts: Sequence[Prompt],
        alpha: Alpha | Sequence[Alpha] = 1.0,
        decoding: GenerationOptions | None = None,
        **given: Any,
    ) -> list[Generation]:
        """Return the responses to several prompts, decoded together.

        Args:
            prompts: As `generate_response` takes them.
            alpha: One for all, or one for each.
            decoding: How tokens are chosen, the whole of it; None for what `decoding()` returns.
            **given: Fields of `GenerationOptions`, which count before those of `decoding`.

        Raises:
            UsageError: There are more or fewer alphas than prompts, or `prompts` is one prompt.
            DataError: A prompt is malformed, or too long for the base.
        """
        _require_several(prompts, "prompts", "generate")
        each = strength_for_each(alpha, len(prompts), self.head_names)
        decoding = self._decoding(decoding, given)
        with self._using() as joined:
            return respond(joined, prompts, each, decoding)

    def score(
        self,
        prompt: Prompt,
        response: str,
        alpha: Alpha = 1.0,
        *,
        ended: bool = True,
        steer_above: float | None = None,
    ) -> Score:
        """Return the log-probabilities of a response's tokens, under base and head and the base.

        Args:
            prompt: As `generate_response` takes it.
            response: The response, of which the tokens are those that training would see.
            alpha: Strength of the alignment, or a schedule over the response.
            ended: Whether the response ends there, so that the token which says so counts too.
            steer_above: Entropy in nats, as `GenerationOptions` has it.

        Raises:
            DataError: Prompt or response is malformed, or they are too long for the base.
        """
        require_one(prompt, "prompt", "`score_batch` takes several")
        (found,) = self.score_batch(
            [prompt], [response], alpha, ended=ended, steer_above=steer_above
        )
        return found

    def score_batch(
        self,
        prompts: Sequence[Prompt],
        responses: Sequence[str],
        alpha: Alpha | Sequence[Alpha] = 1.0,
        *,
        ended: bool = True,
        steer_above: float | None = None,
    ) -> list[Score]:
        """Return the scores of several responses, from one forward pass; see `score`.

        Args:
            prompts: One for each response.
            responses: The responses.
            alpha: One for all, or one for each.
            ended: As `score` takes it.
            steer_above: Likewise, for all.

        Raises:
            UsageError: There are not as many prompts, responses and alphas.
        """
        _require_several(prompts, "prompts", "score")
        _require_several(responses, "answers", "score")
        if len(prompts) != len(responses):
            raise UsageError(
                f"answers: got {len(responses)}, expected one for each of {len(prompts)}"
            )
        each = strength_for_each(alpha, len(responses), self.head_names)
        with self._using() as joined:
            return score_responses(joined, prompts, responses, each, ended=ended, above=steer_above)

    def stream_response(self, prompt: Prompt, alpha: Alpha = 1.0, **decoding: Any) -> Iterator[str]:
        """Yield the response to a prompt piece by piece; see `generate_response`."""
        return self.stream(prompt, alpha, **decoding)

    def stream(
        self,
        prompt: Prompt,
        alpha: Alpha = 1.0,
        decoding: GenerationOptions | None = None,
        **given: Any,
    ) -> Iterator[str]:
        """Yield the response to a prompt piece by piece.

        Raises:
            UsageError: Beams are asked for, which know no response until the end.
        """
        require_one(prompt, "prompt", "a batch cannot be streamed; `generate_batch` takes several")
        decoding = self._decoding(decoding, given)
        decoding.require_streamable()
        self._in_use.require_not_handed_out()
        return self._stream(prompt, as_strength(alpha, self.head_names), decoding)

    def _stream(
        self, prompt: Prompt, alpha: Strength, decoding: GenerationOptions
    ) -> Iterator[str]:
        # Once more, as a stream may be listened to long after it was asked for.
        self._in_use.require_not_handed_out()

        def run(stream: TextStream, abandoned: Abandoned) -> None:
            # Only now: while it waited, the base may have been switched.
            with self._using() as joined:
                stream.begin(joined.response_text(decoding))
                tokens = [joined.form.tokens(joined.form.render(prompt))]
                joined.base.require_within(tokens, decoding.max_new_tokens)
                (new,), counted = decode(
                    joined, tokens, [alpha], decoding, stopping=[abandoned], streamer=stream
                )
                if counted is not None:
                    _log.info(said_of(counted.count(0, new), len(new)))

        yield from stream_from(run)


def _require_several(given: object, name: str, single: str) -> None:
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise UsageError(
            f"{name}: got {type(given).__name__}, expected a list with one for each answer; "
            f"`{single}` takes a single one"
        )
