"""The page on what an extraction costs says what the arithmetic gives, and that is the format's."""

import json

import pytest
import torch
import transformers

from benchmarks import cost
from benchmarks.cost import LLAMAS, Pairs, Shape
from mav.cache_schema.arrays import bytes_per_token
from tests.support.caches.manifests import changed

ALL = Pairs(count=160_800, tokens=372.0, response_tokens=150.0)


def test_the_page_has_the_table() -> None:
    page = cost.PAGE.read_text(encoding="utf-8")
    assert cost.with_table(page, cost.table(ALL)) == page, (
        "docs/cost.md is not what the arithmetic gives: run `python -m benchmarks.cost --write`"
    )


@pytest.mark.parametrize("shape", LLAMAS, ids=lambda shape: shape.name)
def test_sizes_are_those_of_the_bases_and_of_the_format(shape: Shape) -> None:
    inner = {4096: 11008, 5120: 13824, 8192: 28672}[shape.hidden]
    config = transformers.LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.hidden // 128,
        num_key_value_heads=8 if shape.name == "70B" else shape.hidden // 128,
    )
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    decoder = sum(it.numel() for it in model.model.layers.parameters())
    assert shape.decoder_weights == pytest.approx(decoder, rel=1e-3)
    width = min(shape.hidden, 4096)
    manifest = changed("states", pooled_size=4096, stored_width=width)
    base = changed(
        "base", hidden_size=shape.hidden, num_hidden_layers=shape.layers, vocab_size=shape.vocab
    ).base
    layers = (1, shape.layers // 2, shape.layers)
    manifest = type(manifest)(
        **{**vars(manifest), "base": base}
        | {"states": changed("states", layers=layers, stored_width=width).states}
    )
    assert cost.bytes_per_token(shape) == bytes_per_token(manifest)


def test_json_is_of_other_data_too(capsys: pytest.CaptureFixture[str]) -> None:
    cost.main(["--json", "--pairs", "10", "--tokens", "100", "--response-tokens", "40"])
    found = json.loads(capsys.readouterr().out)
    seven = found["bases"][0]
    assert seven["flop"] == pytest.approx(10 * 100 * (2 * 6.476e9 + 4 * 32 * 4096 * 50))
    assert seven["cache_bytes"] == 10 * 40 * 24_580 + 2 * 32000 * 4096
    hours = seven["gpu_hours"]
    assert hours["A100"] > hours["L40S"] > hours["H100"]
