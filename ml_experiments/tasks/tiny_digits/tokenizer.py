"""The tokenizer: CLIP-style byte pairs, learned so that the same prompts give the same tokens.

The trainer of the `tokenizers` library breaks ties by hash order, which differs between runs.
"""

from __future__ import annotations

import itertools
import re
import string
from collections import Counter
from typing import Any

from transformers import CLIPTokenizer

from ml_experiments.tasks.tiny_digits.prompts import corpus

START = "<|startoftext|>"
END = "<|endoftext|>"
WORD_END = "</w>"
VOCABULARY_SIZE = 397
MAX_LENGTH = 32

Pair = tuple[str, str]


def build_tokenizer() -> Any:
    """Return the `CLIPTokenizer` whose merges are learned from the prompt corpus."""
    symbols = sorted(set(string.printable.lower()) - set(string.whitespace))
    alphabet = [*symbols, *(symbol + WORD_END for symbol in symbols)]
    merges = learn_merges(word_counts(), VOCABULARY_SIZE - len(alphabet) - 2)
    tokens = [*alphabet, *(left + right for left, right in merges), START, END]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_LENGTH)


def word_counts() -> Counter[str]:
    """Return how often each word, numeral and run of punctuation stands in the prompt corpus."""
    return Counter(w for text in corpus() for w in re.findall(r"[a-z]+|[0-9]|[^\sa-z0-9]+", text))


def learn_merges(words: Counter[str], count: int) -> list[Pair]:
    """Return the merges of byte-pair encoding; ties go to the pair that sorts first.

    Args:
        words: How often each word occurs.
        count: How many merges at most; fewer when every word is one token before.
    """
    spellings = {word: [*word[:-1], word[-1] + WORD_END] for word in words}
    merges: list[Pair] = []
    while len(merges) < count:
        pairs: Counter[Pair] = Counter()
        for word, pieces in spellings.items():
            for pair in itertools.pairwise(pieces):
                pairs[pair] += words[word]
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        spellings = {word: _merge(pieces, best) for word, pieces in spellings.items()}
    return merges


def _merge(pieces: list[str], pair: Pair) -> list[str]:
    merged: list[str] = []
    for piece in pieces:
        if merged and (merged[-1], piece) == pair:
            merged[-1] += piece
        else:
            merged.append(piece)
    return merged
