"""Fields that request nothing at some of their values, which are accepted at these."""

from typing import Any, Final

Neutral = dict[str, tuple[Any, ...]]

REQUEST_NEUTRAL: Final[Neutral] = {
    "add_generation_prompt": (True,),
    "audio": (),
    "best_of": (1,),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "continue_final_message": (False,),
    "echo": (False,),
    "extra_body": ({},),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "ignore_eos": (False,),
    "include_stop_str_in_output": (False,),
    "length_penalty": (1,),
    "min_tokens": (0,),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "prompt_logprobs": (),
    "reasoning_effort": ("none",),
    "skip_special_tokens": (True,),
    "stop_token_ids": ([],),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "use_beam_search": (False,),
    "verbosity": ("medium",),
    "web_search_options": (),
}
"""Fields of OpenAI's and vLLM's API that this server does not support, and their neutral values.

Where an endpoint has one of these fields, it is validated there instead.
"""

MESSAGE_NEUTRAL: Final[Neutral] = {
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "prefix": (False,),
    "reasoning": ("",),
    "reasoning_content": ("",),
    "refusal": ("",),
    "tool_calls": ([],),
}
"""The same for messages."""

IGNORED: Final = (
    "metadata",
    "prompt_cache_key",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "store",
    "user",
)
"""Fields that may have any value."""
