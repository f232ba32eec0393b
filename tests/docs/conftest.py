"""The worlds that pages and examples are run in, each made once for all processes."""

from pathlib import Path

import pytest

from tests.docs.world import BASES, World, make_programs, make_world
from tests.support.running.once import made_once

_EXTRACT = f"""
cat pipeline/demo/sample/*-train.jsonl > pairs.jsonl
mav extract --base-model {BASES[0]} --dataset pairs.jsonl --output pairs.cache --pooled-size 576
"""
_TRAIN = "mav train --cache pairs.cache --output-dir runs/head --expansion-size 64 --report-to none"


@pytest.fixture(scope="session")
def world(warm_programs: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    """Bases and data; not to be written to."""
    programs = made_once(tmp_path_factory, "doc-programs", make_programs)
    folder = made_once(tmp_path_factory, "doc-world", make_world)
    return World(folder=folder, programs=(programs, warm_programs))


@pytest.fixture(scope="session")
def extracted(world: World, tmp_path_factory: pytest.TempPathFactory) -> World:
    """The same with `pairs.cache`, as the page on extracting leaves it."""
    return _after(world, tmp_path_factory, "doc-extracted", _EXTRACT)


@pytest.fixture(scope="session")
def trained(extracted: World, tmp_path_factory: pytest.TempPathFactory) -> World:
    """The same with `runs/head`, as the page on training leaves it, only smaller."""
    return _after(extracted, tmp_path_factory, "doc-trained", _TRAIN)


def _after(world: World, factory: pytest.TempPathFactory, name: str, script: str) -> World:
    def make(folder: Path) -> None:
        done = world.copy(folder).run(script)
        assert done.code == 0, done.err

    return World(folder=made_once(factory, name, make), programs=world.programs)
