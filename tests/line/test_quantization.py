"""States in one byte per value: what is lost, and that nothing else is."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from torch import Tensor

from mav.cache_schema.choices import StatesStorage
from mav.cache_schema.encoding.dtypes import STORED_AS, from_float32, to_float32
from mav.cache_schema.encoding.quantization import (
    CODES,
    LARGEST,
    PER_CHANNEL,
    PER_TOKEN,
    dequantize,
    restore,
)
from mav.cache_schema.reader import CacheReader
from mav.pipeline.extraction.quantize import quantize
from mav.pipeline.head.config import HeadConfig
from mav.pipeline.head.model import AlignmentHead
from mav.pipeline.loader.batch import CachedBase
from mav.pipeline.loader.dataset import prefetch
from mav.pipeline.loader.sampler import StepLayout
from mav.pipeline.ops.tensor_storage import from_stored, pool_states, to_stored
from mav.pipeline.runtime.compute_dtype import TORCH_DTYPES
from mav.pipeline.training.options import TrainOptions
from mav.pipeline.training.train import train
from mav.pipeline.training.trainer import Trainer
from mav.pipeline.verification.against_base import LOSS
from tests.support.caches.streams import stream
from tests.support.models.tiny import HIDDEN, VOCAB, make_cache, tiny_base
from tests.support.running.runs import metrics
from tests.support.steering.live import live_answers, relative, whole_cache

pytestmark = pytest.mark.usefixtures("unflushed_disk")


EVERY_STORAGE = pytest.mark.parametrize("storage", ["int8", "fp8"])
EVERY_DTYPE = pytest.mark.parametrize("dtype", STORED_AS)

# Relative error of rounding a float32 to a type, and the absolute one near zero.
ROUNDING = {"bfloat16": (2**-8, 1e-38), "float16": (2**-11, 2**-25), "float32": (0.0, 0.0)}
FLOAT32 = 1e-5
"""More than a few products and quotients in float32 lose."""


@st.composite
def states(draw: st.DrawFn) -> tuple[Tensor, str]:
    """States [N, …, W] of a type, some tokens and channels zero, some channels huge."""
    dtype = draw(st.sampled_from(sorted(STORED_AS)))
    shape = draw(st.one_of(hnp.array_shapes(min_dims=2, max_dims=3, min_side=1, max_side=12)))
    values = np.random.default_rng(draw(st.integers(0, 999))).standard_normal(shape)
    values *= draw(st.sampled_from([1e-6, 0.01, 1.0, 40.0]))
    # Types with few exponents hold no more.
    huge = draw(st.sampled_from([1.0, 30.0, 500.0 if dtype == "float16" else 1e6]))
    some = st.sets(st.integers(0, 11), max_size=3)
    values[..., [channel for channel in draw(some) if channel < shape[-1]]] *= huge
    values[..., [channel for channel in draw(some) if channel < shape[-1]]] = 0
    values[[token for token in draw(some) if token < shape[0]]] = 0
    finite = torch.finfo(TORCH_DTYPES[dtype])
    values = values.clip(finite.min, finite.max)
    return torch.from_numpy(values).to(TORCH_DTYPES[dtype]), dtype


def scales(found: dict[str, NDArray[Any]]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The scale of each token and channel, in shapes that multiply with codes."""
    channel = found.get("x" + PER_CHANNEL)
    ones = np.ones((1, *found["x"].shape[1:]), np.float32)
    return found["x" + PER_TOKEN][..., None], ones if channel is None else channel


def back(found: dict[str, NDArray[Any]], dtype: str) -> NDArray[np.float64]:
    channel = found.get("x" + PER_CHANNEL)
    channel = None if channel is None else channel[0]
    stored = dequantize(found["x"], found["x" + PER_TOKEN], channel, dtype)
    assert stored.dtype == np.dtype(STORED_AS[dtype])
    return to_float32(stored, dtype).astype(np.float64)


