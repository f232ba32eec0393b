"""What a schema costs is measured on as many tokens with it as without."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import json_schema
from tests.support.models.tiny import HIDDEN, save_base, tiny_base


def test_both_are_timed_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = save_base(tiny_base(), tmp_path / "base")
    asked = ("--new-tokens", "12", "--repeats", "1", "--rows", "2", "--pooled-size", str(HIDDEN))
    json_schema.main(["--base-model", str(base), *asked])
    found = json.loads(capsys.readouterr().out)
    assert found["rows"] == 2
    assert torch.is_grad_enabled()
    for name in ("ms_per_token", "ms_per_token_with_schema", "ratio", "vocabulary_seconds"):
        assert found[name] > 0
