"""Samples n answers to each prompt from base and head, or from the base alone."""

import logging
from dataclasses import asdict, dataclass, replace
from typing import Any

from mav.cache_schema.errors import UsageError
from mav.pipeline.base.gguf_copy import resolve_with_copy
from mav.pipeline.base.loading import load_source
from mav.pipeline.comparison.generation import generate_answers
from mav.pipeline.comparison.prompts import read_questions
from mav.pipeline.comparison.records import Answer
from mav.pipeline.decoding.files.batch_file import require_new
from mav.pipeline.decoding.inference import MAVInference
from mav.pipeline.decoding.options import InferenceOptions
from mav.pipeline.rounds.options import SampleOptions
from mav.pipeline.runtime.durable_files import write_file
from mav.pipeline.runtime.resumable_lines import json_line

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SampleReport:
    """Counts of a run of `mav sample`.

    Attributes:
        output: Where the answers are.
        prompts: Number of prompts.
        answers: Answers that were decoded.
        failed: Lines that carry an error in place of an answer.
    """

    output: str
    prompts: int
    answers: int
    failed: int

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def sample(options: SampleOptions, loading: InferenceOptions | None = None) -> SampleReport:
    """Write n answers to every prompt; resume an interrupted run.

    Answers are collected in `OUTPUT.partial`, whose first line says what made them; when all are
    there, they are put in the order of prompts and samples and take the name OUTPUT at once. A line
    has `prompt`, `sample` (from 0), `alpha`, `response`, `new_tokens`, `finish`, `kl` and
    `base_logprob` (see `Answer`), with `steer_above` also `steered_tokens`; or `error`.

    Args:
        options: What to sample.
        loading: How base and head are loaded.

    Raises:
        MAVError: Head, base, prompts or options are invalid, or the partial answers are of another
            run.
    """
    require_new(options.output)
    strength = options.strength
    read = read_questions(options.prompts, options.limit)
    # What is answered at a later turn depends on the answers before, which differ.
    first = tuple(replace(question, follow_ups=()) for question in read.questions)
    prompts = replace(read, questions=first)
    mav = _loaded(options, loading or InferenceOptions())
    partial = options.output.with_name(f"{options.output.name}.partial")
    answers = generate_answers(
        mav,
        "samples",
        prompts,
        strength,
        partial,
        decoding=options.decoding,
        samples=options.n,
        batch_size=options.batch_size,
    )
    mav.close()
    lines = [_line(answer, first[answer.key.question].prompt, strength) for answer in answers]
    write_file(options.output, "".join(map(json_line, lines)).encode())
    partial.unlink()
    failed = sum(answer.error is not None for answer in answers)
    return SampleReport(
        output=str(options.output),
        prompts=len(first),
        answers=len(answers) - failed,
        failed=failed,
    )


def _loaded(options: SampleOptions, loading: InferenceOptions) -> MAVInference:
    if options.head is not None:
        return MAVInference.from_options(options.head, options.base_model, loading)
    assert options.base_model is not None
    if loading.int8_head:
        raise UsageError("int8_head: got True without a `head`, expected one")
    source = resolve_with_copy(
        str(options.base_model),
        loading.gguf_file,
        loading.revision,
        gguf_cache=loading.gguf_cache,
    )
    base = load_source(source, loading)
    # The smallest there is; at alpha 0 it is not computed.
    return MAVInference.with_new_head(base, rules=loading, head_type="bottleneck", rank=1)


def _line(answer: Answer, prompt: Any, strength: Any) -> dict[str, Any]:
    """Return the line of an answer, without what depends on the machine and its load."""
    fields = answer.to_json(prompt)
    for name in ("question", "turn", "seconds"):
        fields.pop(name, None)
    begun = {name: fields.pop(name) for name in ("prompt", "sample")}
    return {**begun, "alpha": strength.to_json(), **fields}
