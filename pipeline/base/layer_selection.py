"""Selects the layers whose hidden states the head reads.

Indices are those of transformers' `output_hidden_states=True`: for L decoder layers, 0 is the
embedding output, i the output of the i-th layer, and L the output after the final norm.
"""

from mav.cache_schema.errors import UsageError


def select_layers(selection: str, num_layers: int, num_hidden_layers: int) -> tuple[int, ...]:
    """Return layer indices, ascending.

    Args:
        selection: `auto` (first, middle, last: 1, L // 2, L), `uniform` (`num_layers` evenly
            spaced from 1 to L), or indices such as `1,15,30`.
        num_layers: How many layers `uniform` takes; `auto` always takes three.
        num_hidden_layers: Decoder layers of the base, L.

    Raises:
        UsageError: The selection cannot be made from L layers.
    """
    last = num_hidden_layers
    if selection == "auto":
        if num_layers != 3:
            raise UsageError(
                f"num_layers: got {num_layers}, but `auto` takes the first, the middle and the "
                f"last layer. Use `layer_selection` uniform for another number."
            )
        wanted = [1, last // 2, last]
    elif selection == "uniform":
        if not 1 <= num_layers <= last:
            raise UsageError(
                f"num_layers: got {num_layers}, expected 1 to {last}, the base's decoder layers"
            )
        step = (last - 1) / max(1, num_layers - 1)
        wanted = [round(last - step * k) for k in range(num_layers)][::-1]
    else:
        wanted = parse_indices(selection)
        outside = [index for index in wanted if not 0 <= index <= last]
        if outside:
            raise UsageError(
                f"layer_selection: got index {outside[0]}, but the base has {last} decoder "
                f"layers: expected 0 (embeddings) to {last} (after the final norm)"
            )
    return tuple(sorted(set(wanted)))


def parse_indices(selection: str) -> list[int]:
    """Parse `1,15,30`.

    Raises:
        UsageError: It is not a list of distinct whole numbers.
    """
    try:
        wanted = [int(part) for part in selection.split(",")]
    except ValueError:
        raise UsageError(
            f"layer_selection: got {selection!r}, expected auto, uniform, or indices like 1,15,30"
        ) from None
    if len(set(wanted)) != len(wanted):
        raise UsageError(f"layer_selection: got {selection!r}, which names a layer twice")
    return wanted
