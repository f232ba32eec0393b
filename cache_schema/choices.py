"""Allowed values of manifest fields; importing this module loads nothing else."""

from typing import Literal

LogitsEncoding = Literal["factored", "dense", "topk"]
StoredDtype = Literal["bfloat16", "float16", "float32"]
Compression = Literal["none", "zstd", "blosc"]
StatesStorage = Literal["computed", "int8", "fp8"]
