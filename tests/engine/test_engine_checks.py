"""What an engine refuses to have heads in, with configurations made up."""

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from mav.cache_schema.errors import MAVError
from mav.pipeline.engine import engine_checks
from mav.pipeline.engine.arguments import engine_args
from mav.pipeline.engine.engine_checks import check_engine, check_model, check_output_embedding
from mav.pipeline.engine.steering_config import SteeringConfig
from mav.pipeline.head.storage import read_head_config


@pytest.fixture(autouse=True)
def tested_release(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("vllm", "vllm.version"):
        module = ModuleType(name)
        module.__version__ = "0.32.0+cpu"  # type: ignore[attr-defined]
        module.__spec__ = ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, module)


def told(world: Path, kind: str = "mlp") -> SteeringConfig:
    made = engine_args(str(world / kind), world / "base", allow_untested_vllm=True)
    return SteeringConfig.of(made["additional_config"])


def engine(speculation: Any = None, lora: Any = None, **parallel: Any) -> Any:
    return SimpleNamespace(
        parallel_config=SimpleNamespace(**{"pipeline_parallel_size": 1, **parallel}),
        speculative_config=speculation,
        lora_config=lora,
    )


def model(config: SteeringConfig, **changes: Any) -> Any:
    given = {"depth": 4, "vocabulary": 300, "width": 64, "digest": config.tokenizer_digest}
    given |= changes
    return SimpleNamespace(
        model="base",
        tokenizer="base",
        skip_tokenizer_init=False,
        hf_text_config=SimpleNamespace(attn_logit_softcapping=given.get("softcapping")),
        get_total_num_hidden_layers=lambda: given["depth"],
        get_vocab_size=lambda: given["vocabulary"],
        get_hidden_size=lambda: given["width"],
        digest=given["digest"],
    )


@pytest.mark.parametrize("kind", ["mlp", "unembedding"])
def test_a_plain_engine_is_taken(world: Path, kind: str) -> None:
    check_engine(engine(), told(world, kind))


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (engine(pipeline_parallel_size=2), "pipeline_parallel_size: got 2, expected 1"),
        (engine(enable_batch_sharded_sampling=True), "enable_batch_sharded_sampling: got True"),
        (engine(SimpleNamespace(method="ngram")), "got ngram, .* no logits processors of others"),
        (engine(SimpleNamespace(method="eagle3")), "got eagle3, .* reads states in the place"),
        (engine(SimpleNamespace(method="dflash")), "got dflash, .* reads states in the place"),
        (engine(lora=object()), "enable_lora: got True, .* belong to no adapter"),
    ],
)
def test_what_cannot_be_right_is_refused_in_one_line(world: Path, asked: Any, reason: str) -> None:
    with pytest.raises(MAVError, match=reason) as refused:
        check_engine(asked, told(world, "unembedding"))
    assert "\n" not in str(refused.value)


def test_a_shift_needs_a_plain_output_embedding() -> None:
    class UnquantizedEmbeddingMethod:
        """As vLLM calls it."""

    class GPTQMethod:
        """Another."""

    check_output_embedding("base", None)
    check_output_embedding("base", UnquantizedEmbeddingMethod())
    with pytest.raises(MAVError, match=r"base: got a quantized output embedding \(GPTQMethod\)"):
        check_output_embedding("base", GPTQMethod())


def test_heads_on_the_logits_take_adapters(world: Path) -> None:
    check_engine(engine(lora=object()), told(world, "bottleneck"))


def test_a_release_that_was_not_tested_is_refused(world: Path) -> None:
    sys.modules["vllm.version"].__version__ = "0.33.0"  # type: ignore[attr-defined]
    check_engine(engine(), told(world))  # allowed in `told`
    plain = SteeringConfig.of({"mav": {**told(world).to_json(), "allow_untested_vllm": False}})
    with pytest.raises(MAVError, match=r"vLLM 0\.33\.0 was not tested"):
        check_engine(engine(), plain)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"depth": 5}, "got 5 layers, expected 4"),
        ({"vocabulary": 301}, "got a vocabulary of 301 tokens, expected 300"),
        ({"width": 32}, "got states 32 wide, expected 64"),
        ({"digest": "0" * 64}, "got a tokenizer of digest 000000000000"),
        ({"softcapping": 50.0}, "caps the logits of its attention"),
    ],
)
def test_another_base_than_the_one_checked_is_refused(
    world: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], reason: str
) -> None:
    monkeypatch.setattr(engine_checks, "_digest_of_tokenizer", lambda config: config.digest)
    config = told(world, "unembedding")
    sizes = [read_head_config(world / "unembedding")[0]]
    check_model(model(config), config, sizes, in_transformers=True)
    with pytest.raises(MAVError, match=reason):
        check_model(model(config, **changes), config, sizes, in_transformers=True)


def test_the_embeddings_are_not_read_in_transformers_code(world: Path) -> None:
    config = SteeringConfig.of({"mav": {**told(world).to_json(), "layers": [0, 2, 4]}})
    with pytest.raises(MAVError, match="does not hand out the embeddings"):
        check_model(model(config), config, [], in_transformers=True)
