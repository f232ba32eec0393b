"""`mav generate`: answers to prompts."""

import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from mav.cli_commands.shared.answering import (
    ALPHA,
    BASE_MODEL,
    HEAD_AND_BASE,
    SAMPLING,
    DecodingRequest,
)
from mav.cli_commands.shared.errors import command, print_result
from mav.cli_commands.shared.options import Numbers, OneOnly, fields_of
from mav.pipeline.decoding.options import GenerationOptions
from mav.pipeline.runtime.named_values import text_of

_log = logging.getLogger(__name__)


@command(
    """
  mav generate --head runs/head --prompt "How do I say no politely?" --alphas 0,1,2
  mav generate --head runs/head --prompt "Hello" --alpha 1.5 --stream
  mav generate --head helpful=runs/a --head harmless=runs/b --alpha helpful=1,harmless=0.5 \\
    --prompt "Hello"
  mav generate --head runs/head --prompts prompts.jsonl --output answers.jsonl
"""
)
@HEAD_AND_BASE
@BASE_MODEL
@click.option("--prompt", cls=OneOnly, help="A message, or a transcript that ends in 'Assistant:'.")
@click.option(
    "--prompts",
    "prompts_file",
    cls=OneOnly,
    type=click.Path(path_type=Path),
    help="File of prompts, one per line; or .jsonl with 'prompt' or 'messages', and 'alpha'.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write answers to --prompts as JSON lines; the same command resumes an interrupted run.",
)
@click.option("--batch-size", default=8, help="Prompts decoded together, with --output.")
@ALPHA
@click.option(
    "--alphas", cls=OneOnly, type=Numbers(), help="Several strengths, instead of --alpha."
)
@SAMPLING
@fields_of(GenerationOptions, "num_beams", "stop", "cache_implementation", "compile")
@click.option("--stream", is_flag=True, help="Print the answer as it is generated.")
@click.option(
    "--demo-switching",
    is_flag=False,
    flag_value="",
    metavar="[BASE]",
    help="Answer with the base, then with another base under the same head.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object per response, one per line."
)
def generate_command(
    *,
    prompt: str | None,
    prompts_file: Path | None,
    output: Path | None,
    batch_size: int,
    alpha: Any,
    alphas: Sequence[float] | None,
    stream: bool,
    demo_switching: str | None,
    as_json: bool,
    **others: Any,
) -> None:
    """Decode with a base and a head together, one forward pass per token."""
    if demo_switching is None and (prompt is None) == (prompts_file is None):
        raise click.UsageError("give either --prompt or --prompts")
    if alpha is not None and alphas is not None:
        raise click.UsageError("give either --alpha or --alphas")
    if stream and as_json:
        raise click.UsageError(
            "--stream prints text as it is generated, so it cannot be combined with --json"
        )
    if output is not None and (prompts_file is None or alphas or stream):
        raise click.UsageError("--output takes --prompts and one --alpha, without --stream")
    if batch_size < 1:
        raise click.UsageError(f"--batch-size: got {batch_size}, expected at least 1")
    if demo_switching is not None and (prompts_file or stream or as_json or alpha is not None):
        raise click.UsageError("--demo-switching takes --prompt and --alphas alone")
    from mav.pipeline.decoding.files.prompt_file import read_prompts, require_sound
    from mav.pipeline.decoding.steering.counting import said_of
    from mav.pipeline.decoding.steering.strengths import as_strength
    from mav.pipeline.preferences.prompt_format import require_prompt

    request = DecodingRequest.of(others)
    if request.head_names and (alphas is not None or demo_switching is not None):
        raise click.UsageError(
            "--alphas and --demo-switching take one head without a name; give several heads "
            "--alpha, as in --alpha " + text_of(dict.fromkeys(request.head_names, 1))
        )
    strength = request.strength(alpha)
    if stream:
        request.decoding.require_streamable()
    if prompt is not None:
        require_prompt(prompt)
    if output is not None:
        assert prompts_file is not None
        _answer_file(request, prompts_file, output, strength, batch_size, as_json)
        return
    lines = [] if prompts_file is None else read_prompts(prompts_file, request.head_names)
    if prompts_file is not None:
        require_sound(lines, prompts_file)
    mav, decoding = request.load()
    if demo_switching is not None:
        from mav.pipeline.demo.switching import DEMO_PROMPT, demonstrate_switching

        demonstrate_switching(
            mav,
            demo_switching or None,
            [prompt or DEMO_PROMPT],
            alphas or (0.0, 1.0),
            decoding,
            write=click.echo,
        )
        return
    strengths = [as_strength(one) for one in alphas] if alphas else [strength]
    asked = [prompt] if prompt is not None else [line.prompt for line in lines]
    for number, one in enumerate(asked):
        own = lines[number].alpha if lines else None
        for given in [own] if own is not None and not alphas else strengths:
            if not as_json and (len(asked) > 1 or alphas):
                click.echo(f"--- alpha {given}: {_shown(one)}")
            if stream:
                for piece in mav.stream(one, given, decoding):
                    click.echo(piece, nl=False)
                    sys.stdout.flush()
                click.echo()
                continue
            answer = mav.generate(one, given, decoding)
            if answer.steered_tokens is not None and not as_json:
                _log.info(said_of(answer.steered_tokens, len(answer.tokens)))
            fields = {**lines[number].fields, "line": lines[number].number} if lines else {}
            click.echo(json.dumps({**fields, **answer.to_json()}) if as_json else answer.response)


def _shown(prompt: Any) -> str:
    return prompt.strip() if isinstance(prompt, str) else str(prompt[-1].get("content", "")).strip()


def _answer_file(
    request: DecodingRequest,
    prompts: Path,
    output: Path,
    strength: Any,
    batch_size: int,
    as_json: bool,
) -> None:
    from mav.pipeline.decoding.files.batch_file import generate_file, require_new
    from mav.pipeline.decoding.files.prompt_file import read_prompts
    from mav.pipeline.decoding.steering.counting import said_of

    require_new(output)
    read_prompts(prompts, request.head_names)
    mav, decoding = request.load()
    found = generate_file(
        mav,
        prompts,
        output,
        strength,
        decoding,
        batch_size=batch_size,
    )
    failed = f", {found.failed:,} failed" if found.failed else ""
    steered = found.steered_tokens
    share = "" if steered is None else f"; {said_of(steered, found.new_tokens)}"
    print_result(as_json, found.to_json(), f"{output}: {found.lines:,} lines{failed}{share}")
    if found.failed:
        raise SystemExit(1)
