"""`mav serve`: load a head and its first base, and serve until interrupted."""

from typing import TYPE_CHECKING

from mav.cache_schema.errors import UsageError
from mav.pipeline.serving.options import ServeOptions

if TYPE_CHECKING:
    from mav.pipeline.serving.address import Address
    from mav.pipeline.serving.http_server import HttpServer


def serve(options: ServeOptions) -> None:
    """Load, listen, and answer until SIGINT or SIGTERM.

    Args:
        options: All settings.

    Raises:
        MAVError: Something cannot be loaded, does not belong together, or the address is taken.
    """
    load_server(options).run()


def load_server(options: ServeOptions) -> "HttpServer":
    """Take the address, load head and first base, and return the server, which `run` starts.

    Raises:
        MAVError: As `serve` has it.
    """
    from mav.pipeline.serving.address import take_address

    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"mav serve needs {error.name}, which is not installed: pip install 'mav-align[serve]'"
        ) from error
    # Before anything is loaded, which may take minutes.
    address = take_address(options.host, options.port)
    try:
        return _load_on(address, options)
    except BaseException:
        address.socket.close()
        raise


def _load_on(address: "Address", options: ServeOptions) -> "HttpServer":
    from mav.pipeline.base.source import resolve_base
    from mav.pipeline.decoding.attach import AttachOptions
    from mav.pipeline.decoding.inference import MAVInference
    from mav.pipeline.serving.app import build_app
    from mav.pipeline.serving.bases import require_all_fit, served_bases
    from mav.pipeline.serving.http_server import HttpServer
    from mav.pipeline.serving.metrics import Metrics
    from mav.pipeline.serving.prompts import Limits
    from mav.pipeline.serving.worker import Worker

    sources = [resolve_base(base, options.gguf_file, options.revision) for base in options.bases]
    bases = served_bases(sources)
    if len(sources) > 1:
        rules = AttachOptions(
            allow_tokenizer_mismatch=options.allow_tokenizer_mismatch,
            prompt_form=options.prompt_form,
            template_date=options.template_date,
            int8_head=options.int8_head,
            base_generation_config=options.base_generation_config,
            gguf_cache=options.gguf_cache,
        )
        require_all_fit(options.head, sources[1:], rules, options.quantize)
    mav = MAVInference(
        options.head,
        options.bases[0] if options.bases else None,
        gguf_file=options.gguf_file,
        revision=options.revision,
        dtype=options.dtype,
        device=options.device,
        device_map=options.device_map,
        quantize=options.quantize,
        prompt_form=options.prompt_form,
        template_date=options.template_date,
        allow_tokenizer_mismatch=options.allow_tokenizer_mismatch,
        int8_head=options.int8_head,
        base_generation_config=options.base_generation_config,
        gguf_cache=options.gguf_cache,
    )
    if not bases:
        assert mav.base.source is not None
        bases = served_bases([mav.base.source])
    metrics = Metrics()
    worker = Worker(
        mav,
        bases,
        limits=Limits(
            max_new_tokens=options.max_new_tokens,
            max_prompt_tokens=options.max_prompt_tokens,
            base_generation_config=options.base_generation_config,
        ),
        max_rows=options.max_rows,
        max_queue=options.max_queue,
        metrics=metrics,
    )
    return HttpServer(address, build_app(options, worker, metrics), worker)
