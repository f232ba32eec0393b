"""Manifests of format version 1, which knew one data set a cache and no quantized bases.

Caches of that version are read, and so are heads that were trained from them; none are written.
What else is different is `base_logprobs`, which they hold whatever the encoding (`arrays`), and
what their records call the cache (`Manifest.identity`).
"""

from collections.abc import Mapping
from typing import Any, Final

VERSION: Final = 1

_OF_SOURCE: Final = ("id", "data_dir", "split", "limit", "rows", "pairs", "dropped")
_OF_ALL: Final = ("fingerprint", "prompts_truncated", "responses_cut")


def upgraded(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return a manifest of version 1 with the fields of the present version.

    Fields that are missing or unknown stay so, for the check that follows to tell of.
    """
    found = dict(manifest)
    base, data = manifest.get("base"), manifest.get("data")
    if isinstance(base, Mapping):
        found["base"] = {**base, "quantization": None}
    if isinstance(data, Mapping):
        source = {name: data[name] for name in _OF_SOURCE if name in data}
        rest = {name: value for name, value in data.items() if name not in _OF_SOURCE}
        # Of one data set all pairs are its pairs.
        if "fingerprint" in data:
            source["fingerprint"] = data["fingerprint"]
        found["data"] = {"sources": [{**source, "weight": None, "held_out": False}], **rest}
    return found


def downgraded(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return a manifest that `upgraded` made as it was."""
    (source,) = manifest["data"]["sources"]
    return {
        **manifest,
        "base": {name: v for name, v in manifest["base"].items() if name != "quantization"},
        "data": {
            **{name: source[name] for name in _OF_SOURCE},
            **{name: manifest["data"][name] for name in _OF_ALL},
        },
    }
