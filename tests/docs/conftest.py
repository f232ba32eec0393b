"""The worlds that pages and examples are run in."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.world import BASES, World, make_world, warm_python

_EXTRACT = f"""
cat pipeline/demo/sample/*-train.jsonl > pairs.jsonl
mav extract --base-model {BASES[0]} --dataset pairs.jsonl --output pairs.cache --pooled-size 576
"""
_TRAIN = "mav train --cache pairs.cache --output-dir runs/head --expansion-size 64 --report-to none"


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Bases and data; not to be written to."""
    with warm_python(tmp_path_factory.mktemp("warm")) as programs:
        yield make_world(tmp_path_factory.mktemp("world") / "docs", programs)


@pytest.fixture(scope="session")
def extracted(world: World, tmp_path_factory: pytest.TempPathFactory) -> World:
    """The same with `pairs.cache`, as the page on extracting leaves it."""
    return _after(world, tmp_path_factory.mktemp("extracted") / "docs", _EXTRACT)


@pytest.fixture(scope="session")
def trained(extracted: World, tmp_path_factory: pytest.TempPathFactory) -> World:
    """The same with `runs/head`, as the page on training leaves it, only smaller."""
    return _after(extracted, tmp_path_factory.mktemp("trained") / "docs", _TRAIN)


def _after(world: World, folder: Path, script: str) -> World:
    copy = world.copy(folder)
    found = copy.run(script)
    assert found.code == 0, found.err
    return copy