def test_the_table_is_torchs_float8() -> None:
    codes = np.arange(256, dtype=np.uint8)[None]
    got = dequantize(codes, np.ones(1, np.float32), None, "float32")[0]
    want = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().numpy()
    np.testing.assert_array_equal(got, want)
    # Zero has a sign too, which only the bits tell; those of a NaN are free.
    numbers = ~np.isnan(want)
    assert numbers.sum() == 254
    assert got[numbers].tobytes() == want[numbers].tobytes()
    assert np.nanmax(got) == LARGEST["fp8"]


@given(states())
@example((torch.zeros(1, 1), "float32"))
@example((torch.full((1, 3), 7.0), "bfloat16"))
@example((torch.eye(5), "float16"))
def test_int8_is_within_half_a_step(given: tuple[Tensor, str]) -> None:
    values, dtype = given
    found = quantize("x", values.to(TORCH_DTYPES[dtype]), "int8")
    token, channel = scales(found)
    assert found["x"].dtype == np.int8
    assert found["x" + PER_TOKEN].shape == values.shape[:-1]
    assert found["x" + PER_CHANNEL].shape == (1, *values.shape[1:])
    exact, got = values.double().numpy(), back(found, dtype)
    relative_part, least = ROUNDING[dtype]
    step = token.astype(np.float64) * channel
    allowed = (0.5 + 127 * FLOAT32) * step + relative_part * np.abs(got) + least
    assert (np.abs(exact - got) <= allowed).all()
    assert (got[exact == 0] == 0).all()
    # Of every token some channel takes the whole range.
    used = (exact != 0).any(-1)
    assert (np.abs(found["x"]).max(-1)[used] == LARGEST["int8"]).all()


@given(states())
@example((torch.zeros(1, 1), "float32"))
@example((torch.eye(5), "float16"))
def test_fp8_is_within_a_sixteenth(given: tuple[Tensor, str]) -> None:
    values, dtype = given
    found = quantize("x", values.to(TORCH_DTYPES[dtype]), "fp8")
    token = found["x" + PER_TOKEN].astype(np.float64)[..., None]
    assert found["x"].dtype == np.uint8
    assert set(found) == {"x", "x" + PER_TOKEN}
    exact, got = values.double().numpy(), back(found, dtype)
    relative_part, least = ROUNDING[dtype]
    # Codes below 2**-6 are evenly spaced.
    allowed = np.maximum(2**-4 * np.abs(exact), 2**-10 * token) * (1 + FLOAT32)
    assert (np.abs(exact - got) <= allowed + relative_part * np.abs(got) + least).all()
    assert (got[exact == 0] == 0).all()
    largest = np.abs(exact).max(-1)
    rounded = (relative_part + FLOAT32) * largest + least
    assert (np.abs(np.abs(got).max(-1) - largest) <= rounded).all()


@EVERY_STORAGE
def test_a_huge_channel_costs_the_others_nothing(storage: StatesStorage) -> None:
    values = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
    values[:, 5] += 1000.0
    got = torch.from_numpy(back(quantize("x", values, storage), "float32"))
    others = [channel for channel in range(32) if channel != 5]
    assert relative(got[:, others], values[:, others]) < LOSS[storage]


@pytest.mark.parametrize("position", [0, 2])
def test_a_tokens_float8_code_does_not_depend_on_the_others(position: int) -> None:
    values = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
    alone = quantize("x", values[position : position + 1], "fp8")
    assert np.array_equal(alone["x"][0], quantize("x", values, "fp8")["x"][position])


def test_states_near_the_end_of_float16_stay_finite() -> None:
    values = torch.ones(64, 2, dtype=torch.float16)
    values[:, 0] = 18000
    values[0] = torch.tensor([65504.0, 280.0])
    with np.errstate(over="ignore"):
        assert np.isfinite(back(quantize("x", values, "int8"), "float16")).all()


# Rounding


@given(hnp.arrays(np.uint32, hnp.array_shapes(max_dims=3, max_side=40)))
def test_rounding_to_bfloat16_is_torchs(bits: NDArray[np.uint32]) -> None:
    values = bits.view(np.float32)
    want = to_stored(torch.from_numpy(values).to(torch.bfloat16))
    got = from_float32(values, "bfloat16")
    numbers = ~np.isnan(values)
    assert np.array_equal(got[numbers], want[numbers])
    assert np.isnan(to_float32(got, "bfloat16")[~numbers]).all()


