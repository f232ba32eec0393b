"""What a training run is evaluated on."""

from dataclasses import dataclass

from mav.cache_schema.reader import CacheReader
from mav.pipeline.head.compatibility import check_features
from mav.pipeline.loader.split import PairSubset, in_subset
from mav.pipeline.training.options import TrainOptions


@dataclass(frozen=True, kw_only=True)
class EvaluationSet:
    """Part of the training cache, or all of another.

    Attributes:
        reader: The cache.
        subset: Which of its pairs.
    """

    reader: CacheReader
    subset: PairSubset


def evaluation_set(options: TrainOptions, reader: CacheReader) -> EvaluationSet | None:
    """Return what a run is evaluated on, or None where nothing is held out.

    Args:
        options: What was asked for.
        reader: The training cache.

    Raises:
        MismatchError: The other cache's states or logits are not those of the training cache.
    """
    if options.eval_cache is not None:
        other = CacheReader(options.eval_cache)
        check_features(reader.manifest, other.manifest, str(options.cache), str(options.eval_cache))
        return EvaluationSet(reader=other, subset=PairSubset(which="all"))
    subset = PairSubset(which="held-out", fraction=options.eval_fraction)
    if not in_subset(reader.prompt_id, subset, reader.set_apart).any():
        return None
    return EvaluationSet(reader=reader, subset=subset)
