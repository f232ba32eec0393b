"""Decoding with a head: answers, a conversation, a server."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from mav.cli_commands._errors import command, print_result, say
from mav.cli_commands._options import BASE, PLACEMENT, Number, Numbers, OneOnly, Strength, options

_JOINED = options(
    click.option("--head", cls=OneOnly, required=True, help="Folder or hub id of a head."),
    BASE,
    click.option(
        "--prompt-form",
        type=click.Choice(["auto", "hh", "chat"]),
        default="auto",
        help="HH-RLHF's transcript, or the base's chat template; auto is what the head knows.",
    ),
    click.option(
        "--template-date",
        metavar="DATE",
        help="What a chat template that asks for the date is told: YYYY-MM-DD or today.  "
        "[default: as in training]",
    ),
    click.option(
        "--allow-tokenizer-mismatch",
        is_flag=True,
        help="Take a base whose tokenizer is another one of the same size.",
    ),
    click.option(
        "--int8-head", is_flag=True, help="Keep the head in a byte a weight; needs torchao."
    ),
    click.option(
        "--base-generation-config",
        is_flag=True,
        help="Decode as the base's generation_config says, where no option is given.",
    ),
    PLACEMENT,
)
_BASE_MODEL = click.option(
    "--base-model",
    cls=OneOnly,
    help="Base to decode with.  [default: the one it was trained on]",
)
_SAMPLING = options(
    click.option("--max-new-tokens", default=128, help="Most tokens of an answer."),
    click.option("--temperature", type=Number(), default=0.0, help="0 is greedy."),
    click.option("--top-k", default=0, help="Most probable tokens to sample from; 0 is all."),
    click.option("--top-p", type=Number(), default=1.0, help="Nucleus to sample from."),
    click.option(
        "--min-p", type=Number(), default=0.0, help="Least probability, relative to the largest."
    ),
    click.option(
        "--repetition-penalty", type=Number(), default=1.0, help="1 leaves repetition alone."
    ),
    click.option("--seed", type=int, help="Of the sampling."),
)
_ALPHA = click.option(
    "--alpha",
    cls=OneOnly,
    type=Strength(),
    help="Strength; 0 is the base itself, 0:2,64:0.5 a schedule over tokens.  [default: 1.0]",
)


@command(
    """
  mav generate --head runs/head --prompt "How do I say no politely?" --alphas 0,1,2
  mav generate --head runs/head --prompt "Hello" --alpha 1.5 --stream
  mav generate --head runs/head --prompts prompts.jsonl --output answers.jsonl
