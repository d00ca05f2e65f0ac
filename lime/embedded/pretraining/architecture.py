"""The embedded backbones: small models of the real transformers classes, with tokenizer, templates and processors.

Both are of the shapes of their large relatives (Qwen2 decoder with grouped keys and values, SigLIP tower or Qwen2-VL's
own, the same special tokens and chat templates) at widths that a laptop trains in minutes; backbones.yaml says all of
them. Nothing here is loaded to use them: once saved, they are ordinary checkpoints.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoConfig, PreTrainedModel, Qwen2Tokenizer

from lime.processors.config import EMBEDDED, FAMILIES
from lime.system.atomic import write_json, write_text

SPECS: dict[str, dict[str, Any]] = yaml.safe_load(
    Path(__file__).with_name("backbones.yaml").read_text(encoding="utf-8")
)
"""What backbones.yaml says of each family, and of the "text" part that they share."""

IMAGE_SIZE = 32  # LLaVA-OneVision: side of the vision tower's input, pixels
PATCH = 8
FRAMES = 8
QWEN_IMAGE_SIZE = 64
QWEN_FRAME_SIZE = 48

SPECIAL_TOKENS = (
    "<|endoftext|> <|im_start|> <|im_end|> <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|> "
    "<image> <video>"
).split()
VOCABULARY = 2100  # byte-level BPE, before the special tokens


def train_tokenizer(texts: Iterable[str]) -> Qwen2Tokenizer:
    """Byte-level BPE of `VOCABULARY` entries over `texts`: a Qwen2 tokenizer with both families' special tokens."""
    raw = Tokenizer(models.BPE())
    raw.normalizer = normalizers.NFC()
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            min_frequency=2,
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    model = json.loads(raw.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=[tuple(m) for m in model["merges"]],  # type: ignore[misc]
        unk_token=None,  # type: ignore[arg-type]  # byte-level: nothing is unknown
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        padding_side="left",
        model_max_length=2048,
    )
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL_TOKENS})
    return tokenizer


def token_id(tokenizer: Qwen2Tokenizer, token: str) -> int:
    identity = tokenizer.convert_tokens_to_ids(token)
    assert isinstance(identity, int)
    return identity


def build(name: str, tokenizer: Qwen2Tokenizer, seed: int = 0) -> PreTrainedModel:
    """The randomly initialised backbone `name`."""
    torch.manual_seed(seed)
    family = EMBEDDED[name]
    spec = copy.deepcopy(SPECS[family])  # transformers completes what it is given in place
    ends = {"bos_token_id": "<|endoftext|>", "eos_token_id": "<|im_end|>", "pad_token_id": "<|endoftext|>"}
    text = {"vocab_size": len(tokenizer), **SPECS["text"], **spec["model"].get("text_config", {})}
    text |= {key: token_id(tokenizer, token) for key, token in ends.items()}
    marks = {key: token_id(tokenizer, token) for key, token in spec["tokens"].items()}
    config = AutoConfig.for_model(family, **{**spec["model"], "text_config": text}, **marks)
    model: PreTrainedModel = getattr(transformers, FAMILIES[family])(config)
    return model


def save_processor(name: str, tokenizer: Qwen2Tokenizer, folder: Path) -> None:
    """Tokenizer, chat template and processor configurations in the layout of any checkpoint of the family."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    spec = SPECS[EMBEDDED[name]]
    rescale = {"do_convert_rgb": True, "do_rescale": True, "do_normalize": True, "rescale_factor": 1 / 255}
    common = {**rescale, "resample": 3, **spec["normal"], **spec["common"]}
    common["processor_class"] = spec["processor"]["processor_class"]
    write_json(folder / "preprocessor_config.json", common | spec["image"])
    write_json(folder / "video_preprocessor_config.json", common | spec["video"])
    write_json(folder / "processor_config.json", spec["processor"])
    write_text(folder / "chat_template.jinja", spec["template"])


def visual_tokens(name: str, kind: str) -> str:
    """The placeholder run that stands for one image or video of the embedded benchmark's size in a prompt."""
    if EMBEDDED[name] == "llava_onevision":
        side = IMAGE_SIZE // PATCH
        pooled = (side + 1) // 2
        count = side * side + side * (side + 1) if kind == "image" else FRAMES * pooled * pooled + 1
        return " " + f"<{kind}>" * count
    side = (QWEN_IMAGE_SIZE if kind == "image" else QWEN_FRAME_SIZE) // PATCH // 2
    count = side * side * (1 if kind == "image" else FRAMES // 2)
    return "<|vision_start|>" + f"<|{kind}_pad|>" * count + "<|vision_end|>"


def render(name: str, turns: list[tuple[str, str]], kind: str | None = None) -> list[tuple[str, bool]]:
    """A conversation as text pieces with a mark on those that are learned (answers with their end token)."""
    qwen = EMBEDDED[name] == "qwen2_vl"
    pieces = [("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n", False)] if qwen else []
    for number, (question, answer) in enumerate(turns):
        media = visual_tokens(name, kind) if kind and number == 0 else ""
        user = f"<|im_start|>user\n{media}{question}" if qwen else f"<|im_start|>user{media}\n{question}"
        pieces.append((f"{user}<|im_end|>\n<|im_start|>assistant\n", False))
        pieces.append((f"{answer}<|im_end|>", True))
        pieces.append(("\n", False))
    return pieces[:-1]
