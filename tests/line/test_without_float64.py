"""Devices such as MPS have no float64: nothing may make one of what lies on the device."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from mav.cache_schema.reader import CacheReader
from mav.pipeline.evaluation import pair_scores
from mav.pipeline.evaluation.pair_scores import PairScores
from mav.pipeline.evaluation.statistics import mean_interval
from mav.pipeline.extraction.model_checks import relative_error
from mav.pipeline.head.config import HeadConfig
from mav.pipeline.head.model import AlignmentHead
from mav.pipeline.loader.batch import Batch, CachedBase, collate
from mav.pipeline.training.loss import PreferenceModel
from mav.pipeline.training.metrics import MetricAccumulator
from mav.pipeline.training.objectives import Objective
from tests.support.models.tiny import HIDDEN, VOCAB, make_cache

CPU = torch.device("cpu")


class Elsewhere(Tensor):
    """A tensor on a device without float64, as are all that are made of it but by `cpu()`."""

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        found = super().__torch_function__(function, types, args, kwargs or {})  # type: ignore[no-untyped-call]
        if function is Tensor.cpu:
            return found.as_subclass(Tensor)
        for one in found if isinstance(found, tuple | list) else [found]:
            if isinstance(one, Tensor) and one.dtype == torch.float64:
                raise TypeError("this device has no float64")
        return found


def elsewhere(batch: Batch) -> Batch:
    return Batch(
        rows={path: rows.as_subclass(Elsewhere) for path, rows in batch.rows.items()},
        offsets=batch.offsets.as_subclass(Elsewhere),
        step_pairs=batch.step_pairs,
    )


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> CacheReader:
    return CacheReader(make_cache(tmp_path_factory.mktemp("cache"), pairs=6))


@pytest.fixture
def head() -> AlignmentHead:
    torch.manual_seed(0)
    config = HeadConfig(num_layers=3, pooled_size=HIDDEN, expansion_size=16, vocab_size=VOCAB)
    made = AlignmentHead(config).eval()
    torch.nn.init.normal_(made.project.weight, std=0.1)
    return made


def whole(reader: CacheReader) -> Batch:
    block = reader.read_block(0)
    return collate([(block, at) for at in range(len(block.pairs))], reader.manifest, 1)


def test_the_pretended_device_refuses_float64() -> None:
    there = torch.ones(3).as_subclass(Elsewhere)
    wide = torch.ones(3, dtype=torch.float64)
    for make in (there.double, lambda: there.to(torch.float64), lambda: torch.add(there, wide)):
        with pytest.raises(TypeError, match="no float64"):
            make()
    assert there.sum().cpu().double() == 3


def test_evaluating_needs_none(
    reader: CacheReader, head: AlignmentHead, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = [True] * reader.manifest.data.pairs
    expected = pair_scores.score_pairs(head, reader, wanted, (0.0, 1.0), CPU, torch.float32)

    def there(*args: Any) -> Batch:
        return elsewhere(collate(*args))

    monkeypatch.setattr(pair_scores, "collate", there)
    found = pair_scores.score_pairs(head, reader, wanted, (0.0, 1.0), CPU, torch.float32)
    for got, want in zip(found, expected, strict=True):
        for field in dataclasses.fields(PairScores):
            values = getattr(got, field.name)
            assert type(values) is Tensor
            assert values.dtype == torch.float64
            assert torch.equal(values, getattr(want, field.name))


def test_training_and_its_metrics_need_none(reader: CacheReader, head: AlignmentHead) -> None:
    objective = Objective(name="dpo", beta=0.1, lambda_l2=0.001)
    means = []
    for batch in (whole(reader), elsewhere(whole(reader))):
        seen = MetricAccumulator()
        scores = PreferenceModel(head, bf16=False)(batch, CachedBase(reader, CPU).logits(batch))
        for _ in range(2):
            seen.add(scores, scores.pair_sum_loss(objective, batch), objective)
        found = seen.reduce(Accelerator(cpu=True))
        del found["tokens_per_second"]
        means.append(found)
    assert means[0] == means[1]


def test_checks_of_a_base_need_none() -> None:
    got, expected = torch.randn(2, 50, 8).as_subclass(Elsewhere)
    assert relative_error(got, got) == 0
    error = relative_error(got.bfloat16(), got)
    assert 1e-4 < error < 1e-2
    assert relative_error(got, expected) > 0.1


def test_intervals_need_none() -> None:
    values = torch.tensor([1.0, 2.0, 4.0])
    assert mean_interval(values.as_subclass(Elsewhere)) == mean_interval(values)


def test_metrics_are_added_up_in_float64() -> None:
    """Sums of many micro-batches keep what float32 would lose."""
    seen = MetricAccumulator()
    seen._names = ["pairs", "tokens", "squared_norm"]
    seen._parts = [torch.tensor([1.0, 1.0, value]) for value in (2.0**25, 1.0, 1.0)]
    assert seen.reduce(Accelerator(cpu=True))["squared_norm"] == (2.0**25 + 2) / 3