"""
)
@_JOINED
@_BASE_MODEL
@click.option("--prompt", cls=OneOnly, help="A message, or a transcript that ends in 'Assistant:'.")
@click.option(
    "--prompts",
    "prompts_file",
    cls=OneOnly,
    type=click.Path(path_type=Path),
    help="File of prompts, one a line; or .jsonl with 'prompt' or 'messages', and 'alpha'.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Answers to --prompts, as JSON lines; the same command goes on after an interruption.",
)
@click.option("--batch-size", default=8, help="Prompts decoded together, with --output.")
@_ALPHA
@click.option(
    "--alphas", cls=OneOnly, type=Numbers(), help="Several strengths, in place of --alpha."
)
@_SAMPLING
@click.option("--num-beams", default=1, help="Beams to search with.")
@click.option("--stop", multiple=True, help="Text that ends an answer; may be given again.")
@click.option(
    "--kv-cache",
    type=click.Choice(["dynamic", "static", "none"]),
    default="dynamic",
    help="How the past is kept; static has its full size from the start.",
)
@click.option("--compile", is_flag=True, help="Compile base and head; needs --kv-cache static.")
@click.option("--stream", is_flag=True, help="Print the answer while it is written.")
@click.option(
    "--demo-switching",
    is_flag=False,
    flag_value="",
    metavar="[BASE]",
    help="Answer on the base, then on another one under the same head.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object an answer, a line each."
)
def generate_command(
    *,
    base_model: str | None,
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
    """Decode with a base and a head together, one forward pass a token."""
    if demo_switching is None and (prompt is None) == (prompts_file is None):
        raise click.UsageError("give either --prompt or --prompts")
    if alpha is not None and alphas is not None:
        raise click.UsageError("give either --alpha or --alphas")
    if stream and as_json:
        raise click.UsageError("--stream prints text as it comes, so it does not go with --json")
    if output is not None and (prompts_file is None or alphas or stream):
        raise click.UsageError("--output takes --prompts and one --alpha, without --stream")
    if batch_size < 1:
        raise click.UsageError(f"--batch-size: got {batch_size}, expected at least 1")
    if demo_switching is not None and (prompts_file or stream or as_json or alpha is not None):
        raise click.UsageError("--demo-switching takes --prompt and --alphas alone")
    from mav.pipeline.decoding.alpha import as_schedule
    from mav.pipeline.decoding.prompt_file import read_prompts, require_sound
    from mav.pipeline.preferences.prompt_format import require_prompt

    decoding, given = _decoding(others)
    if stream:
        decoding.require_streamable()
    if prompt is not None:
        require_prompt(prompt)
    if output is not None:
        assert prompts_file is not None
        _answer_file(prompts_file, output, alpha, given, batch_size, as_json, base_model, others)
        return
    lines = [] if prompts_file is None else read_prompts(prompts_file)
    if prompts_file is not None:
        require_sound(lines, prompts_file)
    mav, decoding = _load(base_model, given, others)
    if demo_switching is not None:
        from mav.pipeline.demo.switching import DEMO_PROMPT, demonstrate_switching

        demonstrate_switching(
            mav,
            demo_switching or None,
            [prompt or DEMO_PROMPT],
            alphas or (0.0, 1.0),
            decoding,
            say=click.echo,
        )
        return
    strengths = [as_schedule(1.0 if alpha is None else alpha)] if not alphas else [*alphas]
    asked = [prompt] if prompt is not None else [line.prompt for line in lines]
    for number, one in enumerate(asked):
        own = lines[number].alpha if lines else None
        for strength in [own] if own is not None and not alphas else strengths:
            if not as_json and (len(asked) > 1 or alphas):
                click.echo(f"--- alpha {as_schedule(strength)}: {_shown(one)}")
            if stream:
                for piece in mav.stream(one, strength, decoding):
                    click.echo(piece, nl=False)
                    sys.stdout.flush()
                click.echo()
                continue
            answer = mav.generate(one, strength, decoding)
            told = {**lines[number].fields, "line": lines[number].number} if lines else {}
            click.echo(json.dumps({**told, **answer.to_json()}) if as_json else answer.response)


@command(
    """
  mav chat --head runs/head
  mav chat --head runs/head --base-model meta-llama/Llama-2-7b-chat-hf --alpha 1.5
"""
)
@_JOINED
@_BASE_MODEL
@_ALPHA
@_SAMPLING
def chat_command(*, base_model: str | None, alpha: Any, **others: Any) -> None:
    """Talk in the terminal; /alpha 1.5 and /base ID change both on the fly, /help tells more."""
    from mav.pipeline.decoding.alpha import as_schedule
    from mav.pipeline.decoding.chat import Chat

    _, given = _decoding(others)
    mav, decoding = _load(base_model, given, others)
    chat = Chat(
        mav=mav,
        alpha=as_schedule(1.0 if alpha is None else alpha),
        decoding=decoding,
        say=say,
        given=given,
    )
    _converse(chat)


@command(
    """
  mav serve --head runs/head
  mav serve --head runs/head --base-model base-a --base-model base-b --port 8080
  mav serve --head runs/head --host 0.0.0.0 --api-key SECRET
