"""Configurations with one field changed, as transformers takes them: right, or one plain refusal.

A base is written to files, one field of its config.json is changed, and it is extracted and decoded
from. What comes out is compared with plain passes of the same files through transformers alone.
"""

import json
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mav.cache_schema.errors import MAVError
from mav.pipeline.base.loading import load_base
from mav.pipeline.base.model import BaseModel
from mav.pipeline.decoding.alpha import as_schedule
from mav.pipeline.decoding.options import GenerationOptions
from mav.pipeline.decoding.request import Request
from tests.support.models.tiny import ARCHITECTURES, make_cache, save_base, tiny_base
from tests.support.profiles import examples
from tests.support.steering.listeners import alone
from tests.support.steering.live import assert_equals_live
from tests.support.steering.steered import steered, whole_text_choices

ODD: Final[dict[str, tuple[Any, ...]]] = {
    "attention_dropout": (0.5,),
    "bos_token_id": (None, [1], -1),
    "chunk_size_feed_forward": (2,),
    "dtype": ("float16", "bfloat16", None),
    "eos_token_id": (None, -1, [0, 5], 299, 10_000),
    "final_logit_softcapping": (None, 0, 3.0, "tanh"),
    "is_decoder": (True, False),
    "is_encoder_decoder": (True,),
    "logit_scale": (None, 0, 0.25, 2, True, "inv_sqrt_d_model", [0.5]),
    "logits_scaling": (None, 0, 8.0, "8"),
    "max_position_embeddings": (None, 0, 300),
    "num_logits_to_keep": (1,),
    "output_attentions": (True,),
    "output_hidden_states": (True,),
    "pad_token_id": (None, -1, 299, 10_000),
    "partial_rotary_factor": (0.5,),
    "problem_type": ("regression", None),
    "pruned_heads": ({"0": [1]},),
    "resid_pdrop": (0.5,),
    "return_dict": (False,),
    "rope_parameters": (
        {"rope_type": "default", "rope_theta": 1e4},
        {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0},
        {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
        {"rope_type": "llama3", "rope_theta": 1e4, "factor": 2.0},
    ),
    "rope_scaling": (None, {"type": "linear", "factor": 2.0}),
    "sliding_window": (None, 0, 8, 300),
    "temperature": (0.1,),
    "tie_word_embeddings": (True,),
    "torchscript": (True,),
    "use_bidirectional_attention": (True,),
    "use_cache": (False, None),
    "use_return_dict": (False,),
}


@cache
def _root() -> Path:
    return Path(tempfile.mkdtemp(prefix="odd-configs-"))


@cache
def written(architecture: str) -> Path:
    return save_base(tiny_base(architecture), _root() / architecture)


@pytest.fixture(scope="module", autouse=True)
def _removed() -> Any:
    yield
    shutil.rmtree(_root())
    written.cache_clear()
    _root.cache_clear()


def changed(architecture: str, field: str, value: Any, folder: Path) -> Path:
    """Write a base with one field of its configuration changed."""
    shutil.copytree(written(architecture), folder)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    of_text = config.get("text_config", config)
    of_text[field] = value
    path.write_text(json.dumps(config), encoding="utf-8")
    return folder


def loaded(folder: Path) -> BaseModel:
    return load_base(str(folder), dtype=torch.float32, device="cpu")


class Plain:
    """A base as transformers alone loads it, told what the tests read of its passes."""

    def __init__(self, folder: Path) -> None:
        self._model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32
        ).eval()
        # Else some architectures read by name what their own parts give without names, and
        # attend otherwise with a cache than without.
        for config in (self._model.config, self._model.config.get_text_config()):
            config.return_dict, config.output_attentions = True, False
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)

    @torch.no_grad()
    def model(self, input_ids: torch.Tensor, **_: Any) -> Any:
        return self._model(
            input_ids=input_ids, output_hidden_states=True, use_cache=False, return_dict=True
        )


def check(architecture: str, field: str, value: Any) -> None:
    if field == "sliding_window" and not hasattr(tiny_base(architecture).config, field):
        # transformers' own cache goes by it, and its own attention does not.
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = changed(architecture, field, value, folder / "base")
        try:
            cache = make_cache(folder, loaded(base), pairs=3)
        except MAVError:
            cache = None
        plain: Any = Plain(base) if cache is not None else None
        if cache is not None:
            assert_equals_live(cache, plain, tolerance=1e-4)
        try:
            mav = steered(loaded(base))
            answer = mav.generate("Hi there", 12.0, GenerationOptions(max_new_tokens=6))
            prompt = mav.joined.form.tokens(answer.prompt)
            told = "".join(mav.stream("Hi there", 12.0, GenerationOptions(max_new_tokens=6)))
        except MAVError:
            return
        assert told.rstrip() == answer.response
        tokens = list(answer.tokens)
        plain = plain or Plain(base)
        assert whole_text_choices(mav, plain, prompt, tokens, 12.0) == tokens
        try:
            request = Request(
                prompt=tuple(prompt),
                alpha=as_schedule(12.0),
                decoding=GenerationOptions(max_new_tokens=6),
            )
            served = alone(mav, request).tokens
        except MAVError:
            return
        assert served == tokens


one_changed = st.sampled_from(sorted(ODD)).flatmap(
    lambda field: st.tuples(st.just(field), st.sampled_from(ODD[field]))
)
architectures = st.sampled_from(sorted(ARCHITECTURES))
PATIENT: Final = settings(suppress_health_check=list(HealthCheck), derandomize=True)


@settings(PATIENT, max_examples=examples(0.4))
@given(architectures, one_changed)
def test_some(architecture: str, change: tuple[str, Any]) -> None:
    check(architecture, *change)


@pytest.mark.slow
@settings(PATIENT, max_examples=examples(12))
@given(architectures, one_changed)
def test_many(architecture: str, change: tuple[str, Any]) -> None:
    check(architecture, *change)
