"""The base's tokenizer: a byte-level BPE with chat markers, and the chat template that sets them."""

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

VOCAB_SIZE = 1024  # 256 bytes, 6 markers and 762 merges; the embedding then is a tenth of the parameters
BOS, PAD, SYSTEM, USER, ASSISTANT, END = (
    "<|bos|>",
    "<|pad|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
)
SPECIAL_TOKENS = [BOS, PAD, SYSTEM, USER, ASSISTANT, END]

# Words break where the case changes, so that "credit limit" and creditLimit share pieces. Numbers break into
# pairs of digits: copied digit by digit, 44 and 59 came out as 454.
WORD_PATTERN = r" ?[A-Z]?[a-z]+| ?[A-Z]+(?![a-z])|\d{1,2}| ?[^\sA-Za-z\d]+|\s+"

# `generation` marks the answer for return_assistant_tokens_mask, and so for TRL's assistant_only_loss.
CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}
<|assistant|>{% generation %}{{ message['content'] }}<|end|>{% endgeneration %}
{%- elif message['role'] in ('system', 'user') -%}
<|{{ message['role'] }}|>{{ message['content'] }}<|end|>
{%- else -%}
{{- raise_exception("messages: role must be system, user or assistant, got " ~ message['role'] ~ ".") -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}
"""


def train_tokenizer(texts: Iterable[str], *, max_length: int) -> PreTrainedTokenizerFast:
    """Returns a tokenizer trained on the texts.

    Args:
        max_length: The longest sequence the model takes, in tokens.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=max_length,
        padding_side="right",
    )
