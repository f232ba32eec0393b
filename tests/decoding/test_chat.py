"""A conversation in the terminal: its turns, its commands, and what it forgets."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from mav import cli
from mav.pipeline.decoding.alpha import as_schedule
from mav.pipeline.decoding.chat import HELP, Chat
from mav.pipeline.decoding.inference import MAVInference
from mav.pipeline.decoding.options import GenerationOptions
from tests.support.models.tiny import save_base, tiny_base
from tests.support.steering.heads import write_base_and_head


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base_and_head(tmp_path_factory.mktemp("chat"))


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def chat(folder: Path, said: list[str]) -> Chat:
    mav = MAVInference(str(folder / "head"), tiny_base())
    return Chat(
        mav=mav,
        alpha=as_schedule(1.0),
        decoding=GenerationOptions(max_new_tokens=8),
        write=said.append,
    )


def turns_asked(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, str]]:
    """Record what the model is asked, with the strength; it answers `a1`, `a2` and so on."""
    asked: list[tuple[Any, str]] = []

    def stream(turns: Any, alpha: Any, _: GenerationOptions) -> Iterator[str]:
        asked.append(([turn["content"] for turn in turns], str(alpha)))
        yield "a"
        yield str(len(asked))

    monkeypatch.setattr(chat.mav, "stream", stream)
    return asked


def test_an_answer_is_that_of_the_model(chat: Chat) -> None:
    want = chat.mav.generate("Hello", 1.0, GenerationOptions(max_new_tokens=8)).response
    assert "".join(chat.take("Hello\n")).strip() == want


def test_turns_are_remembered_until_reset(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = turns_asked(chat, monkeypatch)
    for line in ("one", "two", "/again", "/reset", "three", "", "/again"):
        list(chat.take(line))
    assert [turns for turns, _ in asked] == [
        ["one"],
        ["one", "a1", "two"],
        ["one", "a1", "two"],
        ["three"],
        ["three"],
    ]


def test_alpha_changes_on_the_fly(
    chat: Chat, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = turns_asked(chat, monkeypatch)
    for line in ("one", "/alpha 1.5", "two", "/alpha 0:2,8:0", "three", "/alpha nan", "four"):
        list(chat.take(line))
    assert [alpha for _, alpha in asked] == ["1", "1.5", "0:2,8:0", "0:2,8:0"]
    assert said[:2] == ["alpha 1.5", "alpha 0:2,8:0"]
    assert "expected a finite number" in said[2]


def test_the_base_changes_on_the_fly(chat: Chat, said: list[str], tmp_path: Path) -> None:
    other = save_base(tiny_base(num_hidden_layers=6, seed=3), tmp_path / "other")
    list(chat.take(f"/base {other}"))
    assert said[-1] == f"base {other}"
    assert chat.mav.base.num_hidden_layers == 6
    list(chat.take("/base /nowhere"))
    assert "no such file" in said[-1]
    assert "".join(chat.take("Hello")), "the conversation goes on with the base in use"


@pytest.mark.parametrize("line", ["/help", "/again"])
def test_help_shows_the_commands(chat: Chat, said: list[str], line: str) -> None:
    assert not list(chat.take(line))
    assert said == [HELP]


@pytest.mark.parametrize("line", ["/", "/alpha", "/dance", "/base", "/home/me is what?"])
def test_what_is_no_command_is_not_sent_and_shows_them(
    chat: Chat, said: list[str], line: str
) -> None:
    assert not list(chat.take(line))
    assert said[-1] == HELP
    assert said[0].startswith(f"{line.split()[0]}: no such command")
    assert chat._turns == []


def test_a_message_may_begin_with_a_slash(chat: Chat) -> None:
    list(chat.take("//home is what?"))
    assert chat._turns[0]["content"] == "/home is what?"


@pytest.mark.parametrize(
    "line",
    ["/tokens inf", "/tokens nan", "/tokens 2.7", "/temperature nan", "/temperature inf", "\udcff"],
)
def test_what_cannot_be_is_said_and_the_conversation_goes_on(
    chat: Chat, said: list[str], line: str
) -> None:
    before = chat.decoding
    assert not list(chat.take(line))
    assert any("expected" in text or "not Unicode text" in text for text in said)
    assert chat.decoding == before
    assert "".join(chat.take("Hello"))


def test_a_temperature_next_to_nothing_is_none(chat: Chat) -> None:
    want = "".join(chat.take("Hello"))
    list(chat.take("/reset"))
    list(chat.take("/temperature 1e-40"))
    assert "".join(chat.take("Hello")) == want


def test_settings_are_checked(chat: Chat, said: list[str]) -> None:
    for line in ("/tokens 0", "/temperature -1", "/temperature x"):
        list(chat.take(line))
    assert len(said) == 3
    assert all("expected" in text for text in said)
    assert chat.decoding == GenerationOptions(max_new_tokens=8)


def test_what_was_broken_off_was_said(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = turns_asked(chat, monkeypatch)
    answer = chat.take("one")
    assert next(answer) == "a"
    answer.close()  # type: ignore[attr-defined]
    list(chat.take("two"))
    assert asked[-1][0] == ["one", "a", "two"]


def test_the_oldest_turns_go_when_the_base_cannot_read_them_all(
    chat: Chat, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = turns_asked(chat, monkeypatch)
    for number in range(12):
        list(chat.take(f"message {number} about chairs and bread"))
    assert asked[-1][0][-1].startswith("message 11")
    assert not asked[-1][0][0].startswith("message 0")
    assert "no longer fit" in said[-1]
    list(chat.take("bread " * 300))
    assert "the base can read 256" in said[-1]


def test_the_command_reads_lines_and_ends(folder: Path) -> None:
    options = ["--head", folder / "head", "--base-model", folder / "base", "--dtype", "float32"]
    result = CliRunner().invoke(
        cli.main,
        list(map(str, ["chat", *options, "--max-new-tokens", 4])),
        input="Hello\n/alpha 2\nHello\n/quit\nnot read\n",
    )
    assert result.exit_code == 0, result.output
    assert "alpha 2" in result.stderr
    assert len(result.stdout.splitlines()) >= 2
