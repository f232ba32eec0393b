"""A head's model card: base, data, objective, what was measured by alpha, and how to use it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from mav.cache_schema.manifest import Manifest
from mav.cache_schema.portable import portable
from mav.pipeline.head.config import HeadConfig
from mav.pipeline.head.storage import CurvePoint, HeadOrigin

CARD: Final = "README.md"
_MEMORY: Final = "memory:"


def write_card(
    folder: Path,
    config: HeadConfig,
    origin: HeadOrigin,
    *,
    curve: Sequence[CurvePoint] = (),
    repository: str | None = None,
    replace: bool = True,
) -> None:
    """Write the card of a head into its folder.

    Args:
        folder: The folder.
        config: The head's kind and sizes.
        origin: What it was trained from and how.
        curve: What was measured of it, by alpha; that of its training if empty.
        repository: Its id on the hub.
        replace: Whether to replace a card that is there.
    """
    path = folder / CARD
    if replace or not path.exists():
        path.write_text(
            card(config, origin, curve=curve, name=repository or folder.name), encoding="utf-8"
        )


def card(
    config: HeadConfig, origin: HeadOrigin, *, curve: Sequence[CurvePoint] = (), name: str
) -> str:
    """Return the text of a head's card; see `write_card`.

    Args:
        config: The head's kind and sizes.
        origin: What it was trained from and how.
        curve: What was measured of it, by alpha; that of its training if empty.
        name: Its id on the hub, or the name of its folder.
    """
    manifest, found = portable(origin.manifest), origin.recommended
    base, rows = manifest.base, tuple(curve) or (found.curve if found else ())
    alpha = found.alpha if found else 1.0
    dropped = sum(manifest.data.dropped.values())
    parts = [
        _front_matter(manifest),
        f"# {name}\n",
        f"An alignment head of Modular Alignment Vectors (MAV) for "
        f"`{base.id}`: it reads hidden states of the frozen base and gives a vector `a` over its "
        f"vocabulary; decoding uses `z_base + alpha * a`, with an alpha of your choice at every "
        f"call.\n",
        "| | |\n| --- | --- |",
        f"| base | `{base.id}`{f', commit `{base.revision}`' if base.revision else ''}, weights "
        f"SHA-256 `{base.weights_digest[:12]}…` |",
        f"| data | {_data(manifest)}: {manifest.data.pairs:,} pairs"
        f"{f', {dropped:,} rows left out' if dropped else ''} |",
        f"| objective | `{origin.objective}`, beta {origin.beta:g}, {origin.steps:,} steps; "
        f"{origin.held_out_fraction:.0%} of the prompts held out |",
        f"| head | `{config.kind}`, {config.total_parameters:,} parameters, reads layers "
        f"{', '.join(map(str, manifest.states.layers))} |",
        f"| prompts | {_prompts(manifest)} |",
    ]
    if origin.merged:
        merged = ", ".join(f"{part.alpha:g} of {part.name}" for part in origin.merged)
        parts.append(f"| merged from | {merged} |")
    if found:
        parts.append(
            f"| recommended alpha | {found.alpha:g}, where the KL to the base is "
            f"{found.kl_per_token:.3g} nats a token ({found.target_kl:g} were asked for) |"
        )
    return "\n".join([*parts, "", _measured(rows), "", _use(name, manifest, alpha), ""])


def _front_matter(manifest: Manifest) -> str:
    lines = ["---", "library_name: mav-align", "tags:", "- mav", "- alignment", "- test-time"]
    if manifest.base.revision is not None:
        lines += [f"base_model: {manifest.base.id}"]
    data = [each.id for each in manifest.data.sources if each.id.count("/") == 1]
    if data:
        lines += ["datasets:", *(f"- {each}" for each in dict.fromkeys(data))]
    return "\n".join([*lines, "---", ""])


def _data(manifest: Manifest) -> str:
    return ", ".join(
        f"rows in memory ({source.name.removeprefix(_MEMORY)})"
        if source.id.startswith(_MEMORY)
        else f"`{source.name}`"
        for source in manifest.data.sources
    )


def _prompts(manifest: Manifest) -> str:
    chat = manifest.text.prompt_template == "chat_template"
    return "the base's chat template" if chat else "HH-RLHF's transcript (`Human:`, `Assistant:`)"


def _measured(rows: Sequence[CurvePoint]) -> str:
    if not rows:
        return (
            "## Measured\n\nNothing yet; `mav evaluate --head HEAD --cache CACHE` measures it, and "
            "`mav push --cache CACHE` fills this table."
        )
    lines = [
        "## Measured\n",
        "On pairs it was not trained on. Ranking is not writing: `mav compare` measures answers.\n",
        "| alpha | reward accuracy | logp accuracy | margin, nats | KL to the base, nats a token |",
        "| ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        accuracy = "" if row.reward_accuracy is None else f"{row.reward_accuracy:.1%}"
        lines.append(
            f"| {row.alpha:g} | {accuracy} | {row.logp_accuracy:.1%} | {row.margin:.3g} | "
            f"{row.kl_per_token:.3g} |"
        )
    return "\n".join(lines)


def _use(name: str, manifest: Manifest, alpha: float) -> str:
    base = manifest.base.id if manifest.base.revision is not None else "BASE"
    known = base if base != "BASE" else f"the folder of {manifest.base.id}"
    return f"""## Use

```bash
pip install mav-align
mav chat --head {name} --base-model {base} --alpha {alpha:g}
```

```python
from mav import MAVInference

with MAVInference("{name}", "{base}") as mav:  # {known}
    print(mav.generate_response("How do I say no politely?", alpha={alpha:g}))
```

Alpha 0 is the base itself; larger ones go further, and the KL grows with about its square."""
