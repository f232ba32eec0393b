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
    from cache_schema import CacheReader as FeatureCache
    from cache_schema import Manifest, MAVError
    from pipeline.alpha import AlphaSchedule
    from pipeline.data_sources import DataSource
    from pipeline.decoding import Decoding, Generation
    from pipeline.evaluate import Evaluation, evaluate
    from pipeline.extract import extract
    from pipeline.extract_options import ExtractOptions
    from pipeline.generate import MAVInference, create_mav
    from pipeline.head import AlignmentHead, HeadConfig
    from pipeline.scoring import Score
    from pipeline.train import train
    from pipeline.train_options import TrainOptions

__all__ = [
    "AlignmentHead",
    "AlphaSchedule",
    "DataSource",
    "Decoding",
    "Evaluation",
    "ExtractOptions",
    "FeatureCache",
    "Generation",
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
    "AlignmentHead": "pipeline.head",
    "AlphaSchedule": "pipeline.alpha",
    "DataSource": "pipeline.data_sources",
    "Decoding": "pipeline.decoding",
    "Evaluation": "pipeline.evaluate",
    "ExtractOptions": "pipeline.extract_options",
    "FeatureCache": "cache_schema",
    "Generation": "pipeline.decoding",
    "HeadConfig": "pipeline.head",
    "MAVError": "cache_schema",
    "MAVInference": "pipeline.generate",
    "Manifest": "cache_schema",
    "Score": "pipeline.scoring",
    "TrainOptions": "pipeline.train_options",
    "create_mav": "pipeline.generate",
    "evaluate": "pipeline.evaluate",
    "extract": "pipeline.extract",
    "train": "pipeline.train",
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
