"""The public Python API of Modular Alignment Vectors.

Importing it takes no time: torch and transformers are loaded when a name that needs them is used.

Example:
    from mav import MAVInference

    mav = MAVInference("runs/head", "meta-llama/Llama-2-7b-hf")
    print(mav.generate_response("How do I apologise to a friend?", alpha=1.0))
"""

from typing import TYPE_CHECKING, Any

from mav.cache_schema import lazy_names

if TYPE_CHECKING:
    from mav.cache_schema import CacheReader as FeatureCache
    from mav.cache_schema import Manifest, MAVError
    from mav.cache_schema.errors import (
        BaseModelError,
        CacheBusyError,
        CacheError,
        CacheIncompleteError,
        DataError,
        HeadError,
        ManifestError,
        MismatchError,
        UsageError,
    )
    from mav.pipeline.base.loading import load_base
    from mav.pipeline.base.model import BaseModel
    from mav.pipeline.comparison.options import CompareOptions, JudgeOptions
    from mav.pipeline.comparison.run import Comparison, compare
    from mav.pipeline.decoding.alpha import AlphaSchedule
    from mav.pipeline.decoding.create import create_mav
    from mav.pipeline.decoding.inference import MAVInference
    from mav.pipeline.decoding.options import Generation, GenerationOptions
    from mav.pipeline.decoding.scoring import Score
    from mav.pipeline.evaluation.evaluate import Evaluation, evaluate
    from mav.pipeline.evaluation.options import EvaluateOptions
    from mav.pipeline.extraction.dry_run import DryRunReport, dry_run
    from mav.pipeline.extraction.extract import ExtractReport, extract
    from mav.pipeline.extraction.options import ExtractOptions
    from mav.pipeline.head.config import HeadConfig
    from mav.pipeline.head.model import AlignmentHead
    from mav.pipeline.preferences.sources import DataSource
    from mav.pipeline.rounds.options import PairOptions, SampleOptions
    from mav.pipeline.rounds.pairs import PairReport, make_pairs
    from mav.pipeline.rounds.sample import SampleReport, sample
    from mav.pipeline.training.options import TrainOptions
    from mav.pipeline.training.own.callbacks import TrainCallback
    from mav.pipeline.training.own.loop import PreferenceScorer, cache_loader
    from mav.pipeline.training.report import TrainReport
    from mav.pipeline.training.train import train
    from mav.pipeline.verification.options import VerifyOptions
    from mav.pipeline.verification.verify import VerificationReport, verify

__all__ = [
    "AlignmentHead",
    "AlphaSchedule",
    "BaseModel",
    "BaseModelError",
    "CacheBusyError",
    "CacheError",
    "CacheIncompleteError",
    "CompareOptions",
    "Comparison",
    "DataError",
    "DataSource",
    "DryRunReport",
    "EvaluateOptions",
    "Evaluation",
    "ExtractOptions",
    "ExtractReport",
    "FeatureCache",
    "Generation",
    "GenerationOptions",
    "HeadConfig",
    "HeadError",
    "JudgeOptions",
    "MAVError",
    "MAVInference",
    "Manifest",
    "ManifestError",
    "MismatchError",
    "PairOptions",
    "PairReport",
    "PreferenceScorer",
    "SampleOptions",
    "SampleReport",
    "Score",
    "TrainCallback",
    "TrainOptions",
    "TrainReport",
    "UsageError",
    "VerificationReport",
    "VerifyOptions",
    "cache_loader",
    "compare",
    "create_mav",
    "dry_run",
    "evaluate",
    "extract",
    "load_base",
    "make_pairs",
    "sample",
    "train",
    "verify",
]

_FROM = {
    "AlignmentHead": "mav.pipeline.head.model",
    "AlphaSchedule": "mav.pipeline.decoding.alpha",
    "BaseModel": "mav.pipeline.base.model",
    "BaseModelError": "mav.cache_schema.errors",
    "CacheBusyError": "mav.cache_schema.errors",
    "CacheError": "mav.cache_schema.errors",
    "CacheIncompleteError": "mav.cache_schema.errors",
    "CompareOptions": "mav.pipeline.comparison.options",
    "Comparison": "mav.pipeline.comparison.run",
    "DataError": "mav.cache_schema.errors",
    "DataSource": "mav.pipeline.preferences.sources",
    "DryRunReport": "mav.pipeline.extraction.dry_run",
    "EvaluateOptions": "mav.pipeline.evaluation.options",
    "Evaluation": "mav.pipeline.evaluation.evaluate",
    "ExtractOptions": "mav.pipeline.extraction.options",
    "ExtractReport": "mav.pipeline.extraction.extract",
    "FeatureCache": "mav.cache_schema",
    "Generation": "mav.pipeline.decoding.options",
    "GenerationOptions": "mav.pipeline.decoding.options",
    "HeadConfig": "mav.pipeline.head.config",
    "HeadError": "mav.cache_schema.errors",
    "JudgeOptions": "mav.pipeline.comparison.options",
    "MAVError": "mav.cache_schema",
    "MAVInference": "mav.pipeline.decoding.inference",
    "Manifest": "mav.cache_schema",
    "ManifestError": "mav.cache_schema.errors",
    "MismatchError": "mav.cache_schema.errors",
    "PairOptions": "mav.pipeline.rounds.options",
    "PairReport": "mav.pipeline.rounds.pairs",
    "SampleOptions": "mav.pipeline.rounds.options",
    "SampleReport": "mav.pipeline.rounds.sample",
    "PreferenceScorer": "mav.pipeline.training.own.loop",
    "Score": "mav.pipeline.decoding.scoring",
    "TrainCallback": "mav.pipeline.training.own.callbacks",
    "TrainOptions": "mav.pipeline.training.options",
    "TrainReport": "mav.pipeline.training.report",
    "UsageError": "mav.cache_schema.errors",
    "VerificationReport": "mav.pipeline.verification.verify",
    "VerifyOptions": "mav.pipeline.verification.options",
    "cache_loader": "mav.pipeline.training.own.loop",
    "compare": "mav.pipeline.comparison.run",
    "create_mav": "mav.pipeline.decoding.create",
    "dry_run": "mav.pipeline.extraction.dry_run",
    "evaluate": "mav.pipeline.evaluation.evaluate",
    "extract": "mav.pipeline.extraction.extract",
    "load_base": "mav.pipeline.base.loading",
    "make_pairs": "mav.pipeline.rounds.pairs",
    "sample": "mav.pipeline.rounds.sample",
    "train": "mav.pipeline.training.train",
    "verify": "mav.pipeline.verification.verify",
}
_NAMED_OTHERWISE = {"FeatureCache": "CacheReader"}


_lazy = lazy_names(__name__, _FROM, _NAMED_OTHERWISE)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("mav-align")
    return _lazy(name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
