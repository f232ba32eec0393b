"""How a command ends that was stopped, or that a mistake in the program ends."""

from pathlib import Path

import pytest

from tests.support.running.commands import extract_args, mav
from tests.support.running.refusals import World


def test_an_interrupt_says_how_to_go_on(
    world: World, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mav.pipeline.extraction.extract.extract", interrupted)
    result = mav(*extract_args(world.base, world.data, output))
    assert result.exit_code == 130
    assert "resumes where it stopped" in result.stderr


def test_a_mistake_in_the_program_keeps_its_traceback(
    world: World, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mistaken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("mav.pipeline.extraction.extract.extract", mistaken)
    assert isinstance(
        mav(*extract_args(world.base, world.data, output)).exception, ZeroDivisionError
    )
