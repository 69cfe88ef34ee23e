"""A tiny random model, its byte tokenizer and a small database, for the tests of qlora_ray.evaluation."""

from __future__ import annotations

import random
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from qlora_ray.data import TokenizedSplit
from qlora_ray.data.tokenized import COLUMNS

NUM_SPECIAL = 3
VOCAB_SIZE = NUM_SPECIAL + 256


def make_split(lengths: list[tuple[int, int]], *, seed: int = 0) -> TokenizedSplit:
    """Rows of random tokens: for each (prompt, answer), so many of both."""
    generator = random.Random(seed)
    rows = [[generator.randrange(NUM_SPECIAL, VOCAB_SIZE) for _ in range(p + a)] for p, a in lengths]
    masks = [[0] * p + [1] * a for p, a in lengths]
    prompts = [row[:p] for row, (p, _) in zip(rows, lengths, strict=True)]
    return TokenizedSplit.of("validation", rows, masks, prompts, ["SELECT 1"] * len(rows))


def with_columns(split: TokenizedSplit, **columns: list[Any]) -> TokenizedSplit:
    """The split with other values in some columns."""
    return TokenizedSplit.of(split.name, **{name: getattr(split, name) for name in COLUMNS} | columns)


def tiny_sizes(**changes: object) -> dict[str, object]:
    """Config values that most decoder configs of transformers share."""
    sizes: dict[str, object] = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return {**sizes, **changes}


def make_llama(**changes: object) -> LlamaForCausalLM:
    torch.manual_seed(0)
    # A wide initialization makes a random model answer different prompts differently.
    return LlamaForCausalLM(LlamaConfig(**tiny_sizes(initializer_range=0.2, **changes)))


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, after three special ones."""
    names = ["<pad>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={name: at for at, name in enumerate(names)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def make_database(path: Path) -> Path:
    """Writes a shop of four products, with a price that two of them share."""
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            """
            CREATE TABLE products (name TEXT, price REAL, stock INTEGER, note TEXT);
            INSERT INTO products VALUES ('car', 10.5, 3, NULL), ('ship', 20.25, 0, 'order by'),
                                        ('plane', 30.1, 7, NULL), ('train', 10.5, 1, '');
            """
        )
    return path
