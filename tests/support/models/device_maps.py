"""Ways to spread the tiny base over devices and the disk."""

from typing import Any

MODULES = ("model.embed_tokens", "model.layers.0", "model.layers.1", "model.layers.2",
           "model.layers.3", "model.norm", "model.rotary_emb", "lm_head")  # fmt: skip


def placed(at: str, *names: str) -> dict[str, str]:
    """MODULES of these names elsewhere, all others on the CPU."""
    return {module: at if module in names else "cpu" for module in MODULES}


MAPS: dict[str, Any] = {
    "auto": "auto",
    "sequential": "sequential",
    "all on the cpu": {"": "cpu"},
    "module by module": placed("cpu"),
    "layers on disk": placed("disk", "model.layers.1", "model.layers.2"),
    "output embedding on disk": placed("disk", "lm_head"),
    "input embedding on disk": placed("disk", "model.embed_tokens"),
    "everything on disk": {"": "disk"},
}
