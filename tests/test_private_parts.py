"""Parts of libraries that their makers call private: those we use, and that each is as we take it.

Decision 18 gives the reason for each. When a library is upgraded and one of these fails, the code
that uses the part is to be changed with it.
"""

import ast
import inspect
import io
from pathlib import Path
from typing import Any, Final

import torch
import transformers
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from tqdm import tqdm
from transformers import CompileConfig, PreTrainedModel, modeling_gguf_pytorch_utils

from tests.support.models.tiny import tiny_base

ROOT: Final = Path(__file__).parents[1]
USED: Final = {
    "_attn_implementation",
    "_compile_all_devices",
    "_compiled_call",
    "_instances",
    "_is_amx_tile_supported",
    "_is_avx512_bf16_supported",
    "_is_mkldnn_bf16_supported",
}
"""Private attributes of libraries that the product reads or sets."""


def test_no_others_are_used() -> None:
    own: set[str] = set()
    read: set[str] = set()
    for folder in ("pipeline", "cache_schema", "cli_commands", "mav"):
        for path in (ROOT / folder).glob("**/*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.FunctionDef | ast.ClassDef):
                    own.add(node.name)
                elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                    own.add(node.id)
                elif isinstance(node, ast.Attribute):
                    of = node.value.id if isinstance(node.value, ast.Name) else ""
                    (own if of in ("self", "cls", "os") else read).add(node.attr)
    private = {name for name in read - own if name.startswith("_") and not name.endswith("__")}
    # Named tuples have public names that begin so, lest they be those of fields.
    assert private - {"_asdict", "_fields", "_replace"} == USED


def test_a_configuration_names_the_attention_that_is_in_use() -> None:
    model = tiny_base().model
    model.set_attn_implementation("eager")
    assert model.config._attn_implementation == "eager"


def test_generate_keeps_a_compiled_call() -> None:
    assert "self._compiled_call = torch.compile(" in inspect.getsource(
        PreTrainedModel.get_compiled_call
    )


def test_generate_compiles_on_every_device_when_asked() -> None:
    assert CompileConfig()._compile_all_devices is None
    assert "_compile_all_devices" in inspect.getsource(transformers.GenerationMixin)


def test_a_spread_module_has_a_hook_that_knows_its_device() -> None:
    module = torch.nn.Linear(2, 2)
    add_hook_to_module(module, AlignDevicesHook(execution_device=torch.device("cpu")))
    hook: Any = module._hf_hook
    assert hook.execution_device == torch.device("cpu")


def test_the_gguf_reader_maps_names_and_has_a_bar() -> None:
    assert callable(modeling_gguf_pytorch_utils.get_gguf_hf_weights_map)
    assert callable(modeling_gguf_pytorch_utils.tqdm)


def test_torch_knows_what_the_processor_multiplies() -> None:
    assert isinstance(torch.cpu._is_avx512_bf16_supported(), bool)
    assert isinstance(torch.cpu._is_amx_tile_supported(), bool)
    assert isinstance(torch.ops.mkldnn._is_mkldnn_bf16_supported(), bool)


def test_bars_that_were_not_closed_are_known() -> None:
    with io.StringIO() as nowhere:
        bar = tqdm(total=1, file=nowhere)
        assert bar in tqdm._instances
        bar.close()
    assert bar not in tqdm._instances
