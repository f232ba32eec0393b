"""Whether caches, heads and base models fit each other, by their manifests."""

from mav.cache_schema.errors import MismatchError
from mav.cache_schema.manifest import BaseModelRecord, Manifest, StatesRecord
from mav.pipeline.base.layer_selection import select_layers
from mav.pipeline.head.config import HeadConfig


def check_vocabulary(
    expected: BaseModelRecord,
    got: BaseModelRecord,
    what_expects: str,
    what_got: str,
    *,
    other_tokenizer: bool | None = None,
) -> None:
    """Refuse a base whose tokens have another meaning than those the head was trained with.

    Args:
        expected: The base of the cache the head was trained from.
        got: The other base.
        what_expects: Name of the thing that expects, for the message.
        what_got: Name of the thing that was got.
        other_tokenizer: Whether the user allows another tokenizer of the same size; None where
            that is not an option.

    Raises:
        MismatchError: The vocabularies differ in size or in content.
    """
    if got.vocab_size != expected.vocab_size:
        raise MismatchError(
            f"{what_expects} was made for a vocabulary of {expected.vocab_size} tokens "
            f"({expected.id}), but {what_got} has {got.vocab_size} ({got.id}). An alignment "
            f"vector has one entry per token; train a head for this base."
        )
    choice = other_tokenizer is not None
    if got.tokenizer_digest != expected.tokenizer_digest and not other_tokenizer:
        raise MismatchError(
            f"{what_expects} and {what_got} both have {got.vocab_size} tokens, but other "
            f"tokenizers ({expected.id}: {expected.tokenizer_digest[:12]}, {got.id}: "
            f"{got.tokenizer_digest[:12]}), so the same id means another token. Train a head for "
            f"this base"
            + (", or decode all the same with `allow_tokenizer_mismatch=True`." if choice else ".")
        )


def check_features(expected: Manifest, got: Manifest, what_expects: str, what_got: str) -> None:
    """Refuse a cache whose states or tokens are not what a head reads.

    Args:
        expected: The manifest of the cache that the head was trained from.
        got: The manifest of the other cache.
        what_expects: Name of the head, for the message.
        what_got: Name of the other cache.

    Raises:
        MismatchError: Vocabulary, number of layers or pooled size differ.
    """
    check_vocabulary(expected.base, got.base, what_expects, what_got)
    same_base = expected.base.weights_digest == got.base.weights_digest
    for name, stored, asked in (
        ("layers", len(expected.states.layers), len(got.states.layers)),
        ("pooled size", expected.states.pooled_size, got.states.pooled_size),
        # On another base the same strategy gives other indices; on the same one it must not.
        *((("layers", expected.states.layers, got.states.layers),) if same_base else ()),
    ):
        if stored != asked:
            raise MismatchError(
                f"{what_expects} and {what_got} differ in {name}: {stored} and {asked}. Extract "
                f"with the layer selection and pooled size the head was trained with."
            )


def check_kind(config: HeadConfig, cache: Manifest, what_got: str) -> None:
    """Refuse a cache without what a head of this kind needs of it.

    Args:
        config: The head's.
        cache: The cache's manifest.
        what_got: Name of the cache.

    Raises:
        MismatchError: The head acts on the base's last state, and the cache holds no output
            embedding, or one of another width.
    """
    if not config.acts_on_state:
        return
    if cache.logits.encoding != "factored":
        raise MismatchError(
            f"{what_got}: holds the base's logits with encoding {cache.logits.encoding}, and a "
            f"head of kind {config.kind} needs the last states and the output embedding. Extract "
            f"with `logits` factored, or train with `head_type` mlp."
        )
    check_hidden_size(config, cache.base, "The head", what_got)


def check_hidden_size(
    config: HeadConfig, base: BaseModelRecord, what_expects: str, what_got: str
) -> None:
    """Refuse a base whose last state is not as wide as what a head adds to it.

    Args:
        config: The head's.
        base: The base.
        what_expects: Name of the head.
        what_got: Name of the base.

    Raises:
        MismatchError: It is not.
    """
    if config.acts_on_state and base.hidden_size != config.hidden_size:
        raise MismatchError(
            f"{what_expects} adds to last states {config.hidden_size} wide, but {what_got} has "
            f"states of {base.hidden_size} ({base.id}). Train a head for this base, or use one "
            f"of kind mlp, which needs only the vocabulary."
        )


def map_layers(
    states: StatesRecord, trained_on: BaseModelRecord, other: BaseModelRecord
) -> tuple[int, ...]:
    """Return the layers a head reads on a base, which the same strategy chooses at its depth.

    Args:
        states: The states of the cache that the head was trained from.
        trained_on: The base of that cache.
        other: The base to read them on.

    Raises:
        MismatchError: The layers were chosen by index, and the base has another depth.
    """
    if other.num_hidden_layers == trained_on.num_hidden_layers:
        return states.layers
    if states.layer_selection == "explicit":
        raise MismatchError(
            f"The head reads layers {list(states.layers)} of {trained_on.num_hidden_layers}, "
            f"chosen by index, but {other.id} has {other.num_hidden_layers} layers; only heads "
            f"trained on `layer_selection` auto or uniform can go to a base of another depth."
        )
    return select_layers(states.layer_selection, len(states.layers), other.num_hidden_layers)
