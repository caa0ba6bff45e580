"""A small random Llama with a byte-level tokenizer of its own, and texts for it: what whole quantizations run on."""

from __future__ import annotations

import random
from pathlib import Path

_TEXT = "the memory of a model on a card is its weights and its cache and what layers hold one after another"


def save_small_llama(folder: Path) -> Path:
    """Save the model, and return its folder."""
    import torch
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["memory of models on cards"], trainer)
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>").save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=300,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=0,
    )
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


def save_texts(folder: Path) -> Path:
    """Save a folder of texts, some to calibrate and a few to validate on."""
    words = _TEXT.split()
    for seed, (part, count) in enumerate((("calibrate", 40), ("validate", 6))):
        chance = random.Random(seed)
        (folder / part).mkdir(parents=True)
        for number in range(count):
            (folder / part / f"{number}.txt").write_text(" ".join(chance.choice(words) for _ in range(120)))
    return folder
