"""Checks that every tensor of a checkpoint was loaded, and that none was missing.

transformers fills missing tensors with random values, ignores tensors that the model has no place
for, and only warns.
"""

import re
from collections.abc import Collection, Iterator
from typing import Any, Final

from mav.cache_schema.errors import BaseModelError

_NAMED: Final = 5
"""Number of tensors that a message names."""
_OTHER_TOWER: Final = re.compile(
    "vision|visual|image|video|audio|speech|talker|code2wav|token2wav|mtp|nextn|multi_?modal|mm_"
)
"""Names of parts outside the text decoder, which may be built like one."""
_OF_QUANTIZATION: Final = re.compile(
    r"(scale|scale_inv|zero|zeros|zero_point|amax|absmax|g_idx|quant_map|quant_state\S*)$"
)
_OF_KV_CACHE: Final = re.compile(r"\.[kvq](_proj)?(_output)?\.?_?scale$|\.prob(_output)?_scale$")


def require_complete(model: Any, report: dict[str, Any], name: str) -> str | None:
    """Check that every tensor of a model came from its checkpoint, and that all of it was used.

    Args:
        model: The loaded model.
        report: What `from_pretrained` returns with `output_loading_info`, and `unconverted`: the
            names of tensors that could not be put together from several of the checkpoint.
        name: Name of the base.

    Returns:
        A line about tensors that are unused on purpose: those outside the text decoder.

    Raises:
        BaseModelError: Naming tensors that are missing, of another shape, or unused.
    """
    problems = [
        *_missing(report["missing_keys"]),
        *_mismatched(report["mismatched_keys"]),
        *_unconverted(report["unconverted"]),
        *report["error_msgs"],
    ]
    aside, unused = _sorted_out(model, report["unexpected_keys"])
    if unused:
        problems.append(
            f"{_count(unused, 'tensor')} of the checkpoint not used: the model has no place for "
            f"them: {_listed(unused)}"
        )
    if problems:
        raise BaseModelError(
            f"{name}: its weights are not those of the {type(model).__name__} its configuration "
            f"describes: {'; '.join(problems)}. Download it again, or save it with the names and "
            f"shapes that transformers gives its tensors."
        )
    if not aside:
        return None
    parts = sorted({_subtree(model, key) for key in aside})
    return f"{name}: not part of its text decoder, and not used: {_listed(parts)}"


def require_finite(model: Any, name: str) -> None:
    """Check that all weights in memory are finite.

    Raises:
        BaseModelError: Naming the first that are not.
    """
    wrong = []
    for key, weight in model.named_parameters():
        # One byte per value: quantized, and read as finite values.
        if weight.device.type == "meta" or not weight.is_floating_point() or weight.itemsize < 2:
            continue
        if not weight.numel():
            continue
        # One pass without a temporary, fifty times as fast as a mask.
        least, most = weight.detach().aminmax()
        if not (least.isfinite() and most.isfinite()):
            wrong.append(key)
    if wrong:
        dtype = str(model.dtype).removeprefix("torch.")
        raise BaseModelError(
            f"{name}: {_count(wrong, 'tensor')} with values that are not finite numbers in "
            f"{dtype}: "
            f"{_listed(wrong)}. The file is damaged, or the type too narrow: download it again, or "
            f"try `dtype` float32."
        )


def _missing(keys: Collection[str]) -> Iterator[str]:
    if keys:
        yield f"{_count(keys, 'tensor')} missing: {_listed(keys)}"


def _unconverted(keys: Collection[str]) -> Iterator[str]:
    if keys:
        yield (
            f"{_count(keys, 'tensor')} made of several, of which some are missing or of another "
            f"shape: {_listed(keys)}"
        )


def _mismatched(keys: Collection[tuple[str, Any, Any]]) -> Iterator[str]:
    for key, got, expected in sorted(keys)[:_NAMED]:
        yield f"{key}: got shape {list(got)}, expected {list(expected)}"
    if len(keys) > _NAMED:
        yield f"and {len(keys) - _NAMED} more of another shape"


def _sorted_out(model: Any, unexpected: Collection[str]) -> tuple[list[str], list[str]]:
    """Split unused tensors into those outside the text decoder and those that belong to it."""
    modules = {name for name, _ in model.named_modules()}
    quantized = getattr(model.config, "quantization_config", None) is not None
    aside: list[str] = []
    unused: list[str] = []
    for key in sorted(unexpected):
        last = key.rpartition(".")[2]
        allowed = (
            bool(quantized and _OF_QUANTIZATION.search(last))
            or bool(_OF_KV_CACHE.search(key))
            or _is_extra_layer(model, key)
            or _is_beside(model, modules, key)
        )
        (aside if allowed else unused).append(key)
    return aside, unused


def _is_beside(model: Any, modules: set[str], key: str) -> bool:
    """Whether a tensor is in a separate subtree that does not compute logits."""
    root = _subtree(model, key)
    within, _, part = root.rpartition(".")
    if root == key and within:
        return False  # a tensor of a module that the model has
    decoder = _decoder_name(model)
    if within and not f"{decoder}.".startswith(f"{within}."):
        return False
    if _OTHER_TOWER.search(part.lower()):
        return True
    if within == decoder:
        return False
    # The model's own under another name, as wrappers leave it: `_orig_mod.`, `base_model.model.`.
    parts = key.split(".")
    lists = tuple(name.removesuffix("0") for name in modules if name.endswith(".0"))
    return not any(".".join(parts[cut:]).startswith(lists) for cut in range(1, len(parts)))


def _is_extra_layer(model: Any, key: str) -> bool:
    """Whether a tensor belongs to a multi-token prediction layer, as DeepSeek has."""
    config = model.config.get_text_config()
    extra = getattr(config, "num_nextn_predict_layers", None) or 0
    layer = re.search(r"(?:^|\.)layers\.(\d+)\.", key)
    count = int(config.num_hidden_layers)
    return layer is not None and count <= int(layer[1]) < count + extra


def _decoder_name(model: Any) -> str:
    decoder = model.get_decoder()
    return next((name for name, module in model.named_modules() if module is decoder), "")


def _subtree(model: Any, key: str) -> str:
    """Return a tensor's name up to the first component that the model does not have."""
    module, parts = model, key.split(".")
    for number, part in enumerate(parts):
        module = getattr(module, "_modules", {}).get(part)
        if module is None:
            return ".".join(parts[: number + 1])
    return key


def _count(keys: Collection[Any], what: str) -> str:
    return f"{len(keys)} {what}{'' if len(keys) == 1 else 's'}"


def _listed(keys: Collection[str]) -> str:
    named = ", ".join(sorted(keys)[:_NAMED])
    return f"{named} and {len(keys) - _NAMED} more" if len(keys) > _NAMED else named
