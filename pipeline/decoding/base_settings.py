"""Translates a base's generation_config into `GenerationOptions`."""

from typing import Any, Final

from mav.cache_schema.errors import BaseModelError, UsageError
from mav.pipeline.decoding.options import GenerationOptions

_CARRIED_OUT: Final = ("top_k", "top_p", "min_p", "repetition_penalty", "max_new_tokens")
"""Settings that `GenerationOptions` has under the same name."""
_OTHERWISE_CARRIED_OUT: Final = ("do_sample", "temperature", "stop_strings")
_TOKENS: Final = ("eos_token_id", "pad_token_id", "bos_token_id", "decoder_start_token_id")
_CHANGE_NO_ANSWER: Final = (
    *("use_cache", "cache_implementation", "cache_config", "max_cache_len", "prefill_chunk_size"),
    *("compile_config", "disable_compile", "low_memory", "continuous_batching_config"),
    *("return_dict_in_generate", "output_attentions", "output_hidden_states", "output_scores"),
    *("output_logits", "is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule"),
    *("assistant_confidence_threshold", "assistant_early_exit", "assistant_lookbehind"),
    *("target_lookbehind", "prompt_lookup_num_tokens", "max_matching_ngram_size", "use_mtp"),
    *("speculation_type", "transformers_version", "_from_model_config", "trust_remote_code"),
)
"""Settings of speed, memory and what `generate()` returns."""
_NEUTRAL_AT_ONE: Final = (
    *("num_beams", "num_beam_groups", "num_return_sequences", "length_penalty", "typical_p"),
    *("guidance_scale", "encoder_repetition_penalty", "temperature"),
)


def settings_of(name: str, config: Any) -> dict[str, Any]:
    """Return the fields of `GenerationOptions` that a base's generation_config sets.

    `do_sample` says whether tokens are sampled: without it, or where it is false, `temperature`
    counts for nothing, as in transformers.

    Args:
        name: Of the base.
        config: Its generation_config.

    Raises:
        BaseModelError: A value is not one that `GenerationOptions` takes.
    """
    named = _named(config)
    settings: dict[str, Any] = {field: named[field] for field in _CARRIED_OUT if field in named}
    samples = named.get("do_sample", False)
    if not isinstance(samples, bool):
        raise BaseModelError(
            f"{name}: its generation_config has do_sample {samples!r}, expected true or false; "
            f"correct it, or leave out `base_generation_config`"
        )
    if samples:
        settings["temperature"] = named.get("temperature", 1.0)
    if stops := named.get("stop_strings"):
        settings["stop"] = stops
    try:
        GenerationOptions(**settings)
    except UsageError as error:
        raise BaseModelError(
            f"{name}: its generation_config cannot be applied: {error}. Correct it, or leave out "
            f"`base_generation_config`."
        ) from error
    return settings


def not_carried_out(config: Any) -> list[str]:
    """Return the settings of a base's generation_config that have no equivalent here."""
    known = {*_CARRIED_OUT, *_OTHERWISE_CARRIED_OUT, *_TOKENS, *_CHANGE_NO_ANSWER}
    return sorted(
        field
        for field, value in _named(config).items()
        if field not in known
        and (value not in (False, 0, "", [], {}) or (value == 0 and field.endswith("token_id")))
        and not (field in _NEUTRAL_AT_ONE and value == 1)
    )


def _named(config: Any) -> dict[str, Any]:
    values: dict[str, Any] = {} if config is None else config.to_dict()
    return {field: value for field, value in values.items() if value is not None}
