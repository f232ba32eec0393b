"""Describes a cache or a head, for the terminal or as JSON."""

from pathlib import Path
from typing import Any

from mav.cache_schema.arrays import bytes_per_token, layouts
from mav.cache_schema.commits import read_commits
from mav.cache_schema.errors import CacheError
from mav.cache_schema.manifest import Manifest
from mav.cache_schema.root import ROOT, read_manifest
from mav.cache_schema.storage.addresses import is_remote, local_folder
from mav.cache_schema.storage.base import ObjectStore
from mav.cache_schema.storage.lock import read_holder
from mav.cache_schema.storage.open import open_object_store
from mav.pipeline.head.recommendation import Recommendation
from mav.pipeline.head.storage import find_head, read_head_config


def describe(path: str) -> dict[str, Any]:
    """Return a description of a cache or head, as plain JSON values.

    Args:
        path: Folder of a cache, complete or not, or of a head; or a head's hub id.

    Raises:
        MAVError: It is neither, or damaged.
    """
    if is_remote(path):
        return _describe_cache(open_object_store(path))
    folder = local_folder(path)
    if (folder / ROOT).is_file():
        return _describe_cache(open_object_store(folder))
    if folder.is_dir() and not any(folder.iterdir()):
        raise CacheError(f"{path}: an empty folder, neither a cache nor a head")
    return _describe_head(find_head(str(folder)))


def screen(description: dict[str, Any]) -> str:
    """Format a description for the terminal."""
    width = max(len(name) for name in description)
    return "\n".join(f"{name:<{width}}  {_text(value)}" for name, value in description.items())


def _describe_cache(objects: ObjectStore) -> dict[str, Any]:
    manifest = read_manifest(objects)
    sizes = objects.sizes()
    commits = read_commits(objects, manifest, sizes).records
    holder = read_holder(objects)
    return {
        "kind": f"MAV cache, format {manifest.format_version}",
        "path": objects.location,
        "complete": manifest.complete and len(commits) == manifest.plan.blocks,
        "blocks": f"{len(commits)} of {manifest.plan.blocks} written, "
        f"{manifest.plan.block_tokens} tokens each",
        **({"being_written_by": str(holder)} if holder else {}),
        **_origin(manifest),
        "response_tokens": manifest.plan.tokens,
        "bytes_per_token": bytes_per_token(manifest),
        "stored_bytes": sum(sizes.values()),
        "storage": f"states {manifest.storage.states}, compression {manifest.storage.compression}",
        "arrays": {
            name: f"{layout.dtype} {list(layout.shape)}"
            for name, layout in layouts(manifest).items()
        },
        "checks": manifest.checks,
        "created_by": manifest.created_by,
    }


def _describe_head(folder: Path) -> dict[str, Any]:
    config, origin = read_head_config(folder)
    return {
        "kind": "MAV alignment head",
        "head_type": config.kind,
        "path": str(folder),
        "alignment_parameters": config.alignment_parameters,
        "total_parameters": config.total_parameters,
        "sizes": config.sizes,
        "flops_per_token": {
            "training": config.training_flops,
            "decoding": config.decoding_flops,
        },
        **(
            {
                "merged": [
                    f"{part.alpha:g} times {part.name} ({part.objective}, beta {part.beta}, "
                    f"{part.steps:,} steps, weights SHA-256 {part.digest[:12]})"
                    for part in origin.merged
                ]
            }
            if origin.merged
            else {"objective": f"{origin.objective}, beta {origin.beta}"}
        ),
        **({"recommended_alpha": _recommended(origin.recommended)} if origin.recommended else {}),
        "held_out_fraction": origin.held_out_fraction,
        "steps": origin.steps,
        **_origin(origin.manifest),
    }


def _recommended(found: Recommendation) -> str:
    return (
        f"{found.alpha:g} ({found.kl_per_token:.3g} nats a token from the base on {found.pairs:,} "
        f"held-out pairs, {found.target_kl:g} asked for)"
    )


def _origin(manifest: Manifest) -> dict[str, Any]:
    base, data = manifest.base, manifest.data
    return {
        "base": f"{base.id} ({base.architecture}, {base.num_hidden_layers} layers, hidden "
        f"{base.hidden_size}, vocabulary {base.vocab_size}"
        + (f", {base.parameters:,} parameters)" if base.parameters else ")")
        + (f", quantized: {base.quantization}" if base.quantization else ""),
        "base_digests": {
            "weights": base.weights_digest[:12],
            "tokenizer": base.tokenizer_digest[:12],
        },
        "states": f"layers {list(manifest.states.layers)} ({manifest.states.layer_selection}), "
        f"pooled to {manifest.states.pooled_size}, stored in {manifest.states.dtype}",
        "computed_in": " and ".join(manifest.states.computed_in or ("not recorded",)),
        "logits": manifest.logits.encoding,
        "data": [
            f"{source.name}: {source.pairs} of {source.rows} rows"
            + (", for evaluation alone" if source.held_out else "")
            for source in data.sources
        ],
        "pairs": f"{data.pairs} of {data.rows} rows",
        "dropped": data.dropped,
        "prompts_truncated": data.prompts_truncated,
        "responses_cut": data.responses_cut,
        "max_length": manifest.text.max_length,
    }


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items()) or "none"
    if isinstance(value, list):
        return "; ".join(map(_text, value))
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:.2g}" if isinstance(value, float) else str(value)
