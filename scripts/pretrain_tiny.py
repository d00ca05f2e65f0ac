"""Train an embedded backbone from scratch on procedural data and save it as a checkpoint with its model card.

    python scripts/pretrain_tiny.py --model tiny_llava_onevision --work outputs/pretrain_tiny

The stages (text, vision, joint) are kept in the work folder; a stage that is there is not repeated, and the text stage
serves both backbones.
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # read when torch is imported: see lime.system.threads

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, Qwen2Tokenizer

from lime.config.scripts import run_script, script_parser
from lime.data.collate import IGNORED
from lime.embedded.benchmark.sentences import READABLE
from lime.embedded.pretraining import architecture, probe, text_corpus
from lime.embedded.pretraining.batches import Encoder, induction_batches, text_batches
from lime.embedded.pretraining.card import card
from lime.embedded.pretraining.loop import ATTENTION, Stage, answer_loss, patches_by_matrix_product, train
from lime.embedded.pretraining.pool import build_pool
from lime.embedded.pretraining.visual_batches import Pool, mixed, normalise, patches, visual_batches
from lime.embedded.pretraining.visual_corpus import HEADS, class_labels
from lime.processors.config import EMBEDDED
from lime.system.atomic import replacing, replacing_folder, write_json, write_text
from lime.system.ownership import claim

logger = logging.getLogger("pretrain_tiny")


def tokenizer_texts(seed: int = 7):
    """What the tokenizer learns from: pretraining dialogues and single general words."""
    rng = np.random.default_rng(seed)
    for _ in range(12_000):
        for turn in text_corpus.text_dialogue(rng):
            yield from turn
    for word in [*text_corpus.COMMON, *text_corpus.NUMBERS] * 12:
        yield word
        yield " " + word
    for word in text_corpus.GENERAL * 4:
        yield word.capitalize()


def get_tokenizer(work: Path) -> Qwen2Tokenizer:
    folder = work / "tokenizer"
    if not (folder / "tokenizer_config.json").exists():
        tokenizer = architecture.train_tokenizer(tokenizer_texts())
        merged = [w for w in READABLE if len(tokenizer(w).input_ids) != len(w)]
        if merged:
            raise RuntimeError(f"words to read must be spelled by letters, but are merged: {merged}")
        with replacing_folder(folder, "tokenizer", overwrite=True) as temporary:  # the work folder was claimed
            tokenizer.save_pretrained(temporary)
    return Qwen2Tokenizer.from_pretrained(folder)


def record(work: Path, key: str, stage: Stage) -> None:
    write_json(work / f"{key}.json", asdict(stage))


def save_weights(module: torch.nn.Module, target: Path) -> None:
    with replacing(target) as temporary:
        save_file({name: value.detach().contiguous() for name, value in module.state_dict().items()}, temporary)


def text_stage(work: Path, minutes: float, batch_size: int, seed: int) -> None:
    """The language model alone, on text. Its weights fit both backbones."""
    target = work / "text.safetensors"
    if target.exists():
        return
    tokenizer = get_tokenizer(work)
    model = architecture.build("tiny_llava_onevision", tokenizer, seed)
    model.set_attn_implementation(ATTENTION)
    language = model.model.language_model
    encoders = [Encoder(name, tokenizer) for name in EMBEDDED]

    class Wrapped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.lm_head = language, model.lm_head

    wrapped = Wrapped()
    streams = {
        "text": text_batches(encoders, batch_size, seed),
        "induction": induction_batches(architecture.VOCABULARY, batch_size, seed),
    }
    stage = train(
        "text",
        wrapped,
        mixed(streams, ["text", "text", "text", "induction"], first=(["text", "induction"], 800)),
        lambda batch: answer_loss(wrapped, {"input_ids": batch[0]}, batch[1]),
        minutes=minutes,
    )
    save_weights(language, target)
    record(work, "text", stage)


class Heads(torch.nn.Module):
    """A vision tower with throw-away linear heads on all its output tokens: (B, tokens * width) -> `HEADS`."""

    def __init__(self, model: torch.nn.Module, family: str) -> None:
        super().__init__()
        self.family = family
        self.tower = model.model.vision_tower if family == "llava_onevision" else model.model.visual
        width = 16 * (128 if family == "llava_onevision" else model.config.text_config.hidden_size)
        self.heads = torch.nn.Linear(width, sum(HEADS.values()))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        if self.family == "llava_onevision":
            features = self.tower(pixels, output_hidden_states=True).hidden_states[-1]
        else:
            flat, grid = patches(pixels[:, None])
            features = self.tower(flat, grid_thw=grid).pooler_output
        return self.heads(features.reshape(len(pixels), -1))


def vision_stage(work: Path, name: str, minutes: float, batch_size: int, seed: int) -> None:
    """The vision tower alone, by classification with heads that are thrown away."""
    target = work / f"{name}.vision.safetensors"
    if target.exists():
        return
    family = EMBEDDED[name]
    pool = Pool(name, work / "pool")
    model = architecture.build(name, get_tokenizer(work), seed)
    model.set_attn_implementation(ATTENTION)
    heads = Heads(model, family)
    if family == "qwen2_vl":
        patches_by_matrix_product(heads.tower)
    names = list(HEADS)
    classes = torch.full((len(pool.image_items), len(names)), IGNORED)
    for row, item in enumerate(pool.image_items):
        for head, value in class_labels(item["name"], item).items():
            classes[row, names.index(head)] = value
    rng = np.random.default_rng([seed, 3])

    def batches():
        while True:
            rows = np.sort(rng.integers(0, len(classes), batch_size))
            pixels = np.roll(pool.images[rows], rng.integers(-1, 2, 2).tolist(), (1, 2))
            yield "classes", (normalise(pixels, family).bfloat16(), classes[rows])

    def loss(batch) -> torch.Tensor:
        logits = heads(batch[0]).float().split(list(HEADS.values()), dim=1)
        terms = []
        for column, scores in enumerate(logits):
            truth = batch[1][:, column]
            if (truth >= 0).any():
                terms.append(torch.nn.functional.cross_entropy(scores, truth, ignore_index=IGNORED))
        return torch.stack(terms).sum()

    stage = train("vision", heads, batches(), loss, minutes=minutes, peak=1.5e-3, decay_from=0.3, clip=2.0, every=150)
    save_weights(heads.tower, target)
    record(work, f"{name}.vision", stage)


PATTERN = ["text", "image", "video", "text", "image", "text", "video", "image", "text"]
PATTERN_EXTENDED = ["text", "image", "image", "video", "text", "image"]


def joint_stage(work: Path, name: str, minutes: float, batch_size: int, seed: int) -> None:
    """Language model, projector and vision tower together on text, images and clips."""
    if (work / name / "model.safetensors").exists():
        return
    model = architecture.build(name, get_tokenizer(work), seed)
    _tower(model).load_state_dict(load_file(work / f"{name}.vision.safetensors"))
    model.model.language_model.load_state_dict(load_file(work / "text.safetensors"))
    _train_jointly("joint", work, name, model, PATTERN, minutes, batch_size, seed, peak=1.5e-3, decay_from=0.25)


def extend_stage(work: Path, name: str, minutes: float, batch_size: int, seed: int) -> None:
    """More of the joint stage from where it ended, with more images; the checkpoint is replaced."""
    if (work / f"{name}.extend.json").exists():
        return
    model = AutoModelForImageTextToText.from_pretrained(work / name, dtype=torch.float32)
    pattern = PATTERN_EXTENDED
    _train_jointly("extend", work, name, model, pattern, minutes, batch_size, seed + 7, peak=1e-3, decay_from=0.1)


def _tower(model: Any) -> Any:
    return model.model.vision_tower if hasattr(model.model, "vision_tower") else model.model.visual


def _train_jointly(
    stage_name: str,
    work: Path,
    name: str,
    model: Any,
    pattern: list[str],
    minutes: float,
    batch_size: int,
    seed: int,
    *,
    peak: float,
    decay_from: float,
) -> None:
    """Train on all modalities, and save the checkpoint with its processor and the stage's record."""
    tokenizer = get_tokenizer(work)
    model.set_attn_implementation(ATTENTION)
    if EMBEDDED[name] == "qwen2_vl":
        patches_by_matrix_product(_tower(model))
    encoder, pool = Encoder(name, tokenizer), Pool(name, work / "pool")

    def text():
        for kind, (ids, labels) in text_batches([encoder], batch_size, seed + 1):
            yield kind, ({"input_ids": ids}, labels)

    streams = {"text": text(), **{k: visual_batches(pool, encoder, k, batch_size, seed) for k in ("image", "video")}}
    stage = train(
        stage_name,
        model,
        mixed(streams, pattern),
        lambda batch: answer_loss(model, *batch),
        minutes=minutes,
        peak=peak,
        decay_from=decay_from,
    )
    model.set_attn_implementation("sdpa")
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    with replacing_folder(work / name, "checkpoint", overwrite=True) as temporary:
        model.save_pretrained(temporary)
        architecture.save_processor(name, tokenizer, temporary)
    record(work, f"{name}.{stage_name}", stage)


