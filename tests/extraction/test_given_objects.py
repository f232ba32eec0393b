"""Extraction from a model and rows that are in memory: the cache that files would have given."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from mav.cache_schema import CacheReader
from mav.cache_schema.errors import BaseModelError, UsageError
from mav.pipeline.extraction.dry_run import dry_run
from mav.pipeline.extraction.extract import extract
from mav.pipeline.extraction.options import ExtractOptions
from mav.pipeline.preferences.sources import DataSource
from tests.support.models.tiny import HIDDEN, make_cache, rows
from tests.support.models.users_model import plain_base, state_of, users_model


def asked(data: Any, output: Path, **more: Any) -> ExtractOptions:
    model, tokenizer = more.pop("given", None) or users_model()
    settings = {"pooled_size": HIDDEN, "block_tokens": 256, "max_length": 128, **more}
    return ExtractOptions(
        base_model=model,
        tokenizer=tokenizer,
        data=data,
        output=output,
        storage_dtype="float32",
        device="cpu",
        **settings,
    )


def stream() -> Any:
    def generate() -> Iterator[dict[str, str]]:
        yield from rows(40)

    return datasets.IterableDataset.from_generator(generate)


@pytest.mark.parametrize(
    "given",
    [
        lambda: rows(40),
        lambda: datasets.Dataset.from_list(rows(40)),
        lambda: DataSource(rows=stream(), limit=40),
        lambda: (rows(20), DataSource(id="rest", rows=rows(40)[20:])),
        lambda: [datasets.Dataset.from_list(rows(40))],
    ],
    ids=["list", "Dataset", "stream", "several", "list of one"],
)
def test_the_cache_is_that_of_files(tmp_path: Path, given: Any) -> None:
    users = users_model()
    before = state_of(users[0])
    report = extract(asked(given(), tmp_path / "cache", given=users))
    assert state_of(users[0]) == before
    assert report.manifest.data.pairs == 40
    ours = CacheReader(tmp_path / "cache")
    theirs = CacheReader(make_cache(tmp_path / "files", plain_base(*users)))
    assert ours.manifest.data.fingerprint == theirs.manifest.data.fingerprint
    assert ours.manifest.plan == theirs.manifest.plan
    for block in range(ours.manifest.plan.blocks):
        first, second = ours.read_block(block).rows, theirs.read_block(block).rows
        assert first.keys() == second.keys()
        assert all(np.array_equal(first[name], second[name]) for name in first)


def test_a_dry_run_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    users = users_model()
    before = state_of(users[0])
    assert dry_run(asked(rows(8), tmp_path / "cache", given=users)).missing_pairs == 8
    assert state_of(users[0]) == before and not (tmp_path / "cache").exists()


def test_after_an_error_the_model_is_as_it_was(tmp_path: Path) -> None:
    users = users_model()
    users[0].get_decoder().norm.weight.data[0] = float("nan")
    before = repr(state_of(users[0]))  # nan is not itself
    with pytest.raises(BaseModelError):
        extract(asked(rows(8), tmp_path / "cache", given=users))
    assert repr(state_of(users[0])) == before


def test_what_contradicts_a_loaded_model(tmp_path: Path) -> None:
    for name, value in {"quantize": "nf4", "merge_adapter": True, "revision": "main"}.items():
        with pytest.raises(UsageError, match=f"{name}: the given base is already loaded"):
            extract(asked(rows(8), tmp_path / "cache", **{name: value}))
