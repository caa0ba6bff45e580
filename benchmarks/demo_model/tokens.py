"""The demo model's tokenizer (byte-level BPE, 4,096 tokens), and the training text as one stream of its tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

VOCABULARY = 4096
END_OF_TEXT = "<|endoftext|>"  # token 0: before every document, and after the last
# Words with the space before them, digits one by one, runs of other signs, runs of spaces. No piece spans a line.
_PIECES = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s*\n|\s+(?!\S)|\s+"


def train_tokenizer(texts: Iterator[str]) -> Tokenizer:
    """Learn the merges from texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def texts_of(folder: Path) -> Iterator[str]:
    """Every document of a folder of .jsonl files."""
    for path in sorted(folder.glob("*.jsonl")):
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                yield json.loads(line)["text"]


def token_stream(tokenizer: Tokenizer, texts: list[str]) -> NDArray[np.uint16]:
    """Shuffled documents (seed 0), each after an end-of-text token, as one array of tokens."""
    order = np.random.default_rng(0).permutation(len(texts))
    parts: list[NDArray[np.uint16]] = []
    for start in range(0, len(order), 256):
        encoded = tokenizer.encode_batch([texts[i] for i in order[start : start + 256]])
        parts += [np.array([0, *each.ids], np.uint16) for each in encoded]
    return np.concatenate(parts)
