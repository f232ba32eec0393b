"""What an engine is told of heads and base, which are checked as for every other command."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from mav.cache_schema.errors import MismatchError, UsageError
from mav.pipeline.engine import arguments, installed
from mav.pipeline.engine.arguments import prepare_engine
from mav.pipeline.engine.names import (
    architecture_of,
    heads_in,
    model_class,
    processor_class,
)
from mav.pipeline.engine.steering_config import SteeringConfig
from mav.vllm import engine_args
from tests.support.models.tiny import save_base, tiny_base
from tests.support.running.commands import done
from tests.support.steering.heads import KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_an_engine_gets_base_class_processor_and_heads(world: Path, kind: str) -> None:
    made = engine_args(str(world / kind), str(world / "base"), alpha=0.5)
    assert made["model"] == str(world / "base")
    assert made["hf_overrides"] == {"architectures": ["MAVLlamaForCausalLM"]}
    assert made["logits_processors"] == ["mav.pipeline.engine.processor:HeadProcessor"]
    config = SteeringConfig.of(json.loads(json.dumps(made["additional_config"])))
    assert (config.layers, config.alpha, config.names) == ((1, 2, 4), 0.5, ())
    assert config.heads[0].folder == str(world / kind)


def test_another_head_or_other_layers_make_another_configuration(world: Path) -> None:
    base = str(world / "base")
    first, second = (
        engine_args(str(world / name), base)["additional_config"] for name in ("mlp", "other")
    )
    assert first["mav"]["heads"][0]["digest"] != second["mav"]["heads"][0]["digest"]


def test_several_heads_are_named_in_the_processors_class(world: Path) -> None:
    heads = {"kind": str(world / "mlp"), "very-careful": str(world / "unembedding")}
    made = engine_args(heads, world / "base", alpha={"kind": 1, "very-careful": "0:1,4:0"})
    name = made["logits_processors"][0].partition(":")[2]
    assert name.isidentifier()
    assert heads_in(name) == ("kind", "very-careful")
    assert SteeringConfig.of(made["additional_config"]).alpha == {
        "kind": 1.0,
        "very-careful": "0:1,4:0",
    }
    with pytest.raises(UsageError, match="expected a strength for each head"):
        engine_args(heads, world / "base")


def test_names_of_classes_are_read_back() -> None:
    assert architecture_of(model_class("LlamaForCausalLM", "0.32.0"), "0.32.0") == (
        "LlamaForCausalLM"
    )
    assert architecture_of(model_class("LlamaForCausalLM", "0.31.0"), "0.32.0") is None
    assert heads_in(processor_class(())) == ()
    assert heads_in("HeadProcessor_zz") is None
    assert heads_in("Something") is None


@pytest.mark.parametrize("alpha", [101, "x", "0:1e39"])
def test_a_servers_alpha_is_bounded_too(world: Path, alpha: Any) -> None:
    with pytest.raises(UsageError, match=r"^alpha: got"):
        engine_args(str(world / "mlp"), world / "base", alpha=alpha)


def test_a_base_of_another_vocabulary_is_refused(world: Path, tmp_path: Path) -> None:
    save_base(tiny_base(vocab_size=301), tmp_path)
    with pytest.raises(MismatchError, match="301"):
        engine_args(str(world / "mlp"), tmp_path)


def test_an_unembedding_needs_its_width(world: Path, tmp_path: Path) -> None:
    save_base(tiny_base(), tmp_path)
    with pytest.raises(MismatchError, match="adds to last states 64 wide"):
        engine_args(str(world / "unembedding"), tmp_path)


def test_a_configuration_that_was_changed_is_refused(world: Path) -> None:
    plain = engine_args(str(world / "mlp"), world / "base")["additional_config"]["mav"]
    for wrong in (None, {}, {"mav": {**plain, "more": 1}}, {"mav": {**plain, "heads": []}}):
        with pytest.raises(UsageError, match=r"^additional_config: "):
            SteeringConfig.of(wrong)


def test_a_release_that_was_not_tested_is_refused(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arguments, "installed_version", lambda: "0.99.1")
    with pytest.raises(UsageError, match=r"^vLLM 0\.99\.1 was not tested"):
        engine_args(str(world / "mlp"), world / "base")
    made = engine_args(str(world / "mlp"), world / "base", allow_untested_vllm=True)
    assert SteeringConfig.of(made["additional_config"]).allow_untested_vllm


def test_the_command_line_says_the_same(world: Path) -> None:
    given = ["engine-args", "--head", world / "mlp", "--base-model", world / "base"]
    prepared = prepare_engine(str(world / "mlp"), world / "base")
    assert json.loads(done(*given, "--json")) == prepared.arguments
    words = shlex.split(done(*given))
    assert words[:3] == ["vllm", "serve", str(world / "base")]
    told = json.loads(words[words.index("--additional-config") + 1])
    assert told == prepared.arguments["additional_config"]


def test_without_vllm_the_server_says_what_to_install(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installed, "find_spec", lambda _: None)
    with pytest.raises(UsageError, match=r"pip install 'mav-align\[vllm\]'") as told:
        installed.require_vllm()
    assert "\n" not in str(told.value)
    assert installed.installed_version() is None
