"""`mav chat`: a conversation in the terminal."""

import sys
from typing import Any

import click

from mav.cli_commands.shared.answering import (
    ALPHA,
    BASE_MODEL,
    HEAD_AND_BASE,
    SAMPLING,
    DecodingRequest,
)
from mav.cli_commands.shared.errors import command
from mav.cli_commands.shared.flags import with_flags


@command(
    """
  mav chat --head runs/head
  mav chat --head helpful=runs/a --head harmless=runs/b --alpha helpful=1,harmless=0.5
  mav chat --head runs/head --base-model meta-llama/Llama-2-7b-chat-hf --alpha 1.5
"""
)
@HEAD_AND_BASE
@BASE_MODEL
@ALPHA
@SAMPLING
def chat_command(*, alpha: Any, **others: Any) -> None:
    """Chat in the terminal; /alpha 1.5 and /base ID change alpha and base, /help lists more."""
    from mav.pipeline.decoding.chat import Chat

    request = DecodingRequest.of(others)
    strength = request.strength(alpha)
    mav, decoding = request.load()
    chat = Chat(
        mav=mav,
        alpha=strength,
        decoding=decoding,
        write=_write,
        given=dict(request.given),
    )
    _converse(chat)


def _write(line: str) -> None:
    """Print a message to standard error; standard output has only answers."""
    click.echo(with_flags(click.get_current_context(), line), err=True)


def _converse(chat: Any) -> None:
    terminal = sys.stdin.isatty()
    if terminal:
        import readline  # noqa: F401 (gives input() a history and editing)

        _write(f"{chat.mav.base.id}, alpha {chat.alpha}. /help lists the commands.\n")
    while not chat.over:
        try:
            line = input("> " if terminal else "")
        except EOFError:
            if terminal:
                click.echo()
            break
        except KeyboardInterrupt:
            _write("\n/quit or Ctrl-D leaves")
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
