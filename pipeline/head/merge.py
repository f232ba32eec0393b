"""The weighted sum of heads as one head, exactly.

Every kind ends in a linear layer, so that the sum of heads is one whose layers stand side by side:
fused features and inner widths are concatenated, the layer between them has one block for each
head, and the last layers are put next to each other, each times its alpha. What is between the
blocks is zero and costs as much as the rest: the merged `expand` of an `mlp` or `unembedding` with
a rank is as large as the square of the number of heads.
"""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from mav.cache_schema.errors import DataError, MismatchError, UsageError
from mav.cache_schema.manifest import DataRecord, Manifest
from mav.pipeline.head.config import HeadConfig
from mav.pipeline.head.model import AlignmentHead
from mav.pipeline.head.pretrained import StoredHead, load_head, save_head
from mav.pipeline.head.storage import HeadOrigin, MergedPart
from mav.pipeline.runtime.named_values import text_of


def merge_heads(
    heads: Mapping[str, str | Path], alpha: Mapping[str, float], output: Path
) -> AlignmentHead:
    """Write sum_i alpha_i a_i as one head, which at alpha 1 is what the heads are together.

    Args:
        heads: Folders of heads or of training runs, or hub ids, by name.
        alpha: Of each head its part; one at 0 is left out.
        output: Folder to write; it must not hold anything.

    Returns:
        The merged head, float32.

    Raises:
        UsageError: Names differ, or nothing is left to merge.
        MismatchError: The heads are of different kinds or bases, or read different states.
        DataError: The output exists.
        HeadError: One cannot be read.
    """
    if heads.keys() != alpha.keys():
        raise UsageError(
            f"alpha: got {text_of(alpha) or 'none'}, expected a number for each of "
            f"{', '.join(heads)}"
        )
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise DataError(f"{output}: exists already; remove it, or name another `output`")
    stored = {name: load_head(str(place)) for name, place in heads.items() if alpha[name]}
    if not stored:
        raise UsageError("alpha: got 0 for every head, expected another number for one at least")
    for (first, one), (second, other) in pairwise(stored.items()):
        _require_alike(first, one, second, other)
    parts = [(alpha[name], one) for name, one in stored.items()]
    merged = _merged([(part, one.head) for part, one in parts])
    save_head(merged, _origin(stored, alpha), output)
    return merged


def _require_alike(first: str, one: StoredHead, second: str, other: StoredHead) -> None:
    ours, theirs = one.origin.manifest, other.origin.manifest
    for what, got, wanted in (
        ("kind", other.head.config.kind, one.head.config.kind),
        ("base", theirs.base.weights_digest[:12], ours.base.weights_digest[:12]),
        ("layers", list(theirs.states.layers), list(ours.states.layers)),
        ("pooled size", theirs.states.pooled_size, ours.states.pooled_size),
        ("form of prompts", theirs.text.prompt_template, ours.text.prompt_template),
    ):
        if got != wanted:
            why = (
                "they add at different places, or read different layers of their own"
                if what == "kind"
                else "one head is of one base and reads one set of states"
            )
            raise MismatchError(
                f"{first} and {second} differ in {what}: {wanted!r} and {got!r}; {why}. Decode "
                f"with both instead: `head` given twice, with a name each."
            )


def _merged(parts: Sequence[tuple[float, AlignmentHead]]) -> AlignmentHead:
    configs = [head.config for _, head in parts]
    kind = configs[0].kind
    # Fused features are not negative, so the ReLU of an identity leaves them as they are.
    inner = kind != "unembedding" or any(config.rank is not None for config in configs)
    widths = [_width(config) for config in configs]
    merged = dataclasses.replace(
        configs[0],
        fusion_size=None if kind == "bottleneck" else sum(_fused(config) for config in configs),
        expansion_size=sum(widths) if kind == "mlp" else None,
        rank=sum(widths) if kind != "mlp" and inner else None,
        dropout=max(config.dropout for config in configs),
    )
    with torch.device("meta"):
        made = AlignmentHead(merged)
    heads = [head for _, head in parts]
    weights: dict[str, Tensor] = {}
    if kind != "bottleneck":
        fusions = [head.fusion for head in heads if head.fusion is not None]
        weights["fusion.weight"] = torch.cat([layer.weight for layer in fusions])
        weights["fusion.bias"] = torch.cat([layer.bias for layer in fusions])
    if kind == "bottleneck":
        weights["expand.weight"] = torch.cat([_expand(head)[0] for head in heads])
    elif inner:
        blocks = [_expand(head)[0] for head in heads]
        weights["expand.weight"] = torch.block_diag(*blocks)  # type: ignore[no-untyped-call]
        weights["expand.bias"] = torch.cat([_expand(head)[1] for head in heads])
    weights["project.weight"] = torch.cat([a * head.project.weight for a, head in parts], dim=1)
    if made.project.bias is not None:
        weights["project.bias"] = torch.stack([a * head.project.bias for a, head in parts]).sum(0)
    made.load_state_dict({name: one.detach() for name, one in weights.items()}, assign=True)
    return made.eval()


def _fused(config: HeadConfig) -> int:
    return config.fusion_size or config.pooled_size


def _width(config: HeadConfig) -> int:
    """Return the width of what its last layer reads."""
    return config.expansion_size or config.rank or _fused(config)


def _expand(head: AlignmentHead) -> tuple[Tensor, Tensor]:
    """Return weight and bias of its inner layer, which is the identity where it has none."""
    if head.expand is None:
        width = _fused(head.config)
        return torch.eye(width), torch.zeros(width)
    bias = head.expand.bias
    return head.expand.weight, torch.zeros(head.expand.out_features) if bias is None else bias


def _origin(stored: Mapping[str, StoredHead], alpha: Mapping[str, float]) -> HeadOrigin:
    origins = [one.origin for one in stored.values()]
    return HeadOrigin(
        manifest=_manifest([origin.manifest for origin in origins]),
        objective=" and ".join(dict.fromkeys(origin.objective for origin in origins)),
        beta=origins[0].beta,
        # What the least share holds out, every larger one does too.
        held_out_fraction=min(origin.held_out_fraction for origin in origins),
        steps=sum(origin.steps for origin in origins),
        merged=tuple(
            MergedPart(
                name=name,
                alpha=alpha[name],
                digest=one.digest,
                objective=one.origin.objective,
                beta=one.origin.beta,
                steps=one.origin.steps,
            )
            for name, one in stored.items()
        ),
    )


def _manifest(manifests: Sequence[Manifest]) -> Manifest:
    """Return a manifest with the data of all: a pair of any of them may have been trained on."""
    data = list(dict.fromkeys(manifest.data.fingerprint for manifest in manifests))
    if len(data) == 1:
        return manifests[0]
    records = [manifest.data for manifest in manifests]
    sources = []
    for source in (source for record in records for source in record.sources):
        if source not in sources:
            sources.append(source)
    return dataclasses.replace(
        manifests[0],
        data=DataRecord(
            sources=tuple(sources),
            fingerprint=hashlib.sha256("".join(data).encode()).hexdigest(),
            prompts_truncated=sum(record.prompts_truncated for record in records),
            responses_cut=sum(record.responses_cut for record in records),
        ),
    )
