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
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from lime.data.rows import Row, Turn
from lime.data.tasks import MODALITIES

log = logging.getLogger(__name__)

_QUESTION = "\u2460question  <q> & \"x\" 'y' \\n\n {{z}}\u2461"
_ANSWER = "\u2460answer\u2461"
_ZERO_WIDTH_SPACE = "\u200b"
_FORMS = ("parts", "marked", "plain")
_MARKUP = re.compile(r"[<\[{|].*[>\]}|]", re.DOTALL)


class Conversation:
    """Turns rows into token ids by the chat template of a processor.

    `frames` {kind: what stands before and behind the question of such a row}, for `kinds` of rows. `end_token` is the
    token that closes an assistant turn in the template (the tokenizer's end of sequence, where the template has none).
    Special tokens, placeholders and the template's turn marks written out in a question or an answer are broken up by a
    zero-width space, so that no text can smuggle in a placeholder or a turn; ordinary added tokens (runs of newlines,
    words of a domain) are text.

    A template takes the content of a turn in one of three forms, tried in this order: "parts" (a list with the media
    and the text), "marked" (a list with the text alone, the placeholder written in it), "plain" (one string). One that
    trims what the user says is given it trimmed.

    Raises ValueError for a template that refuses all forms, changes the text of a question, leaves out its media, or
    has no place for `system_prompt`.
    """

    def __init__(self, processor: Any, system_prompt: str | None = None, kinds: Sequence[str] = MODALITIES) -> None:
        self.processor, self.tokenizer = processor, processor.tokenizer
        self.system_prompt = system_prompt
        self._lock = threading.Lock()
        self.placeholders = {"image": int(processor.image_token_id), "video": int(processor.video_token_id)}
        self._added = _pattern(self.tokenizer.get_added_vocab())
        self._special = _pattern(self._special_tokens())
        self._forms = dict.fromkeys(kinds, _FORMS[0])
        self._trims: dict[str, tuple[bool, bool]] = {}
        self.frames: dict[str, tuple[str, str]] = {}
        self._outlines: dict[Any, list[str]] = {}
        for kind in kinds:
            self.frames[kind] = self._frame(kind)
        self.end_token = self._end_token()
        self.end_token_id = int(self.tokenizer.convert_tokens_to_ids(self.end_token))
        marks = {token for frame in self.frames.values() for side in frame for token in self._added.findall(side)}
        marks = {token for token in marks if _MARKUP.fullmatch(token)} | {self.end_token}
        self._special = _pattern(self._special_tokens() | marks)

    def _special_tokens(self) -> set[str]:
        decoder = getattr(self.tokenizer, "added_tokens_decoder", {})
        special = {str(token) for token in decoder.values() if token.special} | set(self.tokenizer.all_special_tokens)
        known = self.tokenizer.get_added_vocab()
        held = {value for name, value in vars(self.processor).items() if name.endswith("_token")}
        held |= {self._placeholder(kind) for kind in self.placeholders}
        return special | {token for token in held if isinstance(token, str) and token in known}

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Token ids of texts as they stand, without special tokens around them."""
        with self._lock:  # a fast tokenizer must not be called from two threads at once
            return self.tokenizer(texts, add_special_tokens=False).input_ids if texts else []

    def media(self, kind: str) -> list[str]:
        """What is shown before the question of such a row: kinds of parts, in order."""
        return [kind] if kind != "text" else []

    def messages(self, kind: str, question: str, answer: str | None = None) -> list[dict[str, Any]]:
        """The turns of a row as the chat template takes them."""
        form, media = self._forms[kind], self.media(kind)
        if form != "parts":
            question = "".join(f"{self._placeholder(part)}\n" for part in media) + question
            media = []

        def content(text: str, media: Sequence[str] = ()) -> Any:
            return text if form == "plain" else [*({"type": part} for part in media), {"type": "text", "text": text}]

        turns: list[dict[str, Any]] = []
        if self.system_prompt is not None:
            turns.append({"role": "system", "content": content(self.system_prompt)})
        turns.append({"role": "user", "content": content(question, media)})
        if answer is not None:
            turns.append({"role": "assistant", "content": content(answer)})
        return turns

    def _placeholder(self, kind: str) -> str:
        """What stands for a picture or clip in the text that the processor is given."""
        written = (getattr(self.processor, "boi_token", None) if kind == "image" else None) or getattr(
            self.processor, f"{kind}_token", None
        )
        if isinstance(written, str) and written:
            return written
        token = self.placeholders[kind]
        return str(self.tokenizer.convert_ids_to_tokens(token)) if token >= 0 else ""

    def prompt(self, row: Row) -> str:
        """The prompt of a row, with one placeholder for each of its media."""
        if row.turns:
            return "".join(text for text, _ in self.segments(row))
        before, after = self.frames[row.source_type]
        left, right = self._trims[row.source_type]
        question = row.question.lstrip() if left else row.question
        return before + self._plain(question.rstrip() if right else question, row) + after

    def segments(self, row: Row) -> list[tuple[str, bool]]:
        """The prompt of a row with turns, cut where answers are: (text, whether it is an earlier answer).

        An earlier answer ends with the end token where the template has it there, as the last one does. ValueError
        naming a row whose turns the template does not take.
        """
        turns = row.turns
        if self.system_prompt is not None and turns[0].role != "system":
            turns = (Turn("system", (("text", self.system_prompt),)), *turns)
        shape = (row.source_type, *((turn.role, *(kind for kind, _ in turn.parts)) for turn in turns))
        if shape not in self._outlines:
            self._outlines[shape] = self._outline(row, turns)
        outline = self._outlines[shape]
        left, right = self._trims[row.source_type]
        said = [(turn.role, text) for turn in turns for kind, text in turn.parts if kind == "text"]
        segments, pending = [], outline[0]
        for (role, text), behind in zip(said, outline[1:], strict=True):
            if role == "assistant":
                end = self.end_token if behind.startswith(self.end_token) else ""
                segments += [(pending, False), (self._plain(text.strip(), row) + end, True)]
                pending = behind.removeprefix(end)
            else:
                trimmed = text.lstrip() if left else text
                pending += self._plain(trimmed.rstrip() if right else trimmed, row) + behind
        return [*segments, (pending, False)]

    def _outline(self, row: Row, turns: Sequence[Turn]) -> list[str]:
        """What the template puts before, between and behind the texts of turns of this shape."""
        count = sum(kind == "text" for turn in turns for kind, _ in turn.parts)
        texts = [f"\u2460{number} said\u2461" for number in range(count)]
        pending = iter(texts)
        messages = []
        for turn in turns:
            parts = [(kind, next(pending) if kind == "text" else "") for kind, _ in turn.parts]
            messages.append(self._message(row.source_type, turn.role, parts))
        try:
            rest = self._render(messages, True)
        except Exception as error:  # a template is a program: it may raise anything
            raise ValueError(
                f"row {row.id}: the chat template of this model does not take its turns ({_said(error)})"
            ) from error
        outline = []
        for text in texts:
            before, found, rest = rest.partition(text)
            if not found or text in rest:
                roles = ", ".join(turn.role for turn in turns)
                raise ValueError(
                    f"row {row.id}: the chat template of this model does not show each text of its turns ({roles}) "
                    "once and in order"
                )
            outline.append(before)
        return [*outline, rest]

    def _message(self, kind: str, role: str, parts: Sequence[tuple[str, str]]) -> dict[str, Any]:
        """A turn as the chat template takes it in rows of this kind."""
        form = self._forms[kind]
        shown = [(one, text) for part, text in parts for one in ([part] if part == "text" else self.media(part))]
        if form == "parts":
            content: Any = [{"type": one, **({"text": text} if one == "text" else {})} for one, text in shown]
        else:
            content = "".join(text if one == "text" else f"{self._placeholder(one)}\n" for one, text in shown)
            content = content if form == "plain" else [{"type": "text", "text": content}]
        return {"role": role, "content": content}

    def turn_tokens(self, row: Row) -> tuple[np.ndarray, np.ndarray]:
        """Token ids of the prompt of a row with turns, and which of them are of earlier answers."""
        segments = self.segments(row)
        encoded = self.encode([text for text, _ in segments])
        answers = [np.full(len(ids), answered) for ids, (_, answered) in zip(encoded, segments, strict=True)]
        return np.concatenate([np.asarray(ids, dtype=np.int32) for ids in encoded]), np.concatenate(answers)

    def prompts(self, rows: Sequence[Row]) -> list[np.ndarray]:
        """Token ids of the prompts, one placeholder for each medium. ValueError naming a row without its own."""
        single = iter(self.encode([self.prompt(row) for row in rows if not row.turns]))
        encoded = [self.turn_tokens(row)[0] if row.turns else np.asarray(next(single), dtype=np.int32) for row in rows]
        for row, ids in zip(rows, encoded, strict=True):
            for kind, token in self.placeholders.items():
                expected = len(row.media_paths) if row.source_type == kind else 0
                if (count := int((ids == token).sum())) != expected:
                    wanted = f"one {kind} placeholder" if expected <= 1 else f"{expected} {kind} placeholders"
                    raise ValueError(
                        f"row {row.id}: the chat template did not place {wanted} in its prompt (it has {count})"
                    )
        return encoded

    def answers(self, rows: Sequence[Row], answers: Sequence[str] | None = None) -> list[np.ndarray]:
        """Token ids of the rows' answers (or of these instead), each with the end token."""
        given = [row.answer for row in rows] if answers is None else list(answers)
        texts = [self._plain(text.strip(), row) for row, text in zip(rows, given, strict=True)]
        for row, text in zip(rows, texts, strict=True):
            if not text:
                raise ValueError(f"row {row.id}: its answer is empty")
        return [np.asarray([*ids, self.end_token_id], dtype=np.int32) for ids in self.encode(texts)]

    def _plain(self, text: str, row: Row) -> str:
        if not self._special.search(text):
            return text
        log.warning("row %s: special tokens written out in its text were broken up", row.id)
        while self._special.search(text):  # breaking one may leave another that stood inside it
            text = self._special.sub(_broken, text)
        return text

    def _render(self, messages: list[dict[str, Any]], prompt: bool) -> str:
        text = self.processor.apply_chat_template(messages, add_generation_prompt=prompt, tokenize=False)
        assert isinstance(text, str)
        return text

    def _frame(self, kind: str) -> tuple[str, str]:
        """What the template puts before and after the question; it must insert the question once, as it is or
        without its outer blanks."""
        problems: list[Exception] = []
        start = 0 if kind == "text" else _FORMS.index(self._forms["text"])
        for form in _FORMS[start:]:
            self._forms[kind] = form
            try:
                return self._frame_in_form(kind)
            except Exception as error:  # noqa: BLE001  # a template is a program: it may raise anything
                problems.append(error)
                if isinstance(error, _Unfit) and not error.try_another:
                    break
        reason = _said(next((error for error in problems if isinstance(error, _Unfit)), problems[0]))
        if self.system_prompt is not None and self._works_without_system(kind):
            raise ValueError(
                f"data.system_prompt: the chat template of this model has no system turn ({reason}); leave it null"
            )
        raise ValueError(
            f"the chat template of this model cannot be used for {kind} questions: {reason}; "
            "correct the template (chat_template.jinja) or take another checkpoint"
        )

    def _works_without_system(self, kind: str) -> bool:
        system, self.system_prompt = self.system_prompt, None
        try:
            self._frame(kind)
        except ValueError:
            return False
        finally:
            self.system_prompt = system
        return True

    def _frame_in_form(self, kind: str) -> tuple[str, str]:
        before, question, after = self._render(self.messages(kind, _QUESTION), True).partition(_QUESTION)
        probe = f"  {_QUESTION}\n"
        shown = self._render(self.messages(kind, probe), True)
        for left, right in ((False, False), (True, True), (True, False), (False, True)):
            trimmed = probe.lstrip() if left else probe
            if (
                question
                and _QUESTION not in after
                and shown == before + (trimmed.rstrip() if right else trimmed) + after
            ):
                self._trims[kind] = (left, right)
                break
        else:
            raise _Unfit(
                f"it changes the text of a {kind} question or shows it more than once; expected it to be inserted "
                "once, as it is",
                try_another=not question and "type" in shown,  # the content printed as Python or JSON writes it
            )
        if self.media(kind) and (before, after) == self.frames["text"]:
            raise _Unfit(f"it has no place for the {self.media(kind)[0]} of a question", try_another=True)
        if self.system_prompt is not None and self.system_prompt.strip() not in before:
            raise _Unfit("it leaves the system turn out")
        return before, after

    def _end_token(self) -> str:
        closing = self._render(self.messages("text", _QUESTION, _ANSWER), False).partition(_ANSWER)[2]
        token = next((token for token in self._added.findall(closing) if token.strip()), self.tokenizer.eos_token)
        if token is None:
            raise ValueError("neither the chat template nor the tokenizer has a token that ends an answer")
        return token


class _Unfit(ValueError):
    """A template that does not do with a row what it should; in another form of content it may."""

    def __init__(self, message: str, try_another: bool = False) -> None:
        super().__init__(message)
        self.try_another = try_another


def _pattern(tokens: Iterable[str]) -> re.Pattern[str]:
    """Any of these tokens, the longest first; nothing where there are none."""
    ordered = sorted(filter(None, tokens), key=len, reverse=True)
    return re.compile("|".join(re.escape(token) for token in ordered) or r"(?!)")


def _broken(match: re.Match[str]) -> str:
    """A token with a zero-width space in it, or that alone for a token of one character."""
    token = match[0]
    return token[0] + _ZERO_WIDTH_SPACE + token[1:] if len(token) > 1 else _ZERO_WIDTH_SPACE


def _said(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"


def repeats(ids: np.ndarray, placeholder: int, counts: Sequence[int]) -> np.ndarray:
    """How often each token stands in the prompt: the placeholders, in order, `counts` times."""
    times = np.ones(len(ids), dtype=np.int64)
    times[ids == placeholder] = counts
    return times