"""
)
@_JOINED
@click.option(
    "--base-model",
    "bases",
    multiple=True,
    help="Base to serve; several may be chosen from.  [default: the one it was trained on]",
)
@click.option("--alpha", type=Number(), default=1.0, help="Strength where a request names none.")
@click.option("--host", default="127.0.0.1", help="Address to listen on.")
@click.option("--port", default=8000, help="Port to listen on; 0 takes a free one.")
@click.option(
    "--api-key",
    envvar="MAV_API_KEY",
    show_envvar=True,
    help="Key that clients must send; needed beyond this machine.",
)
@click.option("--max-rows", default=16, help="Answers decoded at once.")
@click.option("--max-queue", default=64, help="Requests that may wait.")
@click.option("--max-new-tokens", default=1024, help="Most tokens a request may ask for.")
@click.option("--max-prompt-tokens", default=8192, help="Most tokens of a prompt.")
def serve_command(*, bases: tuple[str, ...], **others: Any) -> None:
    """Serve an OpenAI-compatible API, and a page on which alpha is a slider."""
    from mav.pipeline.serving.options import ServeOptions
    from mav.pipeline.serving.run import serve

    serve(ServeOptions(bases=bases, **others), say=say)


def _decoding(others: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Take what says how tokens are chosen out of a command's options.

    Returns:
        It, and the fields of it that the user named.
    """
    from dataclasses import fields

    from mav.pipeline.decoding.options import Decoding

    context = click.get_current_context()
    named = {
        field.name: others.pop(field.name) for field in fields(Decoding) if field.name in others
    }
    given = {
        name: value
        for name, value in named.items()
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT
    }
    return Decoding(**named), given


def _shown(prompt: Any) -> str:
    return prompt.strip() if isinstance(prompt, str) else str(prompt[-1].get("content", "")).strip()


def _load(base_model: str | None, given: dict[str, Any], others: dict[str, Any]) -> tuple[Any, Any]:
    """Return head and base, and how tokens are chosen."""
    from mav.pipeline.decoding.inference import MAVInference

    mav = MAVInference(others.pop("head"), base_model, say=say, **others)
    decoding = mav.decoding(**given)
    unused = [one for one in decoding.unused if one.strip("-").replace("-", "_") in given]
    if unused:
        say(f"Without --temperature nothing is sampled, so {', '.join(unused)} changes nothing")
    return mav, decoding


def _answer_file(
    prompts: Path,
    output: Path,
    alpha: Any,
    given: dict[str, Any],
    batch_size: int,
    as_json: bool,
    base_model: str | None,
    others: dict[str, Any],
) -> None:
    from mav.pipeline.decoding.alpha import as_schedule
    from mav.pipeline.decoding.batch_file import answer_file, require_new
    from mav.pipeline.decoding.prompt_file import read_prompts

    require_new(output)
    read_prompts(prompts)
    mav, decoding = _load(base_model, given, others)
    found = answer_file(
        mav,
        prompts,
        output,
        as_schedule(1.0 if alpha is None else alpha),
        decoding,
        batch_size=batch_size,
        say=say,
    )
    failed = f", {found.failed:,} of them an error" if found.failed else ""
    print_result(as_json, found.to_json(), f"{output}: {found.lines:,} lines{failed}")
    if found.failed:
        raise SystemExit(1)


def _converse(chat: Any) -> None:
    terminal = sys.stdin.isatty()
    if terminal:
        import readline  # noqa: F401 (gives input() a history and editing)

        say(f"{chat.mav.base.id}, alpha {chat.alpha}. /help tells the commands.\n")
    while not chat.over:
        try:
            line = input("> " if terminal else "")
        except EOFError:
            if terminal:
                click.echo()
            break
        except KeyboardInterrupt:
            say("\n/quit or Ctrl-D leaves")
            continue
        try:
            answered = False
            for piece in chat.take(line):
                click.echo(piece, nl=False)
                sys.stdout.flush()
                answered = True
        except KeyboardInterrupt:
            answered = True
        if answered:
            click.echo()
