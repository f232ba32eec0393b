"""Names that options choose from; importing them loads nothing else."""

from typing import Literal

DtypeName = Literal["auto", "bfloat16", "float16", "float32"]
StorageDtype = Literal["bfloat16", "float16", "float32", "int8", "fp8"]
Quantize = Literal["nf4", "int8"]
SpreadName = Literal["auto", "balanced", "balanced_low_0", "sequential"]
"""Ways to spread a base over devices that accelerate knows by name."""
Form = Literal["hh", "chat"]
PromptFormatName = Literal["auto", "hh", "chat"]
HeadKind = Literal["mlp", "unembedding", "bottleneck"]
ObjectiveName = Literal[
    "dpo",
    "mav",
    "sigmoid",
    "sigmoid_norm",
    "simpo",
    "ipo",
    "hinge",
    "robust",
    "apo_zero",
    "apo_down",
    "credit",
]
KeepBy = Literal["loss", "accuracy", "scaled_loss", "margin_per_root_kl", "last"]
OptimizerName = Literal["adamw", "adamw-8bit"]
Tracker = Literal["tensorboard", "wandb", "trackio", "none"]
Split = Literal["held-out", "training", "all"]
"""Parts of a cache's pairs, by whether a head was trained on them."""
CacheImplementation = Literal["dynamic", "static", "none"]
