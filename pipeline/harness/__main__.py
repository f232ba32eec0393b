"""lm-eval's own command line, with the model `mav` registered.

Example:
    python -m mav.pipeline.harness --model mav --model_args head=runs/head,alpha=1 --tasks blimp
"""

import sys

from mav.cache_schema.errors import MAVError


def main() -> None:
    """Run lm-eval with `sys.argv`; exit with one line if base, head or options are invalid."""
    try:
        from mav.pipeline.harness.installed import require_lm_eval

        require_lm_eval()
        from lm_eval.__main__ import cli_evaluate

        from mav.pipeline.harness import language_model  # noqa: F401

        cli_evaluate()
    except MAVError as error:
        sys.stderr.write(f"Error: {error}\n")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