def card_stage(work: Path, name: str, threads: int, count: int = 200) -> None:
    """Probe the finished checkpoint and write its model card."""
    folder = work / name
    tokenizer = get_tokenizer(work)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    scores = probe.run(name, model, tokenizer, count)
    records = [work / f"{key}.json" for key in ("text", f"{name}.vision", f"{name}.joint", f"{name}.extend")]
    stages = [json.loads(path.read_text()) for path in records if path.exists()]
    minutes = " ".join(f"--{stage['name']}-minutes {stage['minutes']:g}" for stage in stages)
    text = card(
        name=name,
        class_name=type(model).__name__,
        parameters=sum(p.numel() for p in model.parameters()),
        command=f"python scripts/pretrain_tiny.py --model {name} --threads {threads} {minutes}",
        machine=f"{threads} CPU thread{'s' if threads > 1 else ''}",
        stages=stages,
        probe=scores,
        count=count,
    )
    write_text(folder / "README.md", text)
    for skill, (right, common, n) in scores.items():
        logger.info("%-28s %5.1f%%  (most frequent %4.1f%%, %d items)", skill, 100 * right, 100 * common, n)


def main(arguments: list[str] | None = None) -> None:
    parser = script_parser(__doc__, overwrite=None)
    parser.add_argument("--model", choices=list(EMBEDDED), default="tiny_llava_onevision")
    parser.add_argument("--work", type=Path, default=Path("outputs/pretrain_tiny"))
    parser.add_argument("--stages", default="text,pool,vision,joint,card")
    parser.add_argument("--text-minutes", type=float, default=25)
    parser.add_argument("--vision-minutes", type=float, default=10)
    parser.add_argument("--vision-batch-size", type=int, help="default: 192, for Qwen2-VL 128")
    parser.add_argument("--joint-minutes", type=float, default=35)
    parser.add_argument("--extend-minutes", type=float, default=0, help="more of the joint stage, with more images")
    parser.add_argument("--images", type=int, default=64_000)
    parser.add_argument("--videos", type=int, default=24_000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    names = ("tokenizer", "pool", "text.safetensors", "text.json", *EMBEDDED)
    try:
        claim(args.work, "pretraining", names)
    except OSError as error:
        parser.error(str(error))
    if "text" in args.stages:
        text_stage(args.work, args.text_minutes, args.batch_size, args.seed)
    if "pool" in args.stages:
        build_pool(args.work / "pool", images=args.images, videos=args.videos, seed=args.seed + 1, workers=args.threads)
    if "vision" in args.stages:
        batch_size = args.vision_batch_size or (192 if args.model == "tiny_llava_onevision" else 128)
        vision_stage(args.work, args.model, args.vision_minutes, batch_size, args.seed)
    if "joint" in args.stages:
        joint_stage(args.work, args.model, args.joint_minutes, args.batch_size, args.seed)
    if args.extend_minutes:
        extend_stage(args.work, args.model, args.extend_minutes, args.batch_size, args.seed)
    if "card" in args.stages:
        card_stage(args.work, args.model, args.threads)


if __name__ == "__main__":
    run_script(main)
