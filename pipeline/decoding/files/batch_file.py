"""Generates responses for a file of prompts: batched by length, resumable, one line per prompt.

Batches are planned from the prompts alone, so a resumed run decodes the same ones. Responses
are collected in `OUTPUT.partial` as they come, whose first line says what made them; when all are
there, they are put in the order of the prompts and take the name OUTPUT at once.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from mav.cache_schema.errors import DataError, MAVError
from mav.pipeline.decoding.files.prompt_file import PromptLine, read_prompts
from mav.pipeline.decoding.inference import MAVInference
from mav.pipeline.decoding.options import Generation, GenerationOptions
from mav.pipeline.decoding.steering.strengths import Strength
from mav.pipeline.runtime.durable_files import write_file
from mav.pipeline.runtime.interruption import Interrupted
from mav.pipeline.runtime.memory import PROMPT_OUT_OF_MEMORY, free_memory, is_out_of_memory
from mav.pipeline.runtime.progress import progress_bar
from mav.pipeline.runtime.resumable_lines import json_line, resumable_lines

_log = logging.getLogger(__name__)

OWN_FIELDS: Final = (
    *("line", "alpha", "response", "new_tokens", "steered_tokens", "finish", "error"),
)
"""What a line of the output says of the response."""


@dataclass(frozen=True, kw_only=True)
class BatchReport:
    """Counts of a run over a file of prompts.

    Attributes:
        output: Where the responses are.
        lines: Lines of it, one for each prompt.
        failed: How many of them carry an error.
        new_tokens: Tokens of all responses.
        steered_tokens: How many of them heads were added at; None without `steer_above`.
    """

    output: str
    lines: int
    failed: int
    new_tokens: int
    steered_tokens: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; `steered_tokens` only with `steer_above`."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def generate_file(
    mav: MAVInference,
    prompts: Path,
    output: Path,
    alpha: Strength,
    decoding: GenerationOptions,
    *,
    batch_size: int,
) -> BatchReport:
    """Generate a response for every prompt of a file; resume an interrupted run.

    A line of the output has the fields of the prompt's, and `line`, `response`, `new_tokens`,
    `finish`, `alpha` and with `steer_above` also `steered_tokens`, or `error` in their place; what
    the prompt's line had under these names is left out.

    Args:
        mav: Head and base.
        prompts: The prompts, as `read_prompts` takes them.
        output: JSON lines, written when all responses are there.
        alpha: Strength of prompts that name none.
        decoding: How tokens are chosen; each batch has a seed of its own, by
            `GenerationOptions.with_seed_offset`.
        batch_size: Most prompts decoded together.

    Raises:
        DataError: The prompts cannot be read, or the partial responses are of another run.
    """
    require_new(output)
    lines = read_prompts(prompts, mav.head_names)
    made_by = _made_by(mav, lines, alpha, decoding, batch_size)
    partial = output.with_name(f"{output.name}.partial")
    with resumable_lines(partial, made_by, lambda response: int(response["line"])) as kept:
        answered = kept.lines
        if answered:
            _log.info(f"{partial}: {len(answered):,} of {len(lines):,} answers are there; going on")
        with progress_bar(len(lines), "answering", "prompt", done=len(answered)) as bar:
            try:
                for responses in _answer(mav, lines, answered, alpha, decoding, batch_size):
                    kept.append(responses)
                    bar.update(len(responses))
            except KeyboardInterrupt as stop:
                raise Interrupted(
                    f"{len(answered):,} of {len(lines):,} answers are kept, in {partial}.",
                    "The same command continues with the rest.",
                ) from stop
        ordered = [answered[line.number] for line in lines]
        write_file(output, "".join(map(json_line, ordered)).encode())
        partial.unlink()
    return BatchReport(
        output=str(output),
        lines=len(ordered),
        failed=sum("error" in response for response in ordered),
        new_tokens=sum(response.get("new_tokens", 0) for response in ordered),
        steered_tokens=None
        if decoding.steer_above is None
        else sum(response.get("steered_tokens", 0) for response in ordered),
    )


def require_new(output: Path) -> None:
    """Refuse an output that exists, or whose folder does not.

    Raises:
        DataError: It is so.
    """
    if output.exists():
        raise DataError(f"{output}: exists already; remove it, or name another `output`")
    if not output.parent.is_dir():
        raise DataError(f"{output}: its folder does not exist; make it, or name another `output`")


def _answer(
    mav: MAVInference,
    lines: Sequence[PromptLine],
    answered: dict[int, Any],
    alpha: Strength,
    decoding: GenerationOptions,
    batch_size: int,
) -> Iterator[list[dict[str, Any]]]:
    """Yield missing responses batch by batch, after the lines that are errors."""
    sized, wrong = [], []
    for line in lines:
        checked, tokens = _checked(mav, line, decoding)
        if checked.error is None:
            sized.append((tokens, checked))
        elif line.number not in answered:
            wrong.append(_line_out(checked, checked.error))
    if wrong:
        yield wrong
    # The longest first: what does not fit into memory shows at once.
    sized.sort(key=lambda entry: (-entry[0], entry[1].number))
    for batch, start in enumerate(range(0, len(sized), batch_size)):
        group = [line for _, line in sized[start : start + batch_size]]
        if all(line.number in answered for line in group):
            continue
        responses = _decoded(mav, group, alpha, decoding.with_seed_offset(batch))
        yield [
            _line_out(line, response)
            for line, response in zip(group, responses, strict=True)
            if line.number not in answered
        ]


def _decoded(
    mav: MAVInference,
    group: Sequence[PromptLine],
    alpha: Strength,
    decoding: GenerationOptions,
) -> list[Generation | str]:
    """Decode a batch, in halves where memory runs out; or return the reason it cannot be."""
    try:
        return [
            *mav.generate_batch(
                [line.prompt for line in group], [line.alpha or alpha for line in group], decoding
            )
        ]
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    free_memory()
    if len(group) == 1:
        return [PROMPT_OUT_OF_MEMORY]
    half = len(group) // 2
    return _decoded(mav, group[:half], alpha, decoding) + _decoded(
        mav, group[half:], alpha, decoding
    )


def _checked(
    mav: MAVInference, line: PromptLine, decoding: GenerationOptions
) -> tuple[PromptLine, int]:
    """Return a line with the error it may have, and its tokens."""
    if line.error is not None:
        return line, 0
    form = mav.joined.form
    try:
        tokens = len(form.tokens(form.render(line.prompt)))
    except MAVError as error:
        return replace(line, error=str(error)), 0
    wrong = mav.base.excess(tokens, decoding.max_new_tokens)
    return (line if wrong is None else replace(line, error=wrong)), tokens


def _line_out(line: PromptLine, response: Generation | str | None) -> dict[str, Any]:
    """Return a line of the output, for a response or for what is wrong."""
    values = {name: value for name, value in line.fields.items() if name not in OWN_FIELDS}
    values["line"] = line.number
    if not isinstance(response, Generation):
        return {**values, "error": response}
    return {
        **values,
        "alpha": response.alpha,
        "response": response.response,
        "new_tokens": len(response.tokens),
        **({} if response.steered_tokens is None else {"steered_tokens": response.steered_tokens}),
        "finish": response.finish,
    }


def _made_by(
    mav: MAVInference,
    lines: Sequence[PromptLine],
    alpha: Strength,
    decoding: GenerationOptions,
    batch_size: int,
) -> dict[str, Any]:
    """Return all settings that determine the responses of a run."""
    # By number and text: a response belongs to its line.
    named = json.dumps([[line.number, line.text] for line in lines])
    digest = hashlib.sha256(named.encode()).hexdigest()
    settings = json.loads(json.dumps(decoding.recorded()))
    base = mav.base.fingerprint()
    return {
        "prompts": digest,
        "head": mav.head_digest,
        "base": base.weights_digest,
        "form": mav.joined.form.name,
        "dtype": str(mav.base.dtype).removeprefix("torch."),
        "quantization": base.quantization,
        "int8_head": mav.int8_head,
        "alpha": str(alpha),
        "batch_size": batch_size,
        **settings,
    }
