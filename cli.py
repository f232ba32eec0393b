"""The command line; `cli_commands` has the commands, and `pipeline` does all their work."""

import click

from mav.cli_commands.answering import chat_command, generate_command, serve_command
from mav.cli_commands.caches import extract_command, verify_command
from mav.cli_commands.heads import evaluate_command, train_command
from mav.cli_commands.showing import demo_command, inspect_command


@click.group(context_settings={"show_default": True, "max_content_width": 100})
@click.version_option(package_name="mav-align", prog_name="mav")
def main() -> None:
    """Modular Alignment Vectors: align a frozen language model at test time.

    Extract a cache from a base model once, train a head from the cache alone, then decode with
    z_final = z_base + alpha * a, alpha chosen at every call.
    """


for _command in (
    extract_command,
    verify_command,
    train_command,
    evaluate_command,
    inspect_command,
    generate_command,
    chat_command,
    serve_command,
    demo_command,
):
    main.add_command(_command)


if __name__ == "__main__":
    main()
