"""The demo's head as a file to hand on: whole, the same every time, and usable."""

import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from mav.cache_schema.errors import BaseModelError, MAVError
from mav.pipeline.decoding.inference import MAVInference
from mav.pipeline.demo.release import NAME, Released, release
from mav.pipeline.demo.run import ALPHAS, PROMPTS, DemoPaths, installed_base
from mav.pipeline.training.options import TrainOptions
from mav.pipeline.training.train import train
from tests.support.models.tiny import make_cache, save_base, tiny_base
from tests.support.running.limits import SCRIPT


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the demo leaves, in small: a base, caches, and a head trained as the demo does."""
    folder = tmp_path_factory.mktemp("demo")
    save_base(tiny_base(), folder / "base")
    paths = DemoPaths(folder=folder)
    make_cache(folder).rename(paths.training_cache)
    make_cache(folder, pairs=8).rename(paths.held_out_cache)
    trained(paths, paths.head)
    return folder


def trained(paths: DemoPaths, output: Path) -> None:
    train(
        TrainOptions(
            cache=paths.training_cache,
            eval_cache=paths.held_out_cache,
            output_dir=output,
            head_type="unembedding",
            objective="credit",
            report_to="none",
        )
    )


def released(work: Path, output: Path) -> Released:
    return release(work, output, str(work / "base"))


def test_a_second_training_and_release_is_the_same_bit_for_bit(work: Path, tmp_path: Path) -> None:
    first = released(work, tmp_path / "first")
    again = DemoPaths(folder=tmp_path / "again")
    again.folder.mkdir()
    for name in ("base", "train.cache", "heldout.cache"):
        (again.folder / name).symlink_to(work / name)
    trained(again, again.head)
    second = release(again.folder, tmp_path / "second", str(work / "base"))
    assert second.weights_digest == first.weights_digest
    assert second.archive.read_bytes() == first.archive.read_bytes()
    weights = (first.folder / "model.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() == first.weights_digest


def test_the_archive_is_a_head_with_its_card(work: Path, tmp_path: Path) -> None:
    found = released(work, tmp_path / "out")
    with zipfile.ZipFile(found.archive) as archive:
        assert archive.testzip() is None
        names = ["README.md", "config.json", "model.safetensors"]
        assert archive.namelist() == [f"{NAME}/{name}" for name in names]
        archive.extractall(tmp_path / "unpacked")
    with MAVInference(str(tmp_path / "unpacked" / NAME), str(work / "base")) as mav:
        assert mav.generate_response("Name a tree.", alpha=1.0, max_new_tokens=2) is not None
    card = (tmp_path / "unpacked" / NAME / "README.md").read_text(encoding="utf-8")
    for title in (
        "## Measured",
        "## Use",
        "## The base",
        "## What it writes",
        "## How it was made",
    ):
        assert title in card
    assert "| objective | `credit`, beta 1, 3 steps" in card
    assert found.weights_digest in card
    for prompt in PROMPTS:
        table = card.split(f"**{prompt}**")[1].split("\n\n")[1].splitlines()
        assert [row.split(" | ")[0] for row in table[2:]] == [f"| {alpha:g}" for alpha in ALPHAS]


def test_what_was_there_is_replaced(work: Path, tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir()
    (tmp_path / NAME / "left").touch()
    assert {path.name for path in released(work, tmp_path).folder.iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
    }


def test_without_the_demo_there_is_nothing_to_release(tmp_path: Path) -> None:
    with pytest.raises(MAVError, match="head"):
        release(tmp_path / "nowhere", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_real_head_is_reproduced_bit_for_bit(tmp_path: Path) -> None:
    try:
        installed_base()
    except BaseModelError as error:
        pytest.skip(str(error))
    digests = set()
    for name in ("one", "two"):
        command = [sys.executable, "-m", "mav.pipeline.demo.release", "--work", name]
        ran = subprocess.run(
            [*command, "--output", f"{name}-out"],
            cwd=tmp_path,
            env=os.environ | {"OMP_NUM_THREADS": "2"},
            capture_output=True,
            text=True,
            check=True,
            timeout=SCRIPT,
        )
        digests.add(tuple(line.split()[0] for line in ran.stdout.splitlines()[-2:]))
    assert len(digests) == 1
