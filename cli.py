"""The command line; `cli_commands` has the commands, and `pipeline` does all their work."""

import click

from mav.cli_commands.chat import chat_command
from mav.cli_commands.compare import compare_command
from mav.cli_commands.completion import completion_command
from mav.cli_commands.demo import demo_command
from mav.cli_commands.engine_args import engine_args_command
from mav.cli_commands.evaluate import evaluate_command
from mav.cli_commands.extract import extract_command
from mav.cli_commands.generate import generate_command
from mav.cli_commands.harness import harness_command
from mav.cli_commands.inspect import inspect_command
from mav.cli_commands.merge import merge_command
from mav.cli_commands.pairs import pairs_command
from mav.cli_commands.push import push_command
from mav.cli_commands.sample import sample_command
from mav.cli_commands.serve import serve_command
from mav.cli_commands.shared.sections import write_commands
from mav.cli_commands.train import train_command
from mav.cli_commands.verify import verify_command


class CommandsUnderHeadings(click.Group):
    """A group whose help lists its commands by what they are for."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands under headings; see `sections`."""
        write_commands(self, ctx, formatter)


@click.group(
    cls=CommandsUnderHeadings, context_settings={"show_default": True, "max_content_width": 100}
)
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
    compare_command,
    harness_command,
    inspect_command,
    merge_command,
    push_command,
    generate_command,
    chat_command,
    sample_command,
    pairs_command,
    serve_command,
    engine_args_command,
    demo_command,
    completion_command,
):
    main.add_command(_command)


if __name__ == "__main__":
    main()
