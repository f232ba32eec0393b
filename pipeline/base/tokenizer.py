"""Checks that a base's tokenizer works and fits its embedding."""

from pathlib import Path
from typing import Any, Final

from mav.cache_schema.errors import BaseModelError

_VOCABULARIES: Final = (
    "tokenizer.json",
    "*.model",
    "*.model.v*",
    "vocab*.json",
    "vocab*.txt",
    "*.tiktoken",
    "tekken.json",
    "*.vocab",
)
"""Files that hold a vocabulary; transformers makes an empty one if there is none."""


def require_vocabulary_files(folder: Path) -> None:
    """Refuse a folder without a tokenizer.

    Raises:
        BaseModelError: It has no file with a vocabulary.
    """
    if not any(any(folder.glob(pattern)) for pattern in _VOCABULARIES):
        raise BaseModelError(
            f"{folder}: its tokenizer is missing, expected a tokenizer.json or tokenizer.model "
            f"beside the weights. Download or copy the tokenizer's files too."
        )


def require_tokenizer(tokenizer: Any, name: str) -> None:
    """Refuse a tokenizer that returns no tokens for text, or has no end-of-text token.

    Args:
        tokenizer: The tokenizer.
        name: What the base is called.

    Raises:
        BaseModelError: It has no tokens of its own, or no end-of-sequence token.
    """
    own = len(tokenizer.get_vocab()) - len(tokenizer.get_added_vocab())
    if own < 1:
        raise BaseModelError(
            f"{name}: its tokenizer has no vocabulary: got {len(tokenizer.get_vocab())} tokens, "
            f"all of them added ones. Its files are incomplete; download them again."
        )
    if tokenizer.eos_token_id is None:
        raise BaseModelError(
            f"{name}: its tokenizer has no end-of-sequence token, which ends answers. Name one as "
            f"eos_token in tokenizer_config.json."
        )


def require_tokens_within(model: Any, tokenizer: Any, name: str, *, of_gguf: bool) -> None:
    """Refuse a tokenizer with tokens that the embedding has no row for.

    Args:
        model: The base's model; its weights need not be loaded.
        tokenizer: Its tokenizer.
        name: What the base is called.
        of_gguf: Whether the tokenizer was made from a GGUF file.

    Raises:
        BaseModelError: Naming the token with the largest id.
    """
    embeddings = (model.get_input_embeddings().weight, model.get_output_embeddings().weight)
    # Quantized embeddings are packed, so their shape does not tell.
    rows = min((len(weight) for weight in embeddings if weight.is_floating_point()), default=None)
    if rows is None:
        return
    vocabulary = tokenizer.get_vocab()
    if of_gguf:
        # transformers adds tokens of its own, such as <|endoftext|>, where the file has none.
        kept = tokenizer.all_special_tokens
        own = tokenizer.vocab_size
        vocabulary = {
            token: index for token, index in vocabulary.items() if index < own or token in kept
        }
    token, largest = max(vocabulary.items(), key=lambda item: int(item[1]))
    if largest >= rows:
        raise BaseModelError(
            f"{name}: its tokenizer's token {token!r} has the id {largest}, but its embedding has "
            f"{rows} rows. The tokenizer is another model's, or got tokens that the model was not "
            f"resized for: use the one it was trained with, or `resize_token_embeddings`."
        )
