"""What a cache is computed in and stored in: two settings, both recorded."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from mav.cache_schema.errors import BaseModelError, MismatchError, UsageError
from mav.cache_schema.reader import CacheReader
from mav.cache_schema.root import ROOT, encode_root, read_manifest
from mav.cache_schema.storage.open import open_object_store
from mav.cache_schema.writer import CacheWriter
from mav.pipeline.base.loading import load_base
from mav.pipeline.base.model import BaseModel
from mav.pipeline.extraction.extract import extract
from mav.pipeline.extraction.options import ExtractOptions
from mav.pipeline.preferences.sources import DataSource
from mav.pipeline.verification.against_base import verify_against_base
from mav.pipeline.verification.options import VerifyOptions
from tests.support.models.tiny import save_base, tiny_base, write_rows

WRITE = CacheWriter.write_block


@pytest.fixture
def options(tmp_path: Path) -> ExtractOptions:
    return ExtractOptions(
        base_model=str(save_base(tiny_base(), tmp_path / "base")),
        data=DataSource(id=str(write_rows(tmp_path / "pairs.jsonl", 16))),
        output=tmp_path / "cache",
        device="cpu",
        block_tokens=256,
        max_length=128,
    )


def begin(options: ExtractOptions, **changes: Any) -> None:
    """Write one block, then stop as a process does that is interrupted."""
    written: list[int] = []

    def one(self: CacheWriter, block: int, *rest: Any) -> None:
        if written:
            raise KeyboardInterrupt
        written.append(block)
        WRITE(self, block, *rest)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(CacheWriter, "write_block", one)
        extract(dataclasses.replace(options, **changes))


def computed_in(options: ExtractOptions) -> tuple[str, ...] | None:
    return read_manifest(open_object_store(options.output)).states.computed_in


@pytest.mark.parametrize("dtype", ["float32", "float16", torch.bfloat16])
def test_states_are_stored_in_bfloat16_whatever_they_were_computed_in(
    options: ExtractOptions, dtype: Any
) -> None:
    states = extract(dataclasses.replace(options, dtype=dtype)).manifest.states
    assert states.dtype == "bfloat16"
    assert states.computed_in == (str(dtype).removeprefix("torch."),)
    # One whole answer to both questions: what was stored is what the base computes.
    found = verify_against_base(VerifyOptions(cache=options.output, against_base=8))
    assert found.differing == {}


def test_a_loaded_base_need_not_compute_in_what_is_stored(options: ExtractOptions) -> None:
    base = tiny_base(dtype=torch.float32)
    states = extract(options, base=base).manifest.states
    assert (states.dtype, states.computed_in) == ("bfloat16", ("float32",))
    with pytest.raises(UsageError, match="asked for float16, but the given base"):
        extract(dataclasses.replace(options, dtype="float16"), base=base)


def test_a_cache_goes_on_in_the_type_it_was_begun_in(
    options: ExtractOptions, messages: list[str]
) -> None:
    begin(options, dtype="float16")
    messages.clear()
    extract(options)
    assert computed_in(options) == ("float16",)
    assert "Computing in float16, in which the cache was begun" in messages


def test_to_go_on_in_another_type_has_to_be_asked_for(options: ExtractOptions) -> None:
    begin(options, dtype="float32")
    other = dataclasses.replace(options, dtype="float16")
    with pytest.raises(MismatchError) as caught:
        extract(other)
    message = str(caught.value)
    assert "computed in float32, but float16 was asked for" in message
    assert "`allow_dtype_mismatch=True`" in message
    assert computed_in(options) == ("float32",)
    extract(dataclasses.replace(other, allow_dtype_mismatch=True))
    assert computed_in(options) == ("float32", "float16")
    assert CacheReader(options.output).manifest.complete
    found = verify_against_base(VerifyOptions(cache=options.output, against_base=16))
    assert (found.differing, found.tolerance) == ({}, 5e-2)
    # Now it is of both, and either goes.
    extract(other)
    extract(dataclasses.replace(options, dtype="float32"))
    with pytest.raises(MismatchError, match="computed in float32 and float16"):
        extract(dataclasses.replace(options, dtype="bfloat16"))


def test_a_loaded_base_of_another_type_has_to_be_asked_for(options: ExtractOptions) -> None:
    begin(options, dtype="float32")
    base = load_base(str(options.base_model), dtype="float16", device="cpu")
    with pytest.raises(MismatchError, match=r"Give a base that computes in float32"):
        extract(options, base=base)


def test_a_cache_that_recorded_nothing_was_computed_in_what_it_stores(
    options: ExtractOptions,
) -> None:
    begin(options, dtype="bfloat16")
    objects = open_object_store(options.output)
    found = read_manifest(objects)
    old = dataclasses.replace(found, states=dataclasses.replace(found.states, computed_in=None))
    Path(str(options.output), ROOT).write_bytes(bytes(encode_root(old)))
    with pytest.raises(MismatchError, match="computed in bfloat16, but float32"):
        extract(dataclasses.replace(options, dtype="float32"))
    extract(options)
    assert computed_in(options) is None
    assert verify_against_base(VerifyOptions(cache=options.output, against_base=8)).differing == {}


def loud_base() -> BaseModel:
    """A base whose final states are larger than float16 can hold."""
    base = tiny_base()
    with torch.no_grad():
        base.decoder.norm.weight.mul_(1e5)  # type: ignore[union-attr, operator]
    return base


@pytest.mark.parametrize("logits", ["factored", "dense"])
def test_states_too_large_for_float16_are_refused(options: ExtractOptions, logits: Any) -> None:
    asked = dataclasses.replace(options, logits=logits, storage_dtype="float16")
    with pytest.raises(BaseModelError, match=r"float16 cannot hold.*`storage_dtype` bfloat16"):
        extract(asked, base=loud_base())
    extract(
        dataclasses.replace(asked, storage_dtype="bfloat16", output=f"{options.output}2"),
        base=loud_base(),
    )


def test_logits_too_large_for_float16_are_refused(options: ExtractOptions) -> None:
    base = tiny_base()
    with torch.no_grad():
        base.model.get_output_embeddings().weight.mul_(1e5)
    asked = dataclasses.replace(
        options, logits="dense", storage_dtype="float16", layer_selection="1"
    )
    with pytest.raises(BaseModelError, match="its logits reach values that float16 cannot hold"):
        extract(asked, base=base)


def test_an_unembedding_too_large_for_float16_is_refused(options: ExtractOptions) -> None:
    base = tiny_base()
    with torch.no_grad():
        base.model.get_output_embeddings().weight.mul_(1e6)
    with pytest.raises(BaseModelError, match="float16 cannot hold"):
        extract(dataclasses.replace(options, storage_dtype="float16"), base=base)


@pytest.mark.parametrize("asked", ["float32", "bfloat16"])
def test_verify_recomputes_in_the_type_that_is_asked_for(
    options: ExtractOptions, asked: Any, messages: list[str]
) -> None:
    extract(dataclasses.replace(options, dtype="float32", storage_dtype="float32"))
    messages.clear()
    found = verify_against_base(VerifyOptions(cache=options.output, against_base=4, dtype=asked))
    assert found.tolerance == {"float32": 1e-4, "bfloat16": 5e-2}[asked]
    assert found.differing == {}
    assert any(line.endswith(f" in {asked}") for line in messages)
