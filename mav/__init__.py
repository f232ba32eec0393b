"""The public Python API of Modular Alignment Vectors.

Importing it takes no time: torch and transformers are loaded when a name that needs them is used.

Example:
    from mav import MAVInference

    mav = MAVInference("runs/head", "meta-llama/Llama-2-7b-hf")
    print(mav.generate_response("How do I apologise to a friend?", alpha=1.0))
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mav.cache_schema import CacheReader as FeatureCache
    from mav.cache_schema import Manifest, MAVError
    from mav.pipeline.decoding.alpha import AlphaSchedule
    from mav.pipeline.decoding.inference import MAVInference, create_mav
    from mav.pipeline.decoding.options import Generation, GenerationOptions
    from mav.pipeline.decoding.scoring import Score
    from mav.pipeline.evaluation.evaluate import Evaluation, evaluate
    from mav.pipeline.extraction.extract import extract
    from mav.pipeline.extraction.options import ExtractOptions
    from mav.pipeline.head.config import HeadConfig
    from mav.pipeline.head.model import AlignmentHead
    from mav.pipeline.preferences.sources import DataSource
    from mav.pipeline.training.options import TrainOptions
    from mav.pipeline.training.train import train

__all__ = [
    "AlignmentHead",
    "AlphaSchedule",
    "DataSource",
    "Evaluation",
    "ExtractOptions",
    "FeatureCache",
    "Generation",
    "GenerationOptions",
    "HeadConfig",
    "MAVError",
    "MAVInference",
    "Manifest",
    "Score",
    "TrainOptions",
    "create_mav",
    "evaluate",
    "extract",
    "train",
]

_FROM = {
    "AlignmentHead": "mav.pipeline.head.model",
    "AlphaSchedule": "mav.pipeline.decoding.alpha",
    "DataSource": "mav.pipeline.preferences.sources",
    "GenerationOptions": "mav.pipeline.decoding.options",
    "Evaluation": "mav.pipeline.evaluation.evaluate",
    "ExtractOptions": "mav.pipeline.extraction.options",
    "FeatureCache": "mav.cache_schema",
    "Generation": "mav.pipeline.decoding.options",
    "HeadConfig": "mav.pipeline.head.config",
    "MAVError": "mav.cache_schema",
    "MAVInference": "mav.pipeline.decoding.inference",
    "Manifest": "mav.cache_schema",
    "Score": "mav.pipeline.decoding.scoring",
    "TrainOptions": "mav.pipeline.training.options",
    "create_mav": "mav.pipeline.decoding.inference",
    "evaluate": "mav.pipeline.evaluation.evaluate",
    "extract": "mav.pipeline.extraction.extract",
    "train": "mav.pipeline.training.train",
}
_NAMED_OTHERWISE = {"FeatureCache": "CacheReader"}


def __getattr__(name: str) -> Any:
    if name not in _FROM:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_FROM[name]), _NAMED_OTHERWISE.get(name, name))
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
