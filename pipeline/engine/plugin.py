"""The entry point that vLLM calls in each of its processes."""

from mav.pipeline.engine.names import MODELS, engine_architecture, model_class


def register() -> None:
    """Make the classes with heads known to vLLM; nothing else of vLLM's changes.

    They are made when one is asked for. Some architectures have settings of their own, which vLLM
    finds by the name.
    """
    import vllm
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP
    from vllm.model_executor.models.registry import ModelRegistry

    version = vllm.__version__.partition("+")[0]
    known = [name for name in ModelRegistry.get_supported_archs() if name.endswith("ForCausalLM")]
    for architecture in known:
        name = engine_architecture(architecture)
        if architecture.startswith("MAV"):
            continue
        ModelRegistry.register_model(name, f"{MODELS}:{model_class(architecture, version)}")
        if architecture in MODELS_CONFIG_MAP:
            MODELS_CONFIG_MAP[name] = MODELS_CONFIG_MAP[architecture]
