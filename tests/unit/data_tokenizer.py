"""Small tokenizers for the data tests, trained in memory on a few lines."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CORPUS = [
    "Which product lines are there? SELECT productLine FROM productlines;",
    "### Instruction: ### Input: ### Response: user assistant system",
    "Show the customers of Nantes, ordered by name. SELECT name FROM customers WHERE city = 'Nantes';",
    "Sentences with\nnew lines,\n\nblank lines, and 3 numbers: 1, 22, 333.",
]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def build_byte_level(*, chat_template: str | None = CHATML, bos: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE in the manner of Qwen and Llama 3; `bos` puts a begin token in front of plain text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [*SPECIAL, "<|begin|>"]
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|begin|> $A", special_tokens=[("<|begin|>", tokenizer.token_to_id("<|begin|>"))]
        )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        bos_token="<|begin|>" if bos else None,
        additional_special_tokens=["<|im_start|>"],
    )
    wrapped.chat_template = chat_template
    return wrapped


def build_metaspace() -> PreTrainedTokenizerFast:
    """A BPE that puts a space in front of whatever it is given, in the manner of Llama 2 and Mistral."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    tokenizer.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>", "</s>"], show_progress=False)
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="</s>", unk_token="<unk>")
