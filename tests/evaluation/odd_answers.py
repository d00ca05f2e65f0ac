"""Answers that are easily taken for others, by what makes them odd."""

from __future__ import annotations

SEPARATORS = """34 3/4 3:4 3-4 3.4 3,4 3_4 3*4 3^4 3×4 3=4 3+4 120 1:20 300 3:00 3.00.1 169 16:9 102 10^2 10^-2 1020
10*20
2020-01-02 20200102 192.168.1.1 19216811 1/2 1,2 .12 1.2.3 1'2 0.1:2 5/10/2020 10/5/2020 5:5 5/5 1e4 1e-5""".split()
SPACED = ["3 4", "10 20", "1 2 3", "12 3", "1 1/2", "11/2", "(3,4,5)", "34.5 6", "1, 234", "(100,200)", "100200"]
NUMBERS = [
    "1234.6", "1,234.5", "-5", "5", "-0.5", "0.5", "05.25", "1000000", "1000001", "12345678901234567890",
    "12345678901234567891", "1e-7", "2e-7", "0.25", "2/8", "1e20", "٧", "-٧",
]  # fmt: skip
WORDS = [
    "one hundred", "one hundred and five", "four hundred",
    "forty-two", "two thousand and twenty", "three million",
    "a dozen", "two and a half", "three point one four",
    "one third", "two thirds", "twenty-first", "half a dozen",
    "minus seven hundred", "seven hundred", "nineteen eighty-four", "a hundred thousand", "seventy", "eleven",
    "five million", "one half", "three quarters",
]  # fmt: skip
SIGNS = [
    "$6", "€6", "6%", "£6", "6°", "6'", '6"', "6¢", "6‰",
    "#6", "~6", "<6", ">6", "±6", "6+", "*6*7", "6 kg", "6 g",
    "6 °C", "6 °F", "6 km/h", "6 m", "6 m²", "6 m³", "6\u202fkm", "6*", "@6", "6×", "≈6",
]  # fmt: skip
LETTERS = [
    "A+",
    "A-",
    "A",
    "O",
    "O+",
    "C",
    "C++",
    "C#",
    "Na+",
    "Cl-",
    "R&B",
    "RB",
    "AT&T",
    "and/or",
    "a@b.c",
    "x²",
    "x2",
]
SCRIPTS = [
    "दिन", "दान", "दन", "की", "कि", "क", "কলা", "কল",
    "தமிழ்", "தமிழ", "กา", "กำ", "ก้า", "שָׁלוֹם", "שלום", "مدرّسة",
    "مدرسة", "が", "か", "ñ", "n", "résumé", "resume", "résume", "x̄",
    "x", "y̌", "y", "Maße", "Masse", "ǖ", "u", "日本", "日木",
    "می\u200cخواهم", "میخواهم", "Ångström", "Angstrom", "ø", "й", "и",
]  # fmt: skip
SYMBOLS = [
    "👍", "👎", "👍🏽", "👍🏿", "❤️", "💔", "👨‍👩‍👧", "👨👩👧", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "🏴󠁧󠁢󠁳󠁣󠁴󠁿",
    "🇩🇪", "🇫🇷",
    "+", "-", "->", "<-", "%", "?", "!", ".", "...", "*", "**", "`", "/",
    "\\", "|", "_", "#", "&", "=", "==", "~", "^", "°", "№", "™",
    ":)", ":(", "()", "[]", '"', "'", ",", ";", "–", "•", "∞", "→",
    "←", "<b>", "</b>", "</s>", "<|im_end|>", "<s>",
]  # fmt: skip
TEXTS = [
    "line one\nline two", "line one\nline three", "line one",
    "Label: organic", "label: metal", "organic", "metal",
    "The answer is blowing in the wind", "blowing in the wind", "Answer: 77",
    "77", "Answer: 8", "not available", "none",
    "No, thanks", "yes or no", "a b", "b",
    "A 9", "9", "The The", "because of you", "  outer blanks  ", "it's not B",
    "tab\there", '"quoted" words', "**bold** words",
    "f(x) = 3*x + 2*y", "{'a': 1}", "C:\\dir", "https://a.b/c?d=e&f=g",
    "rock 'n' roll", "vitamin B12", "vitamin B1 2", "10 items at 20",
    "10 items at 2 0", "answer", "category is", "Prediction =",
    "50 000 €", "50000 $", "1,000 km", "1,000.5 km",
    "1000 m", "Die Antwort lautet: 42", "out of 10", "3 out of 10", "\\alpha_1",
    "A or B", "A, B, C, D", "x <- y", "the", "an", "I", "i.e.",
]  # fmt: skip
ODD = [*dict.fromkeys([*SEPARATORS, *SPACED, *NUMBERS, *WORDS, *SIGNS, *LETTERS, *SCRIPTS, *SYMBOLS, *TEXTS])]

# members that a written rule makes equal: as an answer -> the truths that it also is
EQUAL = {
    "Label: organic": {"organic"},  # what follows "label:" is the answer
    "label: metal": {"metal"},
    "The answer is blowing in the wind": {"blowing in the wind"},
    "Answer: 77": {"77"},
    "Answer: 8": {"8"},
    "-": {"–"},  # one dash for all
    "–": {"-"},
    "line one\nline two": {"line one"},  # the first line is the answer
    "line one\nline three": {"line one"},
}
