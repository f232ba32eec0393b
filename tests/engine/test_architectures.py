"""Each architecture of the catalogue is said to run in vLLM, to be refused or not to be tried."""

import json
import logging
from pathlib import Path

import pytest

from mav.cache_schema.errors import UsageError
from mav.pipeline.engine.architectures import NOT_TRIED, REFUSED, RUNS_IN, check_architecture
from mav.pipeline.engine.arguments import engine_args
from tests.support.models.architectures import CATALOGUE
from tests.support.models_page import architecture_of

CASES = {architecture_of(variant.model_type) for variant in CATALOGUE.values()}


def test_the_catalogue_is_in_the_table_once() -> None:
    said = [*RUNS_IN, *REFUSED, *NOT_TRIED]
    assert len(said) == len({*said})
    assert {*said} == CASES


@pytest.mark.parametrize("architecture", REFUSED)
def test_what_cannot_have_heads_is_refused_in_one_line(architecture: str) -> None:
    with pytest.raises(UsageError, match="use `mav serve`") as refused:
        check_architecture("base", architecture)
    assert "\n" not in str(refused.value)


def test_what_was_not_tested_and_what_is_slower_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        check_architecture("base", "LlamaForCausalLM")
        assert not caplog.messages
        check_architecture("base", "GemmaForCausalLM")
        check_architecture("base", "SomeForCausalLM")
    slower, untested = caplog.messages
    assert "in transformers' modelling code" in slower
    assert "SomeForCausalLM was not tested" in untested


def test_arguments_are_refused_for_a_base_that_cannot_have_heads(
    world: Path, tmp_path: Path
) -> None:
    for file in (world / "base").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config["architectures"] = ["BloomForCausalLM"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="BloomForCausalLM cannot have heads in vLLM"):
        engine_args(str(world / "mlp"), tmp_path, allow_untested_vllm=True)
