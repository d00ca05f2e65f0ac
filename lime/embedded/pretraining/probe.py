"""Held-out probe of an embedded backbone: what it can say before any adaptation.

Fresh items (other seeds than the pretraining's) under pretraining prompts, answered by greedy generation and compared
word for word. The yardstick beside each score is the share of the most frequent answer among the same items.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Qwen2Tokenizer

from lime.data.collate import IGNORED
from lime.embedded.benchmark import scenes_image, scenes_video
from lime.embedded.benchmark.chance import pick
from lime.embedded.pretraining import architecture
from lime.embedded.pretraining.batches import Encoder
from lime.embedded.pretraining.pool import VIDEO_NAMES, attributes_of, sample, shrink
from lime.embedded.pretraining.text_corpus import SKILLS, text_dialogue
from lime.embedded.pretraining.visual_batches import normalise, patches
from lime.embedded.pretraining.visual_corpus import IMAGE_DIALOGUES, STATES, motion
from lime.processors.config import EMBEDDED

SEED = 987_654
# the turn of `IMAGE_DIALOGUES[name]` that is asked, where the first (the description) is not the plainest
ASKED = {"scene": (1, 2, 3, 4, 5), "bars": (1,), "word": (1,), "sign": (1,), "digit": (1,), "texture": (1,)}

SCENE_TURNS = ("caption", "colour", "shape", "count", "presence", "choice")


@dataclass(frozen=True)
class ProbeItem:
    """One question, its answer, the skill it belongs to, and what it shows: None, or uint8 frames (T, 64, 64, 3)."""

    skill: str
    question: str
    answer: str
    frames: np.ndarray | None = None


def items(count: int) -> list[ProbeItem]:
    """`count` fresh items of every skill: text skills, image renderers, motion and state of clips."""
    rng = np.random.default_rng(SEED)
    out = [ProbeItem(f"text: {name}", *text_dialogue(rng, name)[0]) for name in SKILLS for _ in range(count)]
    for name, ask in IMAGE_DIALOGUES.items():
        for i in range(count):
            pixels, attributes = scenes_image.IMAGES[name](rng)
            turns = ask(rng, attributes_of(attributes))
            places = ASKED.get(name, tuple(range(1, len(turns))))
            place = places[i % len(places)]
            label = f"scene, {SCENE_TURNS[place]}" if name == "scene" else name
            out.append(ProbeItem(f"image: {label}", *turns[place], pixels[None]))
    previous = scenes_video.moving(rng)[0]
    for i in range(2 * count):
        name = VIDEO_NAMES[i % len(VIDEO_NAMES)]
        clip, attributes = scenes_video.VIDEOS[name](rng)
        if i % 2:
            kind = pick(rng, scenes_video.TAMPERINGS)
            frames = sample(scenes_video.tamper(clip, previous, kind, rng))
            out.append(ProbeItem("video: state", "state of the clip", STATES[kind], frames))
        else:
            out.append(ProbeItem("video: motion", "tell the motion", motion(name, attributes), sample(clip)))
        previous = clip
    return out


def _inputs(name: str, shown: list[np.ndarray], dtype: torch.dtype) -> dict[str, Tensor]:
    family = EMBEDDED[name]
    video = len(shown[0]) > 1
    if family == "llava_onevision":
        frames = np.stack([shrink(item, architecture.IMAGE_SIZE) for item in shown])
        pixels = normalise(frames, family).to(dtype)
        if video:
            return {"pixel_values_videos": pixels}
        return {"pixel_values": pixels.expand(-1, 2, -1, -1, -1), "image_sizes": torch.full((len(shown), 2), 64)}
    frames = np.stack([shrink(item, architecture.QWEN_FRAME_SIZE) if video else item for item in shown])
    flat, grid = patches(normalise(frames, family).to(dtype))
    key = "video" if video else "image"
    return {f"pixel_values{'_videos' if video else ''}": flat, f"{key}_grid_thw": grid}


@torch.no_grad()
def answer(name: str, model: Any, tokenizer: Qwen2Tokenizer, probe: list[ProbeItem], size: int = 64) -> list[str]:
    """Greedy answers, in batches of equal prompt length and modality."""
    encoder = Encoder(name, tokenizer)
    groups: dict[tuple[int, int], list[tuple[int, list[int]]]] = defaultdict(list)
    for at, item in enumerate(probe):
        kind = None if item.frames is None else "video" if len(item.frames) > 1 else "image"
        ids, labels = encoder([(item.question, item.answer)], kind)
        prompt = ids[: next(i for i, label in enumerate(labels) if label != IGNORED)]
        groups[(0 if item.frames is None else len(item.frames), len(prompt))].append((at, prompt))
    out = [""] * len(probe)
    for (frames, _), members in groups.items():
        for start in range(0, len(members), size):
            part = members[start : start + size]
            tokens = torch.tensor([prompt for _, prompt in part])
            inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
            if frames:
                shown = [item.frames for item in (probe[at] for at, _ in part) if item.frames is not None]
                inputs |= _inputs(name, shown, model.dtype)
                marker = architecture.token_id(tokenizer, "<|video_pad|>" if frames > 1 else "<|image_pad|>")
                if EMBEDDED[name] == "qwen2_vl":
                    inputs["mm_token_type_ids"] = tokens.eq(marker).int() * (2 if frames > 1 else 1)
            generated = model.generate(**inputs, max_new_tokens=24, do_sample=False)[:, tokens.shape[1] :]
            for (at, _), text in zip(part, tokenizer.batch_decode(generated, skip_special_tokens=True), strict=True):
                out[at] = text.strip()
    return out


def run(name: str, model: Any, tokenizer: Qwen2Tokenizer, count: int = 100) -> dict[str, tuple[float, float, int]]:
    """Skill -> (share of exact answers, share of the most frequent answer, number of items)."""
    probe = items(count)
    given = answer(name, model, tokenizer, probe)
    out = {}
    for skill in dict.fromkeys(item.skill for item in probe):
        pairs = [(item.answer, text) for item, text in zip(probe, given, strict=True) if item.skill == skill]
        right = sum(truth == text for truth, text in pairs)
        common = Counter(truth for truth, _ in pairs).most_common(1)[0][1]
        out[skill] = (right / len(pairs), common / len(pairs), len(pairs))
    return out
