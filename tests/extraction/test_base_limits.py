"""Lengths and options that a base does not take are refused, and as early as can be."""

from pathlib import Path
from typing import Any, Final

import pytest

from mav.cache_schema.errors import BaseModelError, UsageError
from mav.pipeline.base.model import BaseModel
from mav.pipeline.extraction.extract import extract
from mav.pipeline.extraction.limits import require_readable
from mav.pipeline.extraction.model_checks import check_base
from mav.pipeline.extraction.options import ExtractOptions
from mav.pipeline.preferences.reader import PreferencePair
from mav.pipeline.preferences.sources import DataSource
from mav.pipeline.preferences.tokenization import TokenizedPairs, tokenize_pairs
from tests.support.models.tiny import make_cache, save_base, tiny_base, tiny_tokenizer
from tests.support.steering.live import assert_equals_live

STEADY: Final = 64
LONGROPE: Final[dict[str, Any]] = {
    "max_position_embeddings": 1024,
    "original_max_position_embeddings": STEADY,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [1.0] * 4,
        "long_factor": [4.0, 5.0, 6.0, 8.0],
        "original_max_position_embeddings": STEADY,
    },
}
DYNAMIC: Final[dict[str, Any]] = {
    "max_position_embeddings": STEADY,
    "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0},
}


def pairs_of(*lengths: int) -> TokenizedPairs:
    """Pairs whose texts have so many tokens, the last of which is not read."""
    tokenizer = tiny_tokenizer()
    prompt = "\n\nHuman: a?\n\nAssistant:"
    begun = len(tokenizer(prompt)["input_ids"])
    found = [
        PreferencePair(
            prompt=prompt,
            chosen="\x01" * (length - begun),
            rejected=chr(2 + number),
            source_row=number,
        )
        for number, length in enumerate(lengths)
    ]
    pairs = tokenize_pairs(found, tokenizer, 1000)
    total = pairs.bounds[:, 1] - pairs.bounds[:, 0] + pairs.response_length[:, 0]
    assert sorted(total - 1) == sorted(lengths)
    return pairs


@pytest.mark.parametrize(
    ("architecture", "settings", "most", "told"),
    [
        ("gpt2", {"n_positions": 96}, 96, "reads at most 96; use `max_length` 96"),
        ("llama", {"max_position_embeddings": 96}, 96, "reads at most 96; use `max_length` 96"),
        ("phi3", LONGROPE, STEADY, r"rope_type longrope.*use `max_length` 64"),
        ("llama", DYNAMIC, STEADY, "reads at most 64; use `max_length` 64"),
    ],
)
def test_texts_beyond_what_a_base_reads(
    architecture: str, settings: dict[str, Any], most: int, told: str
) -> None:
    config = tiny_base(architecture, **settings).config
    require_readable("it", pairs_of(20, most), config)
    with pytest.raises(UsageError, match=rf"a text has {most + 1} tokens, but.*{told}"):
        require_readable("it", pairs_of(20, most + 1), config)


def test_kinds_of_layers_with_rotary_embeddings_of_their_own() -> None:
    config = tiny_base("gemma3").config
    config.rope_parameters["full_attention"] = LONGROPE["rope_parameters"]
    with pytest.raises(UsageError, match="rope_type longrope"):
        require_readable("it", pairs_of(STEADY + 1), config)


def test_a_base_without_a_limit() -> None:
    require_readable("it", pairs_of(900), tiny_base("bloom").config)


def test_up_to_its_steady_length_such_a_base_is_packed(tmp_path: Path) -> None:
    base = tiny_base("phi3", **LONGROPE)
    root = make_cache(tmp_path, base, pairs=8, max_length=STEADY)
    assert_equals_live(root, base)


def test_states_that_hang_on_what_is_in_the_batch_are_found() -> None:
    with pytest.raises(BaseModelError, match="depend on the rest of its batch"):
        check_base(
            tiny_base("phi3", **LONGROPE),
            pairs_of(20, 30, 40, STEADY + 30),
            (1, 4),
            1000,
            must_factor=True,
        )


def test_options_that_do_not_fit_are_told_before_data_and_weights_are_read(tmp_path: Path) -> None:
    base = save_base(tiny_base(), tmp_path / "base")
    (base / "model.safetensors").write_bytes(b"")
    for changes, told in (
        ({"layer_selection": "9"}, "layer_selection: got index 9"),
        ({"layer_selection": "uniform", "num_layers": 9}, "num_layers: got 9"),
        ({"logits": "topk", "top_k": 300}, "top_k: got 300"),
    ):
        with pytest.raises(UsageError, match=told):
            extract(asked(str(base), tmp_path, **changes))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"logits": "sparse"}, "logits: got 'sparse', expected one of factored, dense, topk"),
        ({"compression": "lz4"}, "compression: got 'lz4', expected one of none, "),
        ({"storage_dtype": "int4"}, "storage_dtype: got 'int4'"),
        ({"dtype": "bf16"}, "dtype: got 'bf16', expected one of auto, bfloat16"),
        ({"prompt_form": "alpaca"}, "prompt_form: got 'alpaca', expected one of hh, chat"),
        ({"quantize": "int4"}, "quantize: got 'int4', expected one of nf4, int8"),
        ({"output": ""}, "output: got nothing, expected a folder or a URL"),
        ({"data": ()}, "data: got none"),
    ],
)
def test_options_that_cannot_be(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        asked("base", tmp_path, **changes)


@pytest.mark.parametrize(
    "changes",
    [{"quantize": "nf4"}, {"device_map": "auto"}, {"gguf_file": "x.gguf"}, {"revision": "main"}],
    ids=str,
)
def test_how_to_load_a_base_that_is_loaded(tmp_path: Path, changes: dict[str, Any]) -> None:
    base: BaseModel = tiny_base()
    with pytest.raises(UsageError, match=f"{next(iter(changes))}: the given base is already load"):
        extract(asked("base", tmp_path, **changes), base=base)


def asked(base: str, root: Path, **changes: Any) -> ExtractOptions:
    settings: dict[str, Any] = {
        "base_model": base,
        "data": DataSource(id=str(root / "none.jsonl")),
        "output": root / "cache",
        "dtype": "float32",
        "storage_dtype": "float32",
        "device": "cpu",
    }
    return ExtractOptions(**{**settings, **changes})
