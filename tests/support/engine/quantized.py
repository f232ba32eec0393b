"""Tiny bases in the formats of quantized checkpoints, each beside the weights that it stands for.

The formats are written out here, as the tools that write them need a GPU or a calibration.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

GROUP: Final = 32
"""Inputs that share a scale."""
BLOCK: Final = 128
"""Rows and columns that share a scale in FP8, of which sizes of a base are multiples."""
_IN_ORDER: Final = tuple(range(8))
_INTERLEAVED: Final = (0, 2, 4, 6, 1, 3, 5, 7)
"""Where AutoAWQ puts the columns of a word."""
_LARGEST: Final = 448.0
"""Of float8_e4m3fn."""
Written = tuple[dict[str, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """A format.

    Attributes:
        config: `quantization_config` of the checkpoint.
        write: Makes of a matrix its tensors by their names' ends, and what they stand for.
        rounds_inputs: Whether inputs of layers are rounded too, to 8 bits by token.
        dtype: What vLLM has a kernel for.
    """

    config: dict[str, Any]
    write: Callable[[Tensor], Written]
    rounds_inputs: bool = False
    dtype: str = "float16"


def packed(codes: Tensor, order: Sequence[int] = _IN_ORDER) -> Tensor:
    """Pack codes of 4 bits, [R, 8 N], into words, int32 [R, N]."""
    words = codes.reshape(codes.shape[0], -1, 8).to(torch.int64)
    total = sum(words[:, :, column] << (4 * place) for place, column in enumerate(order))
    assert isinstance(total, Tensor)
    return torch.where(total >= 2**31, total - 2**32, total).to(torch.int32)


def by_groups(weight: Tensor, *, zero_points: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Round a matrix [out, in] to 16 steps in each group of inputs.

    Returns:
        Codes [out, in], scales float16 and zero points [out, groups], and what they stand for.
    """
    grouped = weight.reshape(weight.shape[0], -1, GROUP)
    if zero_points:
        low, high = grouped.amin(-1).clamp(max=0), grouped.amax(-1).clamp(min=0)
        scales = ((high - low) / 15).half()
        zeros = (-low / scales.float()).round().clamp(0, 15)
    else:
        scales = (grouped.abs().amax(-1) / 7).half()
        zeros = torch.full_like(scales, 8, dtype=torch.float32)
    step = scales.float()[..., None]
    codes = ((grouped / step).round() + zeros[..., None]).clamp(0, 15)
    dense = (codes - zeros[..., None]) * step
    return codes.reshape(weight.shape), scales, zeros, dense.reshape(weight.shape)


def _awq(weight: Tensor) -> Written:
    codes, scales, zeros, dense = by_groups(weight, zero_points=True)
    words = packed(codes.T, _INTERLEAVED), packed(zeros.T, _INTERLEAVED)
    return {"qweight": words[0], "qzeros": words[1], "scales": scales.T.contiguous()}, dense


def _gptq(weight: Tensor) -> Written:
    codes, scales, zeros, dense = by_groups(weight, zero_points=False)
    return {
        "qweight": packed(codes).T.contiguous(),
        "qzeros": packed(zeros.T - 1),
        "scales": scales.T.contiguous(),
        "g_idx": torch.arange(weight.shape[1], dtype=torch.int32) // GROUP,
    }, dense


def _int4(weight: Tensor) -> Written:
    codes, scales, _, dense = by_groups(weight, zero_points=False)
    shape = torch.tensor(weight.shape)
    return {"weight_packed": packed(codes), "weight_scale": scales, "weight_shape": shape}, dense


def _int8(weight: Tensor) -> Written:
    scales = weight.abs().amax(-1, keepdim=True) / 127
    codes = (weight / scales).round().clamp(-128, 127)
    return {"weight": codes.to(torch.int8), "weight_scale": scales}, codes * scales


def _fp8(weight: Tensor) -> Written:
    blocks = weight.unfold(0, BLOCK, BLOCK).unfold(1, BLOCK, BLOCK)
    scales = blocks.abs().amax((-1, -2)) / _LARGEST
    wide = scales.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
    codes = (weight / wide).to(torch.float8_e4m3fn)
    return {"weight": codes, "weight_scale_inv": scales}, codes.float() * wide


def _compressed(form: str, weights: dict[str, Any], inputs: Any = None) -> dict[str, Any]:
    group = {"targets": ["Linear"], "output_activations": None, "input_activations": inputs}
    group["weights"] = {"type": "int", "symmetric": True, "dynamic": False, **weights}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
    }


# Not symmetric: vLLM 0.32 ends the process in its kernel for symmetric ones on processors with AMX.
_PER_TOKEN: Final = {
    "num_bits": 8,
    "type": "int",
    "symmetric": False,
    "strategy": "token",
    "dynamic": True,
}
SCHEMES: Final = {
    "awq": Scheme(
        config={
            "quant_method": "awq",
            "bits": 4,
            "group_size": GROUP,
            "zero_point": True,
            "version": "gemm",
        },
        write=_awq,
    ),
    "gptq": Scheme(
        config={
            "quant_method": "gptq",
            "bits": 4,
            "group_size": GROUP,
            "sym": True,
            "desc_act": False,
            "checkpoint_format": "gptq",
        },
        write=_gptq,
    ),
    "int4": Scheme(
        config=_compressed(
            "pack-quantized", {"num_bits": 4, "strategy": "group", "group_size": GROUP}
        ),
        write=_int4,
    ),
    "int8": Scheme(
        config=_compressed("int-quantized", {"num_bits": 8, "strategy": "channel"}, _PER_TOKEN),
        write=_int8,
        rounds_inputs=True,
        dtype="float32",
    ),
    "fp8": Scheme(
        config={
            "quant_method": "fp8",
            "activation_scheme": "dynamic",
            "weight_block_size": [BLOCK, BLOCK],
        },
        write=_fp8,
        dtype="bfloat16",
    ),
}


def write_quantized(base: Path, folder: Path, scheme: Scheme) -> None:
    """Write a base's quantized checkpoint as `quantized`, and its weights, dense, as `dense`."""
    stored, dense = {}, {}
    for name, weight in load_file(base / "model.safetensors").items():
        dense[name] = weight
        if not name.endswith("_proj.weight"):
            stored[name] = weight
            continue
        tensors, dense[name] = scheme.write(weight)
        place = name.removesuffix("weight")
        stored |= {f"{place}{end}": tensor.contiguous() for end, tensor in tensors.items()}
    config = json.loads((base / "config.json").read_text())
    quantized = {**config, "quantization_config": scheme.config}
    for name, tensors, described in (("quantized", stored, quantized), ("dense", dense, config)):
        place = folder / name
        place.mkdir(parents=True)
        for file in base.iterdir():
            (place / file.name).write_bytes(file.read_bytes())
        save_file(tensors, place / "model.safetensors", {"format": "pt"})
        (place / "config.json").write_text(json.dumps(described))
