"""A row as the tokens of a conversation: the prompt up to where the assistant speaks, and the answer with
its end token.

The prompt is what generation sees (chat template with its generation prompt); training sees the same tokens
followed by those of the answer and of the end token. The two are tokenised apart, so the answer's span is
known by construction, with or without a system turn, and a prompt has the same tokens in training, generation
and scoring.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from lime.data.rows import Row
from lime.data.tasks import MODALITIES

log = logging.getLogger(__name__)

_QUESTION = "\u2460question\u2461"
_ANSWER = "\u2460answer\u2461"
_ZERO_WIDTH_SPACE = "\u200b"


class Conversation:
    """Turns rows into token ids by the chat template of a processor.

    `end_token` is the token that closes an assistant turn in the template (the tokenizer's end of sequence,
    where the template has none). Special tokens written out in a question or an answer are broken up by a
    zero-width space, so that no text can smuggle in a placeholder or a turn.
    """

    def __init__(self, processor: Any, system_prompt: str | None = None) -> None:
        self.processor, self.tokenizer = processor, processor.tokenizer
        self.system_prompt = system_prompt
        self._lock = threading.Lock()
        self.placeholders = {"image": int(processor.image_token_id), "video": int(processor.video_token_id)}
        special = {str(token) for token in self.tokenizer.get_added_vocab()} | set(self.tokenizer.all_special_tokens)
        self._special = re.compile("|".join(re.escape(token) for token in sorted(special, key=len, reverse=True)))
        self._frames = {kind: self._frame(kind) for kind in MODALITIES}
        self.end_token = self._end_token()
        self.end_token_id = int(self.tokenizer.convert_tokens_to_ids(self.end_token))

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def _encode(self, texts: list[str]) -> list[list[int]]:
        with self._lock:  # a fast tokenizer must not be called from two threads at once
            return self.tokenizer(texts, add_special_tokens=False).input_ids if texts else []

    def messages(self, kind: str, question: str, answer: str | None = None) -> list[dict[str, Any]]:
        """The turns of a row as the chat template takes them."""
        turns: list[dict[str, Any]] = []
        if self.system_prompt is not None:
            turns.append({"role": "system", "content": [{"type": "text", "text": self.system_prompt}]})
        media = [{"type": kind}] if kind != "text" else []
        turns.append({"role": "user", "content": [*media, {"type": "text", "text": question}]})
        if answer is not None:
            turns.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        return turns

    def prompt(self, row: Row) -> str:
        """The prompt of a row, with one placeholder for its media."""
        before, after = self._frames[row.source_type]
        return before + self._plain(row.question, row) + after

    def prompts(self, rows: Sequence[Row]) -> list[np.ndarray]:
        """Token ids of the prompts, one placeholder for each row's media. ValueError naming a row without
        its own.
        """
        texts = [self.prompt(row) for row in rows]
        encoded = [np.asarray(ids, dtype=np.int32) for ids in self._encode(texts)]
        for row, ids in zip(rows, encoded, strict=True):
            for kind, token in self.placeholders.items():
                if int((ids == token).sum()) != int(row.source_type == kind):
                    raise ValueError(
                        f"row {row.id}: the chat template did not place one {kind} placeholder in its prompt"
                    )
        return encoded

    def answers(self, rows: Sequence[Row], answers: Sequence[str] | None = None) -> list[np.ndarray]:
        """Token ids of the rows' answers (or of these instead), each with the end token."""
        given = [row.answer for row in rows] if answers is None else list(answers)
        texts = [self._plain(text.strip(), row) for row, text in zip(rows, given, strict=True)]
        for row, text in zip(rows, texts, strict=True):
            if not text:
                raise ValueError(f"row {row.id}: its answer is empty")
        return [np.asarray([*ids, self.end_token_id], dtype=np.int32) for ids in self._encode(texts)]

    def _plain(self, text: str, row: Row) -> str:
        if not self._special.search(text):
            return text
        log.warning("row %s: special tokens written out in its text were broken up", row.id)
        return self._special.sub(lambda found: found[0][0] + _ZERO_WIDTH_SPACE + found[0][1:], text)

    def _render(self, messages: list[dict[str, Any]], prompt: bool) -> str:
        text = self.processor.apply_chat_template(messages, add_generation_prompt=prompt, tokenize=False)
        assert isinstance(text, str)
        return text

    def _frame(self, kind: str) -> tuple[str, str]:
        """What the template puts before and after the question; it must insert the question as it is,
        once.
        """
        before, found, after = self._render(self.messages(kind, _QUESTION), True).partition(_QUESTION)
        probe = f"  {_QUESTION}\n"
        if not found or self._render(self.messages(kind, probe), True) != before + probe + after:
            raise ValueError(
                f"the chat template changes the text of a {kind} question or shows it more than once; "
                "expected it to be inserted once, as it is"
            )
        if self.system_prompt is not None and self.system_prompt.strip() not in before:
            raise ValueError("data.system_prompt: the chat template of this model has no system turn; leave it null")
        return before, after

    def _end_token(self) -> str:
        full = self._render(self.messages("text", _QUESTION, _ANSWER), False)
        closing = self._special.search(full.partition(_ANSWER)[2])
        token = closing[0] if closing else self.tokenizer.eos_token
        if token is None:
            raise ValueError("neither the chat template nor the tokenizer has a token that ends an answer")
        return token


def expand(ids: np.ndarray, placeholder: int, count: int) -> np.ndarray:
    """`ids` with its one placeholder repeated `count` times."""
    return np.repeat(ids, np.where(ids == placeholder, count, 1))
