"""Runs that several tests look at."""

from pathlib import Path

import pytest

from tests.support.models.checkpoints import save
from tests.support.models.tiny import make_cache
from tests.support.running.runs import run


@pytest.fixture(scope="session")
def finished(tiny_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs that was never interrupted; read only."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    report = run(tiny_cache, folder, num_epochs=2, eval_steps=2)
    assert (report.output_dir, report.steps) == (folder, 16)
    assert (report.alignment_parameters, report.total_parameters) == (5628, 8732)
    return folder


@pytest.fixture(scope="session")
def small_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of 12 pairs from the base of `tiny_cache`."""
    return make_cache(tmp_path_factory.mktemp("small"), pairs=12)


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """A run that saved three checkpoints."""
    for step in (40, 60, 80):
        save(tmp_path / "run", step)
    return tmp_path / "run"
