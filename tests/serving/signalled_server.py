"""Serves in processes that get a signal: `python -m tests.serving.signalled_server HEAD BASE`.

Writes a JSON object: `missing`, the error without fastapi, and for the number of each signal the
exit status of a server that got it and what it printed after its address.
"""

import json
import logging
import os
import signal
import sys

from mav.cache_schema.errors import UsageError
from mav.pipeline.serving.options import ServeOptions
from mav.pipeline.serving.server import serve


def without_fastapi() -> str:
    """Return the error of a server where fastapi is not installed."""
    sys.modules["fastapi"] = None  # type: ignore[assignment]
    try:
        serve(ServeOptions(head="none"))
    except UsageError as error:
        return str(error)
    finally:
        del sys.modules["fastapi"]
    return "no error"


def signalled(options: ServeOptions, number: int) -> list[object]:
    """Serve in a child process and send it a signal; return its status and last output."""
    output, child_output = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(child_output, sys.stdout.fileno())
        os.close(child_output)
        logging.basicConfig(stream=sys.stdout)
        logging.getLogger("mav").setLevel("INFO")
        serve(options)
        sys.exit()
    os.close(child_output)
    with os.fdopen(output, encoding="utf-8") as lines:
        served = any("http://127.0.0.1:" in line for line in lines)
        os.kill(child, number)
        rest = lines.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return [served, status, rest]


def main(head: str, base: str) -> None:
    """Write the report."""
    report: dict[str, object] = {"missing": without_fastapi()}
    # What a shell starts in the background ignores SIGINT.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Imported once for both children.
    import mav.pipeline.decoding.inference
    import mav.pipeline.serving.app
    import mav.pipeline.serving.http_server  # noqa: F401

    options = ServeOptions(head=head, bases=(base,), port=0, device="cpu")
    for number in (signal.SIGINT, signal.SIGTERM):
        report[number.name] = signalled(options, number)
    sys.stdout.write(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