def test_rounding_to_bfloat16_at_every_tie_and_edge() -> None:
    upper = np.arange(1 << 16, dtype=np.uint32) << np.uint32(16)
    lower = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    values = (upper[:, None] | lower).view(np.float32)
    got = from_float32(values, "bfloat16")
    numbers = ~np.isnan(values)
    want = to_stored(torch.from_numpy(values).to(torch.bfloat16))
    assert np.array_equal(got[numbers], want[numbers])
    assert np.isnan(to_float32(got, "bfloat16")[~numbers]).all()
    # What is a bfloat16 already, infinities and subnormals among them, stays as it is.
    assert np.array_equal(got[:, 0][numbers[:, 0]], (upper >> 16).astype(np.uint16)[numbers[:, 0]])


@pytest.mark.parametrize("values", [[np.nan], [np.nan] * 40, [-np.nan, 1.0]], ids=len)
def test_a_rounded_nan_is_torchs_own(values: list[float]) -> None:
    floats = np.array(values, np.float32)
    one_at_a_time = [torch.tensor(value).to(torch.bfloat16) for value in floats]
    assert (
        from_float32(floats, "bfloat16").tolist() == to_stored(torch.stack(one_at_a_time)).tolist()
    )


def test_rounding_reads_arrays_that_lie_apart() -> None:
    values = np.linspace(-1, 2, 24, dtype=np.float32).reshape(4, 6)
    assert np.array_equal(from_float32(values.T, "bfloat16"), from_float32(values, "bfloat16").T)


# Restoring


