"""Tensors in safetensors files that others can read, with errors that name what failed."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import safetensors
import safetensors.torch
from torch import Tensor

from mav.cache_schema.errors import HeadError
from mav.pipeline.runtime.durable_files import give_usual_mode

_OS_ERROR: Final = re.compile(r"\(os error (\d+)\)")


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file in place, with the mode of any new file; safetensors gives 0600.

    Args:
        path: The file, in a folder that exists.
        tensors: Tensors of any device and layout by name.

    Raises:
        OSError: The file system refuses it, for instance because it is full.
        HeadError: safetensors cannot hold these tensors.
    """
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    try:
        safetensors.torch.save_file(plain, path)
    except safetensors.SafetensorError as error:
        if match := _OS_ERROR.search(str(error)):
            code = int(match[1])
            raise OSError(code, os.strerror(code), str(path)) from error
        raise HeadError(f"{path}: cannot be written: {error}") from error
    give_usual_mode(path)
