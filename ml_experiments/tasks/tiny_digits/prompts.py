"""The words that tiny-digits understands, and the prompts that it is trained and judged with."""

from __future__ import annotations

import random
import string
from collections.abc import Iterator
from dataclasses import dataclass

DIGIT_WORDS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine",
)  # fmt: skip

# The brightest channel is always full, so that a pixel's maximum is the ink's strength.
COLOURS = {
    "white": (255, 255, 255),
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (40, 80, 255),
    "yellow": (255, 255, 0),
    "purple": (170, 0, 255),
    "cyan": (0, 255, 255),
    "orange": (255, 128, 0),
}
COLOUR_NAMES = tuple(COLOURS)
DEFAULT_COLOUR = "white"

PLAIN_WORDINGS = (
    "a handwritten {digit}",
    "the digit {digit}",
    "{digit}",
    "a {digit}",
    "the number {digit}",
    "a picture of a {digit}",
    "the number {digit} written by hand",
)
COLOURED_WORDINGS = (
    "a {colour} handwritten {digit}",
    "{colour} {digit}",
    "a {colour} {digit}",
    "the digit {digit} in {colour}",
    "a handwritten {digit} in {colour} ink",
    "the number {digit}, {colour}",
    "a picture of a {colour} {digit}",
)
# Each has a word that no training prompt contains: in no template or filler list, and longer
# than what is made up.
UNSEEN_PLAIN_WORDINGS = (
    "please draw a {digit}",
    "show me how somebody writes {digit}",
)
UNSEEN_COLOURED_WORDINGS = (
    "please draw a {colour} {digit}",
    "could you sketch the numeral {digit} using {colour} paint?",
    "{digit}, but please make it {colour}!",
    "I would love to see a {colour} {digit} tonight",
    "the figure {digit}, coloured entirely in {colour}",
)
FILLERS = (
    "about", "above", "all", "an", "and", "any", "are", "as", "at", "background", "be", "beautiful",
    "below", "big", "black", "bold", "book", "box", "bright", "brush", "but", "can", "card",
    "centre", "character", "clean", "clear", "close", "cloud", "dark", "day", "detailed", "door",
    "drawing", "each", "fine", "for", "from", "garden", "give", "glass", "good", "great", "has",
    "have", "high", "his", "house", "how", "image", "into", "is", "it", "its", "just", "kind",
    "large", "light", "like", "line", "little", "long", "look", "made", "many", "me", "more", "my",
    "near", "neat", "nice", "night", "no", "not", "now", "old", "on", "only", "or", "our", "out",
    "over", "page", "paper", "pen", "pencil", "photo", "plain", "quality", "river", "round",
    "scan", "shape", "sharp", "simple", "single", "small", "so", "soft", "some", "stone", "street",
    "strong", "style", "symbol", "table", "tall", "that", "their", "there", "thick", "thin",
    "this", "to", "tree", "under", "up", "very", "wall", "want", "was", "we", "well", "what",
    "when", "which", "wide", "will", "window", "with", "word", "you", "your",
)  # fmt: skip

DIGIT_AS_WORD_SHARE = 0.7
UNNAMED_DEFAULT_COLOUR_SHARE = 0.5
FREE_ORDER_SHARE = 0.5
MOST_FILLERS = 6
MADE_UP_FILLER_SHARE = 0.4
MADE_UP_FILLER_LETTERS = (2, 5)
PUNCTUATION_SHARE = 0.15
JUDGED_SEED = 0


@dataclass(frozen=True)
class JudgedPrompt:
    """A prompt and what its picture must show."""

    text: str
    digit: int
    colour: str


def draw_training_prompt(rng: random.Random, digit: int, colour: str) -> str:
    """Return a prompt for a digit in a colour: half by template, half in free order with filler."""
    numeral = DIGIT_WORDS[digit] if rng.random() < DIGIT_AS_WORD_SHARE else str(digit)
    named = colour != DEFAULT_COLOUR or rng.random() >= UNNAMED_DEFAULT_COLOUR_SHARE
    if rng.random() >= FREE_ORDER_SHARE:
        wording = rng.choice(COLOURED_WORDINGS if named else PLAIN_WORDINGS)
        return wording.format(digit=numeral, colour=colour)
    words = [numeral, *([colour] if named else [])]
    words += [_draw_filler(rng) for _ in range(rng.randint(0, MOST_FILLERS))]
    rng.shuffle(words)
    return " ".join(
        w + rng.choice(",.!?") if rng.random() < PUNCTUATION_SHARE else w for w in words
    )


def judged_prompts(count: int, *, unseen: bool) -> tuple[JudgedPrompt, ...]:
    """Return prompts that go round all digits, colours and wordings, as words and numerals.

    Args:
        count: How many prompts; 80 go once round digits and colours.
        unseen: Use the wordings that no training prompt has.
    """
    plain = UNSEEN_PLAIN_WORDINGS if unseen else PLAIN_WORDINGS
    coloured = UNSEEN_COLOURED_WORDINGS if unseen else COLOURED_WORDINGS
    rng = random.Random(JUDGED_SEED)
    prompts = []
    for index in range(count):
        digit = index % len(DIGIT_WORDS)
        colour = COLOUR_NAMES[(index // len(DIGIT_WORDS)) % len(COLOUR_NAMES)]
        wording = rng.choice((*plain, *coloured) if colour == DEFAULT_COLOUR else coloured)
        numeral = DIGIT_WORDS[digit] if rng.random() < DIGIT_AS_WORD_SHARE else str(digit)
        prompts.append(JudgedPrompt(wording.format(digit=numeral, colour=colour), digit, colour))
    return tuple(prompts)


def corpus() -> Iterator[str]:
    """Yield what the tokenizer learns from: templates filled in every way, then every filler."""
    for wording in (*PLAIN_WORDINGS, *COLOURED_WORDINGS):
        for digit in (*DIGIT_WORDS, *string.digits):
            for colour in COLOUR_NAMES:
                yield wording.format(digit=digit, colour=colour)
    yield from FILLERS


def _draw_filler(rng: random.Random) -> str:
    if rng.random() >= MADE_UP_FILLER_SHARE:
        return rng.choice(FILLERS)
    while True:
        letters = rng.choices(string.ascii_lowercase, k=rng.randint(*MADE_UP_FILLER_LETTERS))
        word = "".join(letters)
        if word not in DIGIT_WORDS and word not in COLOURS:
            return word
