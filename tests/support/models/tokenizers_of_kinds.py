"""Small tokenizers of the kinds that bases have, made on the spot."""

from collections.abc import Callable
from functools import cache
from typing import Any, Final

import tokenizers
import transformers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from tests.support.models.tiny import tiny_tokenizer

_PIECES: Final = ("▁", *map(chr, range(33, 127)), "é", '▁"', "▁{", '",', '":', "1", "12", "true")


@cache
def llama_kind() -> Any:
    """SentencePiece's BPE with byte fallback, as LLaMA 2 and Mistral have it."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *_PIECES]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    merges = [("▁", '"'), ("▁", "{"), ('"', ","), ('"', ":"), ("1", "2")]
    vocabulary.pop("true")
    model = tokenizers.Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    model.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    model.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return _fast(model)


@cache
def unigram_kind() -> Any:
    """SentencePiece's unigram model with byte fallback."""
    return _unigram(decoders.Replace("▁", " "))


@cache
def metaspace_kind() -> Any:
    """The same with a decoder whose spaces depend on what is before, as T5 has it."""
    return _unigram(decoders.Metaspace(prepend_scheme="first"))


def _unigram(decoder: Any) -> Any:
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *_PIECES]
    scored = [(piece, -float(number)) for number, piece in enumerate(dict.fromkeys(pieces))]
    model = tokenizers.Tokenizer(models.Unigram(scored, 0, True))
    model.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    model.decoder = decoders.Sequence([decoder, decoders.ByteFallback(), decoders.Fuse()])
    return _fast(model)


def _fast(model: Any) -> Any:
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=model, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


TOKENIZERS: Final[dict[str, Callable[[], Any]]] = {
    "byte-level BPE": tiny_tokenizer,
    "BPE with byte fallback": llama_kind,
    "unigram with byte fallback": unigram_kind,
}
