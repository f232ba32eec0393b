"""A base with a trained head or with a new one, in one call."""

import dataclasses
import inspect
from typing import Any

from mav.pipeline.base.given.wrap import GivenBase, loaded_base, require_as_loaded
from mav.pipeline.base.loading import load_base
from mav.pipeline.decoding.inference import MAVInference
from mav.pipeline.decoding.options import Heads
from mav.pipeline.decoding.trained_head import new_head
from mav.pipeline.runtime.argument_names import wrong_argument
from mav.pipeline.runtime.load_options import BaseOptions


def create_mav(
    base_model: GivenBase, head: Heads | None = None, tokenizer: Any = None, **options: Any
) -> MAVInference:
    """Return a base with a trained head, or with a new one that changes nothing yet.

    Args:
        base_model: Hub id, folder or `.gguf` file; or a loaded model, as `MAVInference` takes it.
        head: Folder or hub id of a trained head, an `AlignmentHead`, several by name, or None for a
            new one.
        tokenizer: The tokenizer of a loaded model; that of the files it names if None.
        **options: With a head, those of `MAVInference`; without, those of
            `MAVInference.with_new_head`, and `gguf_file`, `revision`, `dtype`, `device`,
            `device_map`, `quantize`, `gguf_cache` and `merge_adapter`.

    Raises:
        UsageError: There is no such option, or it contradicts a loaded model.
        MAVError: Base and head do not belong together, or cannot be loaded.
    """
    if head is not None:
        return MAVInference(head, base_model, tokenizer, **options)
    names = {field.name for field in dataclasses.fields(BaseOptions)}
    loading = {name: options.pop(name) for name in names & options.keys()}
    of_head = [*inspect.signature(new_head).parameters][1:]
    for name in options.keys() - {*of_head}:
        raise wrong_argument(name, [*names, *of_head], "create_mav")
    base = loaded_base(base_model, tokenizer)
    if base is None:
        base = load_base(str(base_model), **loading)
    else:
        require_as_loaded(BaseOptions(**loading), base)
    return MAVInference.with_new_head(base, **options)
