"""Training of the projector between two frozen towers, and the probe of what the model names afterwards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lime.data.collate import IGNORED
from lime.embedded.pretraining.batches import pad
from lime.embedded.pretraining.loop import ATTENTION, Stage, answer_loss, train
from lime.embedded.smol.pictures import Example, RealPictures, examples
from lime.evaluation.statistics import wilson_interval
from lime.evaluation.text import key

PEAK = 1e-3


class Projector(nn.Module):
    """What is trained: the two layers of the projector, and the mark that ends a line of patches."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.layers, self.newline = model.model.multi_modal_projector, model.model.image_newline


@torch.no_grad()
def match_scale(model: Any, pixels: Tensor) -> None:
    """Scale a projector that knows nothing so that what it gives is as large as the embeddings of words.

    `pixels` (B, 3, H, W) are some pictures to measure it on.
    """
    features = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
    projector = model.model.multi_modal_projector
    factor = model.get_input_embeddings().weight.std() / projector(features).std()
    projector.linear_2.weight.mul_(factor)
    projector.linear_2.bias.mul_(factor)


class Encoder:
    """Examples as model inputs, by the processor of the checkpoint."""

    def __init__(self, processor: Any) -> None:
        self.processor, self.tokenizer = processor, processor.tokenizer

    def prompts(self, batch: Sequence[Example]) -> tuple[list[list[int]], dict[str, Tensor]]:
        """Token ids of every prompt, pictures expanded, and what the vision tower takes."""
        texts = [
            self.processor.apply_chat_template(
                [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": example.question}]}],
                tokenize=False,
                add_generation_prompt=True,
            )
            for example in batch
        ]
        encoded = self.processor(text=texts, images=[[example.picture] for example in batch], padding=False)
        visual = {
            name: torch.as_tensor(np.asarray(encoded[name]))
            for name in ("pixel_values", "image_sizes", "batch_num_images")
            if name in encoded
        }
        return encoded["input_ids"], visual

    def training(self, batch: Sequence[Example]) -> tuple[dict[str, Tensor], Tensor]:
        """Inputs and labels, which are the answer and its end token."""
        prompts, visual = self.prompts(batch)
        rows = []
        for prompt, example in zip(prompts, batch, strict=True):
            answer = self.tokenizer(f"{example.answer}<|im_end|>", add_special_tokens=False).input_ids
            rows.append((prompt + answer, [IGNORED] * len(prompt) + answer))
        ids, labels = pad(rows, self.tokenizer.pad_token_id)
        return {"input_ids": ids, **visual}, labels


def train_projector(
    model: Any, processor: Any, real: RealPictures | None, *, minutes: float, batch_size: int = 16, seed: int = 0
) -> Stage:
    """Train the projector of `model` in place; the towers stay as they are."""
    model.requires_grad_(False).to(torch.bfloat16).set_attn_implementation(ATTENTION)
    trained = Projector(model).requires_grad_(True)
    encoder, stream = Encoder(processor), examples(np.random.default_rng(seed), real)
    match_scale(model, encoder.prompts(list(islice(stream, 16)))[1]["pixel_values"][:, 0].bfloat16())

    def batches() -> Iterator[tuple[str, Any]]:
        while True:
            inputs, labels = encoder.training(list(islice(stream, batch_size)))
            yield "answers", (inputs | {"pixel_values": inputs["pixel_values"].bfloat16()}, labels)

    def loss(batch: Any) -> Tensor:
        return answer_loss(model, *batch)

    stage = train("projector", trained, batches(), loss, minutes=minutes, peak=PEAK, every=20)
    model.set_attn_implementation("sdpa")
    return stage


@dataclass(frozen=True)
class Skill:
    """How much of a skill's `count` probes were answered right, and how much its most frequent answer would get."""

    name: str
    right: int
    common: int
    count: int

    @property
    def interval(self) -> tuple[float, float]:
        """95% interval of the share that is right."""
        return wilson_interval(self.right, self.count)

    @property
    def above_chance(self) -> bool:
        return self.interval[0] > self.common / self.count


@torch.no_grad()
def probe(model: Any, processor: Any, items: Sequence[Example]) -> list[Skill]:
    """What the model answers to held-out `items` by greedy generation, a skill at a time."""
    encoder = Encoder(processor)
    right: Counter[str] = Counter()
    truths: dict[str, Counter[str]] = {}
    model = model.float().eval()
    for item in items:
        prompts, visual = encoder.prompts([item])
        ids = torch.tensor(prompts)
        generated = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), **visual, max_new_tokens=12, do_sample=False
        )
        text = processor.tokenizer.decode(generated[0, ids.shape[1] :], skip_special_tokens=True)
        truths.setdefault(item.skill, Counter())[key(item.answer)] += 1
        right[item.skill] += key(text) == key(item.answer)
    return [Skill(name, right[name], max(answers.values()), answers.total()) for name, answers in truths.items()]