@EVERY_STORAGE
@EVERY_DTYPE
def test_restoring_does_not_depend_on_how_much_is_done_at_once(
    storage: StatesStorage, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = torch.randn(17, 3, 8, generator=torch.Generator().manual_seed(2))
    found = quantize("x", values, storage)
    whole = back(found, dtype)
    for at_once in (1, 24, 25, 100, 17 * 24):
        monkeypatch.setattr("mav.cache_schema.encoding.quantization._STEP_VALUES", at_once)
        assert np.array_equal(back(found, dtype), whole)
    for start in range(17):
        token = slice(start, start + 1)
        part = {**found, "x": found["x"][token], "x" + PER_TOKEN: found["x" + PER_TOKEN][token]}
        assert np.array_equal(back(part, dtype), whole[token])


@EVERY_STORAGE
def test_nothing_is_restored_to_nothing(storage: StatesStorage) -> None:
    codes = np.empty((0, 2, 4), CODES[storage])
    channel = np.ones((2, 4), np.float32) if storage == "int8" else None
    got = dequantize(codes, np.empty((0, 2), np.float32), channel, "bfloat16")
    assert got.shape == (0, 2, 4)
    assert got.dtype == np.uint16


def test_only_quantized_arrays_are_restored() -> None:
    values = torch.randn(3, 4, generator=torch.Generator().manual_seed(3))
    rows = {
        **quantize("hidden_states", values, "int8"),
        "final_hidden_state": np.ones((3, 2), np.float32),
        "labels": np.arange(3),
    }
    kept = dict(rows)
    got = restore(rows, "float32")
    assert set(got) == {"hidden_states", "final_hidden_state", "labels"}
    assert got["labels"] is rows["labels"]
    assert got["final_hidden_state"] is rows["final_hidden_state"]
    assert got["hidden_states"].dtype == np.float32
    assert rows == kept


# Caches

CACHES = [
    {"logits": logits, "pooled_size": pooled}
    for logits in ("factored", "dense", "topk")
    for pooled in (HIDDEN, HIDDEN // 2)
]


@EVERY_STORAGE
@pytest.mark.parametrize("options", CACHES, ids=str)
def test_a_quantized_cache_says_what_the_live_model_says(
    storage: StatesStorage, options: dict[str, Any], tmp_path: Path
) -> None:
    base = tiny_base()
    reader = CacheReader(make_cache(tmp_path, base, pairs=8, storage_dtype=storage, **options))
    batch, rows = whole_cache(reader)
    assert batch.states.dtype == torch.bfloat16
    logits = (
        CachedBase(reader, torch.device("cpu"), torch.float32).logits(batch).chunk(0, len(rows))
    )
    live = live_answers(reader, base)
    place = {int(row): at for at, row in enumerate(rows)}
    for answer in live:
        at = slice(place[answer.start], place[answer.start] + len(answer.labels))
        want = pool_states(
            answer.states[:, list(reader.manifest.states.layers)], options["pooled_size"]
        )
        for number in range(want.shape[1]):
            assert 0 < relative(batch.states[at, number], want[:, number]) < LOSS[storage]
        # Logits are lossy as the final state is; those of the other encodings are the model's.
        if options["logits"] == "factored":
            assert 0 < relative(logits[at], answer.logits) < LOSS[storage]
        elif options["logits"] == "dense":
            # As they are, in the type that the states come back in.
            assert torch.equal(logits[at], answer.logits.bfloat16().float())
        assert batch.labels[at].tolist() == answer.labels.tolist()
    assert (batch.base_logprobs is None) == (options["logits"] == "factored")
    if batch.base_logprobs is not None:
        # Those of the model, not of the states as they come back.
        own = [
            a.logits.double().log_softmax(-1).gather(-1, a.labels[:, None])[:, 0]
            for a in sorted(live, key=lambda answer: answer.start)
        ]
        torch.testing.assert_close(
            batch.base_logprobs.double(), torch.cat(own), rtol=1e-5, atol=1e-5
        )


@EVERY_STORAGE
@EVERY_DTYPE
def test_states_come_back_in_bfloat16_whatever_they_were_computed_in(
    storage: StatesStorage, dtype: str, tmp_path: Path
) -> None:
    root = make_cache(tmp_path, pairs=4, storage_dtype=storage, dtype=dtype, pooled_size=8)
    reader = CacheReader(root)
    rows = reader.read_block(0).rows
    for path in ("hidden_states", "final_hidden_state"):
        assert rows[path].dtype == np.dtype(STORED_AS["bfloat16"])
        assert from_stored(rows[path], "bfloat16").isfinite().all()
    assert reader.manifest.states.computed_in == (dtype,)
    assert not [path for path in rows if "scale" in path]


@pytest.mark.parametrize("storage", ["float32", "bfloat16", "int8", "fp8"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_untrained_head_has_no_margin(storage: str, dtype: str, tmp_path: Path) -> None:
    root = make_cache(tmp_path, pairs=8, storage_dtype=storage, dtype=dtype)
    options = TrainOptions(cache=root, output_dir=tmp_path / "run", beta=1.0, bf16=False)
    head = AlignmentHead(
        HeadConfig(
            num_layers=3, pooled_size=HIDDEN, expansion_size=16, vocab_size=VOCAB, dropout=0.1
        )
    )
    batches = prefetch(stream(root, StepLayout(batch_size=8, grad_accum=1)))
    base = CachedBase(CacheReader(root), torch.device("cpu"))
    found = Trainer(options, Accelerator(cpu=True), head).evaluate(batches, base)
    assert found["squared_norm"] == 0
    for metric in ("rewards/margins", "rewards/chosen", "rewards/rejected"):
        assert abs(found[metric]) < 1e-4
    assert found["loss"] == pytest.approx(np.log(2), abs=1e-4)


@EVERY_STORAGE
def test_training_learns_from_a_quantized_cache(storage: StatesStorage, tmp_path: Path) -> None:
    root = make_cache(tmp_path, pairs=16, storage_dtype=storage)
    options = TrainOptions(
        cache=root,
        output_dir=tmp_path / "run",
        eval_fraction=0.0,
        expansion_size=16,
        learning_rate=1e-2,
        batch_size=4,
        grad_accum=1,
        num_epochs=6,
        eval_steps=1,
        bf16=False,
    )
    assert train(options).steps == 24
    losses = [line["loss"] for line in metrics(tmp_path / "run")]
    assert losses[0] == pytest.approx(np.log(2), abs=1e-4)
    assert losses[-1] < 0.95 * losses[0]
