"""Which adapters act in a loaded model, told by what PEFT's layers have in common."""

import hashlib
import json

from torch import nn


def adapter_state(model: nn.Module) -> str:
    """Return a digest of which adapters act in a model and how strongly; empty without any."""
    found = [
        [name, layer.active_adapters, layer.disable_adapters, layer.merged_adapters, layer.scaling]
        for name, layer in model.named_modules()
        if hasattr(layer, "active_adapters") and hasattr(layer, "scaling")
    ]
    if not found:
        return ""
    return hashlib.sha256(json.dumps(found, sort_keys=True, default=str).encode()).hexdigest()
