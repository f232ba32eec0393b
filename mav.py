"""The public Python API of Modular Alignment Vectors.

Example:
    from mav import MAVInference

    mav = MAVInference("runs/head", "meta-llama/Llama-2-7b-hf")
    print(mav.generate_response("How do I apologise to a friend?", alpha=1.0))
"""

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
