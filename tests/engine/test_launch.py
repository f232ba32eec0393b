"""The program that `mav serve --engine vllm` becomes."""

from pathlib import Path
from typing import Any

import jinja2
import pytest

from mav.cache_schema.errors import UsageError
from mav.pipeline.engine import launch
from mav.pipeline.engine.front_settings import ENVIRONMENT, FrontSettings
from mav.pipeline.engine.launch import Launch, prepare_launch
from mav.pipeline.preferences.transcripts import transcript_of
from mav.pipeline.serving.options import ServeOptions
from tests.support.running.commands import mav

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "  Name a tree.\n"},
    {"role": "assistant", "content": "Oak."},
    {"role": "user", "content": "Another?"},
]


def made(world: Path, *words: str, given: tuple[str, ...] = (), **options: Any) -> Launch:
    asked = ServeOptions(head=str(world / "mlp"), bases=(str(world / "base"),), **options)
    return prepare_launch(asked, given, words)


def test_vllms_server_is_started_with_heads_front_and_options(world: Path) -> None:
    program = made(world, "--max-model-len", "128", port=0, dtype="float32", alpha=0.5)
    words = [*program.words]
    assert words[1:3] == ["-m", "vllm.entrypoints.openai.api_server"]
    assert words[-2:] == ["--max-model-len", "128"]
    for flag, value in (
        ("--model", str(world / "base")),
        ("--served-model-name", "base"),
        ("--host", "127.0.0.1"),
        ("--port", "0"),
        ("--dtype", "float32"),
        ("--generation-config", "vllm"),
        ("--middleware", "mav.pipeline.engine.front.Front"),
    ):
        assert words[words.index(flag) + 1] == value
    settings = FrontSettings.of_text(program.environment[ENVIRONMENT])
    assert (settings.alpha, settings.transcript, settings.local_only) == (0.5, True, True)


def test_vllm_names_the_base_as_mavs_own_server_would(world: Path) -> None:
    words = [*made(world, served_model_name=("helper",)).words]
    assert words.count("--served-model-name") == 1
    assert words[words.index("--served-model-name") :][1:3] == ["helper", "--host"]


def test_a_key_is_not_a_word_that_others_can_read(world: Path) -> None:
    program = made(world, host="0.0.0.0", api_key="secret")
    assert "secret" not in program.words
    assert program.environment["VLLM_API_KEY"] == "secret"
    assert not FrontSettings.of_text(program.environment[ENVIRONMENT]).local_only


@pytest.mark.parametrize("name", launch._INSTEAD)
def test_options_of_mavs_own_server_name_what_takes_their_place(world: Path, name: str) -> None:
    with pytest.raises(UsageError, match=rf"^{name}: is an option of MAV's own server; "):
        made(world, given=(name,))


@pytest.mark.parametrize("word", ["--middleware", "--logits_processors=x", "--api-key"])
def test_what_is_set_here_is_not_taken_from_vllms_options(world: Path, word: str) -> None:
    with pytest.raises(UsageError, match="is set by `mav serve`"):
        made(world, word, "x")


def test_vllm_loads_one_base(world: Path) -> None:
    asked = ServeOptions(head=str(world / "mlp"), bases=("a", "b"))
    with pytest.raises(UsageError, match=r"^base_model: got 2, expected one"):
        prepare_launch(asked, (), ())


def test_the_template_writes_the_transcripts_that_heads_are_trained_on(world: Path) -> None:
    words = [*made(world).words]
    template = Path(words[words.index("--chat-template") + 1]).read_text(encoding="utf-8")
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    assert environment.from_string(template).render(messages=MESSAGES) == transcript_of(MESSAGES)


def test_the_command_becomes_that_program(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    became: list[list[str]] = []
    monkeypatch.setattr(launch, "require_vllm", lambda: None)
    monkeypatch.setattr("os.execve", lambda _, words, __: became.append(words))
    head, base = str(world / "mlp"), str(world / "base")
    given = ["serve", "--engine", "vllm", "--head", head, "--base-model", base]
    assert mav(*given, "--port", "0", "--", "--seed", "3").exit_code == 0
    assert became[0][-2:] == ["--seed", "3"]
    refused = mav(*given, "--max-rows", "3")
    assert refused.exit_code == 2
    assert "--max-rows: is an option of MAV's own server" in refused.stderr


def test_vllms_options_are_for_vllm() -> None:
    refused = mav("serve", "--head", "h", "--", "--seed", "3")
    assert refused.exit_code == 2
    assert "got --seed, which is for --engine vllm alone" in refused.stderr


def test_without_vllm_the_command_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mav.pipeline.engine.installed.find_spec", lambda _: None)
    refused = mav("serve", "--engine", "vllm", "--head", "h")
    assert refused.exit_code == 2
    assert "pip install 'mav-align[vllm]'" in refused.stderr
    assert "Traceback" not in refused.output
