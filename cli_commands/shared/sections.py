"""What `--help` shows under which heading: the options of a command, and the commands."""

from collections.abc import Callable, Iterable, Mapping
from typing import Final

import click

OPTIONS: Final[Mapping[str, str]] = {
    "Data": "data data_dir split limit columns prompts eval_cache eval_fraction",
    "Base": "base_model bases gguf_file gguf_cache revision merge_adapter "
    "allow_tokenizer_mismatch base_generation_config",
    "Prompt format": "prompt_form template_date max_length",
    "States and logits": "layer_selection num_layers pooled_size logits extract.top_k compression "
    "storage_dtype",
    "Head": "head_type expansion_size rank dropout int8_head",
    "Objective": "objective beta label_smoothing simpo_gamma credit_discount ld_alpha lambda_l2 "
    "lambda_kl lambda_sft",
    "Optimisation": "learning_rate weight_decay max_grad_norm num_epochs warmup_steps optimizer "
    "ema bf16 no_bf16 shard train.seed",
    "Batches": "batch_size batch_tokens grad_accum",
    "Evaluation during training": "eval_steps keep_by early_stopping target_kl",
    "Tracking": "report_to project run_name",
    "Strength": "alpha alphas steer_above",
    "Tokens": "max_new_tokens temperature top_k top_p min_p repetition_penalty frequency_penalty "
    "presence_penalty num_beams stop seed cache_implementation compile",
    "Other systems and measures": "others reward_model reference refusals export",
    "Judge": "judge_url judge_model judge_prompt judge_key judge_temperature judge_concurrency "
    "judge_max_calls",
    "Server": "host port api_key served_model_name allow_origin access_log max_rows "
    "max_queue max_prompt_tokens",
    "vLLM": "engine allow_untested_vllm vllm_options",
    "Device": "dtype device device_map quantize allow_dtype_mismatch workers",
    "Output": "as_json config quiet verbose help",
}
"""Heading -> names of the parameters under it, which are the same things in every command but where
one is named before a dot. What is named nowhere comes first."""
COMMANDS: Final[Mapping[str, str]] = {
    "To begin with": "demo completion",
    "From pairs to a head": "extract verify train evaluate inspect",
    "Answers of base and head": "generate chat serve engine-args",
    "What is written": "compare harness",
    "Pairs of your own": "sample pairs",
    "Heads": "merge push",
}
"""Heading -> commands under it, in the order they are listed in."""
_FEW: Final = 16
"""A command with no more options needs no headings."""
Row = tuple[str, str]


def write_options(command: click.Command, ctx: click.Context, to: click.HelpFormatter) -> None:
    """Write the options of a command, under headings where there are many."""
    params = {param.name or "": param for param in command.get_params(ctx)}
    rows = {
        name: row
        for name, param in params.items()
        if (row := param.get_help_record(ctx)) is not None
    }
    table = _headings(OPTIONS) if len(rows) > _FEW else {}

    def heading_of(name: str) -> str:
        return table.get(f"{command.name}.{name}") or table.get(name, "Options")

    _write(rows, ("Options", *OPTIONS), heading_of, to)


def write_commands(group: click.Group, ctx: click.Context, to: click.HelpFormatter) -> None:
    """Write the commands of a group under headings, the first sentence of each in full."""
    table = _headings(COMMANDS)
    order = [*table]
    names = sorted(group.list_commands(ctx), key=order.index)
    rows = {
        name: (name, command.get_short_help_str(limit=200))
        for name in names
        if (command := group.get_command(ctx, name)) is not None
    }
    _write(rows, COMMANDS, table.__getitem__, to)


def _headings(table: Mapping[str, str]) -> dict[str, str]:
    return {name: heading for heading, names in table.items() for name in names.split()}


def _write(
    rows: Mapping[str, Row],
    headings: Iterable[str],
    heading_of: Callable[[str], str],
    to: click.HelpFormatter,
) -> None:
    for heading in headings:
        under = [row for name, row in rows.items() if heading_of(name) == heading]
        if under:
            with to.section(heading):
                to.write_dl(under)
