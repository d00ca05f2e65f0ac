"""Questions and answers stay as they are, whatever the tokenizer and the chat template are like."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from tokenizers import AddedToken

from lime.data.collate import Collator
from lime.data.collate_processor import ImagesConversation
from lime.data.conversation import Conversation
from lime.data.rows import MMTDataset, Row

SPACE = "\u200b"
PART = "c['text']"
START, END = "<|im_start|>", "<|im_end|>"
PLAIN = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PRINTED = PLAIN.replace("+ message['content'] +", "~ message['content'] ~")  # prints a list as Python writes it
TEXTS_ALONE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}{% for c in message['content'] %}"
    "{% if c['type'] == 'text' %}{{ c['text'] }}{% endif %}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
OWN_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are kind.<|im_end|>\n' }}{% endif %}" + PLAIN
)


def row(question: str, answer: str = "an answer", kind: str = "text") -> Row:
    return Row("train/0", "train", 0, kind, "" if kind == "text" else "x", question, answer)


def trained(conversation: Conversation, answer: str) -> str:
    return conversation.tokenizer.decode(conversation.answers([row("?", answer)])[0])


def placeholder(conversation: Conversation, kind: str) -> str:
    return conversation.tokenizer.convert_ids_to_tokens(conversation.placeholders[kind])


@pytest.mark.parametrize(
    "words", [["\n\n", "  ", "color"], ["\t", "é", "ab", "a b c"], [" red", "red "], ["<b>", "[1]"]]
)
def test_ordinary_added_tokens_are_text(processor, caplog: pytest.LogCaptureFixture, words: list[str]) -> None:
    processor.tokenizer.add_tokens(words)
    conversation = Conversation(processor)
    question = f"First{words[0]}line{words[1]}of {' '.join(words)} end"
    with caplog.at_level(logging.WARNING):
        assert question in conversation.prompt(row(question))
        assert trained(conversation, f"the {words[-1]} thing") == f"the {words[-1]} thing{conversation.end_token}"
    assert not caplog.records


@pytest.mark.parametrize("kind", ["image", "video"])
def test_special_tokens_placeholders_and_turn_marks_are_broken_up(processor, family: str, kind: str) -> None:
    processor.tokenizer.add_tokens(["color", "<loc>"])
    processor.tokenizer.add_tokens([AddedToken("x<|im_end|>", special=True), AddedToken("¤", special=True)])
    conversation = Conversation(processor)
    mark = placeholder(conversation, kind)
    ids = conversation.prompts([row(f"color {mark} {START} x{END} ¤ {mark}{mark} <loc>")])[0]
    special = set(processor.tokenizer.all_special_ids) | set(conversation.placeholders.values())
    frame = "".join(conversation.frames["text"])
    expected = [i for i in processor.tokenizer(frame, add_special_tokens=False).input_ids if i in special]
    assert [i for i in ids if i in special] == expected
    assert f"color {mark[0]}{SPACE}{mark[1:]}" in conversation.prompt(row(f"color {mark}"))
    assert "<loc>" in conversation.prompt(row("<loc>"))


def test_turn_marks_that_are_not_special_are_broken_up_too(processor) -> None:
    processor.tokenizer.add_tokens(["<turn>", "</turn>", "user"])
    processor.chat_template = PLAIN.replace(START, "<turn>").replace(END, "</turn>")
    conversation = Conversation(processor)
    assert conversation.end_token == "</turn>"
    assert f"a <{SPACE}turn>user" in conversation.prompt(row("a <turn>user"))
    assert trained(conversation, "b </turn> c") == f"b <{SPACE}/turn> c</turn>"


@pytest.mark.parametrize(
    ("trim", "kept"),
    [("trim", "What\n  now?"), ("string | trim", "What\n  now?"), ("replace('#', '#')", "  What\n  now? \n")],
)
def test_a_template_that_trims(processor, family: str, root: Path, trim: str, kept: str) -> None:
    untrimmed = Conversation(processor).prompt(row("What?"))
    processor.chat_template = processor.chat_template.replace(PART, f"({PART} | {trim})")
    conversation = Conversation(processor, "Be brief.")
    assert Conversation(processor).prompt(row("What?")) == untrimmed
    for kind in ("text", "image", "video"):
        messages = conversation.messages(kind, "  What\n  now? \n")
        expected = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        assert conversation.prompt(row("  What\n  now? \n", kind=kind)) == expected
        assert kept in expected
    rows = list(MMTDataset(root).train)[:6]
    Collator(processor, family, root).training_batch(rows)


@pytest.mark.parametrize("template", [PLAIN, PRINTED, OWN_SYSTEM, PLAIN.replace("['content']", "['content'].strip()")])
@pytest.mark.parametrize("system", [None, "Be brief."])
def test_a_template_that_takes_text(processor, family: str, root: Path, template: str, system: str | None) -> None:
    processor.chat_template = template
    conversation = Conversation(processor, system)
    own = "You are kind." if template == OWN_SYSTEM else ""
    before = f"{START}system\n{system or own}{END}\n" if system or own else ""
    rest = f"{END}\n{START}assistant\n"
    assert conversation.prompt(row("Who?")) == f"{before}{START}user\nWho?{rest}"
    for kind in ("image", "video"):
        mark = placeholder(conversation, kind)
        assert conversation.prompt(row("Who?", kind=kind)) == f"{before}{START}user\n{mark}\nWho?{rest}"
    assert conversation.end_token == END
    rows = list(MMTDataset(root).train)[:6]
    Collator(processor, family, root, system_prompt=system).training_batch(rows)


def test_a_template_that_leaves_media_out_is_given_the_placeholder(processor) -> None:
    processor.chat_template = TEXTS_ALONE
    conversation = Conversation(processor)
    assert f"user\n{placeholder(conversation, 'image')}\nWho?" in conversation.prompt(row("Who?", kind="image"))
    frames = ImagesConversation(processor, None, 3)
    assert f"user\n{3 * (placeholder(frames, 'image') + chr(10))}Who?" in frames.prompt(row("Who?", kind="video"))


@pytest.mark.parametrize(
    ("template", "system", "said"),
    [
        (NO_SYSTEM + PLAIN, "Be brief.", r"data\.system_prompt: .*no system turn .*System role not sup.*leave it null"),
        ("{% for message in messages %}{{ message.content }}", None, "used for text questions: TemplateSyntaxError"),
        ("{{ nothing.there }}", None, "used for text questions: UndefinedError"),
        ("{{ raise_exception('never') }}", "Be brief.", "used for text questions: TemplateError: never"),
        ("{{ 1 / 0 }}", None, "used for text questions: ZeroDivisionError"),
        (PLAIN.replace("message['content']", "message['content'] | e"), None, "changes the text of a text question"),
        (PLAIN.replace("message['content']", "message['content'] + message['content']"), None, "more than once"),
        (TEXTS_ALONE.replace("c['text']", "c['text'] | replace('\n', ' ')"), None, "changes the text"),
    ],
)  # fmt: skip
def test_a_template_that_refuses_is_told_in_a_sentence(processor, template: str, system: str | None, said: str) -> None:
    processor.chat_template = template
    with pytest.raises(ValueError, match=said) as error:
        Conversation(processor, system)
    assert "\n" not in str(error.value)


def test_a_template_without_a_system_turn_works_without_one(processor) -> None:
    processor.chat_template = NO_SYSTEM + PLAIN
    assert f"{START}user\nWho?" in Conversation(processor).prompt(row("Who?"))
