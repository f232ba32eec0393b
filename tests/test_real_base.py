"""SmolLM2-135M on real HH-RLHF pairs, where they are at hand, and the demo as a user runs it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cache_schema.errors import BaseModelError
from cache_schema.reader import CacheReader
from pipeline.base_model import BaseModel, load_base
from pipeline.data_sources import DataSource
from pipeline.demo import installed_base
from pipeline.extract import extract
from pipeline.extract_options import ExtractOptions
from tests.test_cached_equals_live import assert_equals_live

HH = Path(__file__).parents[2] / "shared" / "hh-rlhf" / "harmless-base-dev.jsonl.gz"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def smollm2() -> BaseModel:
    try:
        path = installed_base()
    except BaseModelError as error:
        pytest.skip(str(error))
    return load_base(str(path), dtype=torch.float32, device="cpu")


@pytest.mark.skipif(not HH.exists(), reason="needs the HH-RLHF pairs beside the project")
@pytest.mark.parametrize("pooled_size", [576, 256])
def test_cached_equals_live_in_float32(
    smollm2: BaseModel, tmp_path: Path, pooled_size: int
) -> None:
    root = tmp_path / "cache"
    extract(
        ExtractOptions(
            base_model="SmolLM2",
            data=DataSource(id=str(HH), limit=12),
            output=root,
            dtype="float32",
            pooled_size=pooled_size,
        ),
        base=smollm2,
    )
    assert CacheReader(root).manifest.data.rows == 12
    assert_equals_live(root, smollm2)


def test_the_demo_and_its_second_run(smollm2: BaseModel, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cli", "demo", "--output-dir", str(tmp_path / "demo")]
    first = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "alpha 0.5" in first.stdout and "Written to" in first.stdout
    second = subprocess.run(command, capture_output=True, text=True, check=True)
    assert second.stdout.count("left as it is") == 3
    lines = (tmp_path / "demo" / "head" / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line) for line in lines]
    assert [line["eval_loss"] for line in losses if "eval_loss" in line][-1] < 0.66
