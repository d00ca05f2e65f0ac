"""Training of the projector between two frozen towers, and the probe of what the model names afterwards.

First the projector alone learns to give the embeddings of the words that name a picture, for which no language model
has to run; then it learns through the language model to have questions answered.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lime.data.collate import IGNORED
from lime.embedded.pretraining.batches import pad
from lime.embedded.pretraining.loop import ATTENTION, Stage, answer_loss, train
from lime.embedded.smol.pictures import Example, RealPictures, examples
from lime.evaluation.statistics import wilson_interval
from lime.evaluation.text import key

PEAK = 1e-3
WORDS_SHARE = 0.2
"""Part of the time in which the projector learns words, without the language model."""
MOST_PICTURES = 20_000
"""Pictures whose patches are kept for it (1 GB)."""
SHORT_SHARE = 0.75
"""Part of the steps through the language model that show a picture once, not twice as the processor does: 1.6 times as
fast."""
SHARPNESS = 30.0
"""Factor on the cosines between patches and words."""


class Projector(nn.Module):
    """What is trained: the two layers of the projector, and the mark that ends a line of patches."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.layers, self.newline = model.model.multi_modal_projector, model.model.image_newline


@torch.no_grad()
def match_scale(model: Any, patches_BPD: Tensor) -> None:
    """Scale the projector so that what it gives for `patches_BPD` is as large as the embeddings of words."""
    projector = model.model.multi_modal_projector
    factor = model.get_input_embeddings().weight.std() / projector(patches_BPD).std()
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

    def training(self, batch: Sequence[Example], once: bool = False) -> tuple[dict[str, Tensor], Tensor]:
        """Inputs and labels, which are the answer and its end token.

        Args:
            once: each picture is shown whole alone, as one of several pictures is, not whole and in tiles as well.
        """
        prompts, visual = self.prompts(batch)
        if once and len(batch) > 1:
            prompts = [self._whole(prompt) for prompt in prompts]
            visual["batch_num_images"] = torch.tensor([len(batch)])
        rows = []
        for prompt, example in zip(prompts, batch, strict=True):
            answer = self.tokenizer(f"{example.answer}<|im_end|>", add_special_tokens=False).input_ids
            rows.append((prompt + answer, [IGNORED] * len(prompt) + answer))
        ids, labels = pad(rows, self.tokenizer.pad_token_id)
        return {"input_ids": ids, **visual}, labels

    def _whole(self, prompt: list[int]) -> list[int]:
        """A prompt with the placeholders of the whole picture and its mark alone."""
        image = self.tokenizer.convert_tokens_to_ids("<image>")
        start, tokens = prompt.index(image), self.processor.num_image_tokens
        return prompt[: start + tokens] + [token for token in prompt[start + tokens :] if token != image]

    def words(self, example: Example) -> set[int]:
        """Token ids of the words of the answer, as they stand within a sentence."""
        return set(self.tokenizer(f" {example.answer}", add_special_tokens=False).input_ids)


@torch.no_grad()
def patches(model: Any, encoder: Encoder, batch: Sequence[Example]) -> Tensor:
    """What the vision tower gives for the whole picture of each example: (B, patches, d)."""
    pixels = encoder.prompts(batch)[1]["pixel_values"][:, 0]
    return model.model.vision_tower(pixels.bfloat16(), output_hidden_states=True).hidden_states[-2][:, 1:]


def learn_words(model: Any, encoder: Encoder, stream: Iterator[Example], *, minutes: float, seed: int) -> Stage:
    """Train the projector so that patches lie near the embeddings of the words that name their picture.

    The score of a word is log mean_patches exp(30 cos(projector(patch), embedding(word))), over the words of all
    answers; the loss is the cross-entropy to the words of the picture's own answer. Half of the time goes into seeing
    pictures, half into learning from them.
    """
    until = time.monotonic() + 30 * minutes
    seen: list[Tensor] = []
    words: list[set[int]] = []
    while not seen or (time.monotonic() < until and len(words) < MOST_PICTURES):
        batch = list(islice(stream, 32))
        seen.append(patches(model, encoder, batch))
        words += [encoder.words(example) for example in batch]
    patches_NPD, vocabulary = torch.cat(seen), sorted(set().union(*words))
    target_NV = torch.tensor([[word in own for word in vocabulary] for own in words]).float()
    target_NV /= target_NV.sum(1, keepdim=True)
    known_VD = F.normalize(model.get_input_embeddings().weight[vocabulary].float(), dim=-1)
    generator = torch.Generator().manual_seed(seed)

    def loss(index: Any) -> Tensor:
        given_BPD = F.normalize(model.model.multi_modal_projector(patches_NPD[index]).float(), dim=-1)
        scores_BV = torch.logsumexp(SHARPNESS * given_BPD @ known_VD.T, dim=1)
        return F.cross_entropy(scores_BV, target_NV[index])

    def batches() -> Iterator[tuple[str, Any]]:
        while True:
            yield "words", torch.randint(len(patches_NPD), (64,), generator=generator)

    return train("words", model.model.multi_modal_projector, batches(), loss, minutes=minutes / 2, peak=PEAK)


def train_projector(
    model: Any, processor: Any, real: RealPictures | None, *, minutes: float, batch_size: int = 16, seed: int = 0
) -> Stage:
    """Train the projector of `model` in place; the towers stay as they are. Returns what the second stage did, and the
    minutes of both."""
    model.requires_grad_(False).to(torch.bfloat16).set_attn_implementation(ATTENTION)
    trained = Projector(model).requires_grad_(True)
    encoder, stream = Encoder(processor), examples(np.random.default_rng(seed), real)
    learn_words(model, encoder, stream, minutes=WORDS_SHARE * minutes, seed=seed)
    match_scale(model, patches(model, encoder, list(islice(stream, 16))))

    rest = 60 * (1 - WORDS_SHARE) * minutes
    short_until = time.monotonic() + SHORT_SHARE * rest

    def batches() -> Iterator[tuple[str, Any]]:
        while True:
            once = time.monotonic() < short_until
            inputs, labels = encoder.training(list(islice(stream, batch_size)), once)
            yield "answers", (inputs | {"pixel_values": inputs["pixel_values"].bfloat16()}, labels)

    def loss(batch: Any) -> Tensor:
        return answer_loss(model, *batch)

    stage = train("answers", trained, batches(), loss, minutes=rest / 60, peak=PEAK, every=20)
    stage.minutes = minutes
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
