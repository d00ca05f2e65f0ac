"""Ask an adapted model a question of one's own: its answer, the frozen model's, and the experts that acted on it."""

from __future__ import annotations

import dataclasses
import itertools
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import lime.tuner
from lime.config.groups import CONF
from lime.config.reuse import is_own_run, read_run, with_run_config
from lime.config.schema import EvalConfig
from lime.config.scripts import from_home
from lime.data.collate import IGNORED
from lime.data.collators import make_collator
from lime.data.rows import Row
from lime.distributed.devices import device_of
from lime.inference.generation import generate_answers
from lime.jobs.compose import composed
from lime.method.fused import use
from lime.models.loading import load_backbone
from lime.runs.adapter import adapter_folder, check_backbone, check_recorded
from lime.tuner.model import routing_state
from lime.tuner.routing.recorder import TokenRecorder


@dataclass(frozen=True)
class TokenRouting:
    """The experts of one answer token: mean weight of each over the adapted layers of the language model, (E,)."""

    token: str
    weights_E: list[float]


class AdaptedRun:
    """A trained run, ready to answer; made by :func:`open_run`.

    Attributes:
        model: the adapted model, in evaluation mode on its device.
        processor: its processor.
        config: the settings of an evaluation of this run.
    """

    def __init__(self, model: nn.Module, processor: Any, family: str, config: EvalConfig):
        self.model, self.processor, self.config = model.eval(), processor, config
        data = dataclasses.replace(config.data, root=".", cache_mb=0)  # another file of the same name is another
        self._collator = make_collator(data, processor, family)
        self._numbers = itertools.count()

    def ask(
        self, question: str, *, image: str | Path | None = None, video: str | Path | None = None, frozen: bool = False
    ) -> str:
        """The greedy answer to a question, about a picture or a clip where one is given.

        Args:
            frozen: ask the backbone, with the adapter switched off.

        Raises:
            ValueError: no question, or both a picture and a clip.
            MediaError: a file that cannot be read; names it.
        """
        row = self._row(question, image, video)
        settings = self.config.evaluation
        off = self.model.disable_adapter() if frozen else nullcontext()  # type: ignore[operator]
        with off:
            (answer,) = generate_answers(
                self.model, self._collator, [row], batch_size=1, max_new_tokens=settings.max_new_tokens
            )
        if answer is None:
            raise ValueError(f"{row.media_path or 'the question'}: could not be put to the model")
        return answer

    @torch.no_grad()
    def routing(
        self, question: str, answer: str, *, image: str | Path | None = None, video: str | Path | None = None
    ) -> list[TokenRouting]:
        """The experts that act on each token of an answer (its end token last), when the model reads it.

        Raises:
            ValueError: the run has no experts, or as :meth:`ask`.
        """
        state = routing_state(self.model)
        if state is None or not lime.tuner.has_routing(self.model):
            raise ValueError("this run has no experts: its method is a plain adapter")
        row = self._row(question, image, video)
        batch = self._collator.continuation_batch([(row, answer)])
        device = next(self.model.parameters()).device
        inputs = {
            key: value.to(device) for key, value in batch.items() if isinstance(value, Tensor) and key != "labels"
        }
        before, state.recorder = state.recorder, TokenRecorder()
        try:
            with use("torch"):
                self.model(**inputs, use_cache=False, logits_to_keep=1)
            calls = [weights_TE for pairs in state.recorder.calls.values() for _, weights_TE in pairs]
        finally:
            state.recorder = before
        ids_T = batch["input_ids"][0]
        layers = [weights_TE for weights_TE in calls if len(weights_TE) == len(ids_T)]
        mean_TE = torch.stack(layers).float().mean(0)
        at = (batch["labels"][0] != IGNORED).nonzero().flatten().tolist()
        tokens = [self.processor.tokenizer.decode([ids_T[index]]) for index in at]
        return [TokenRouting(token, mean_TE[index].tolist()) for token, index in zip(tokens, at, strict=True)]

    def _row(self, question: str, image: str | Path | None, video: str | Path | None) -> Row:
        if not question.strip():
            raise ValueError("the question is empty")
        if image is not None and video is not None:
            raise ValueError("ask about a picture or a clip, not both at once")
        kind, file = ("image", image) if image is not None else ("video", video)
        if file is not None and kind not in self._collator.modalities:
            raise ValueError(f"{file}: this model takes text alone; ask it without a picture or a clip")
        name, number = "", next(self._numbers)
        if file is not None:
            path = from_home(file)
            if not path.is_file():
                raise ValueError(f"{path}: no such file; expected a {'picture' if kind == 'image' else 'clip'}")
            self._collator.root, name = path.resolve().parent, path.resolve().name
        return Row(f"question/{number}", "question", number, kind if file else "text", name, question, "?")


def open_run(run: str | Path, *overrides: str) -> AdaptedRun:
    """The adapted model of a run of train.py, by its folder, its adapter's, or a name on the hub.

        run = lime.open_run("outputs/2026-01-31/12-00-00-main")
        print(run.ask("What is this?", image="cat.jpg"))

    Args:
        overrides: settings as eval.py takes them, in place of the run's, e.g. ``"evaluation.max_new_tokens=20"``. They
            name the backbone of an adapter that is not of a run of one's own: ``"model=NAME"``.

    Raises:
        ValueError, OSError: no adapter there, or of another backbone; the message says what to do.
    """
    place = from_home(run)
    if place.is_dir():
        run = place / "adapter" if (place / "adapter").is_dir() else place
    folder = adapter_folder(str(run))
    saved = read_run(folder)
    check_recorded(folder)
    own = is_own_run(folder)
    overrides = (*overrides, "evaluation.mode=generate")  # a run of a search says none
    config = with_run_config(composed(overrides, CONF, "eval", EvalConfig), saved["config"], overrides, own=own)
    backbone = load_backbone(config.model)
    check_backbone(str(folder), saved["backbone"], backbone)
    model = lime.tuner.load(backbone.model, folder)[0]
    if config.model.device_map is None:
        model.to(device_of("auto"))
    return AdaptedRun(model, backbone.processor, backbone.family, config)
