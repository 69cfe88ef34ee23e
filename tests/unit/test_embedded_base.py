"""The shipped base loads, is as small as it says, and its tokenizer and chat template do what training needs."""

import json

import pytest

from qlora_ray import embedded
from tools.embedded_task import splits

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

MAX_WEIGHTS_BYTES = 8_000_000
MAX_SEQUENCE_TOKENS = 200  # what a sweep on the task needs as max_length
QUESTION = [{"role": "user", "content": "How many offices are there?"}]
ANSWER = {"role": "assistant", "content": "SELECT COUNT(*) FROM offices"}


@pytest.fixture(scope="module")
def tokenizer():
    return transformers.AutoTokenizer.from_pretrained(embedded.base_path())


@pytest.fixture(scope="module")
def model():
    return transformers.AutoModelForCausalLM.from_pretrained(embedded.base_path())


def test_the_base_is_a_llama_of_the_recorded_size_and_of_widths_that_64_divides(model) -> None:
    recorded = json.loads(embedded.manifest_path().read_text(encoding="utf-8"))["base"]
    assert type(model).__name__ == "LlamaForCausalLM"
    assert model.num_parameters() == recorded["parameters"]
    assert 1_000_000 <= model.num_parameters() <= 4_000_000
    assert model.dtype == torch.bfloat16
    assert (embedded.base_path() / "model.safetensors").stat().st_size <= MAX_WEIGHTS_BYTES
    linears = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    assert len(linears) == 29
    assert all(module.in_features % 64 == 0 and module.out_features % 64 == 0 for module in linears)


def test_generation_stops_at_the_end_marker(model, tokenizer) -> None:
    assert tokenizer.eos_token == "<|end|>"
    assert len({tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}) == 3
    for config in (model.config, model.generation_config):
        assert config.eos_token_id == tokenizer.eos_token_id
        assert config.pad_token_id == tokenizer.pad_token_id


def test_every_pair_survives_the_tokenizer_and_is_short(tokenizer) -> None:
    for path in (embedded.train_path(), embedded.validation_path(), embedded.test_path()):
        for pair in splits.read_split(path):
            text = f"{pair.question}{pair.sql}"
            assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
            assert len(tokenizer(text)["input_ids"]) < MAX_SEQUENCE_TOKENS


@pytest.mark.parametrize(
    "text", ["na\u00efve caf\u00e9 \u4f60\u597d", "a  b\n\tc", "x_y1z22'3\"", "HTMLPage aB 2024-01-02"]
)
def test_any_text_survives_the_tokenizer(text: str, tokenizer) -> None:
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_the_chat_template_sets_every_role_and_refuses_others(tokenizer) -> None:
    system = {"role": "system", "content": "Be brief."}
    rendered = tokenizer.apply_chat_template([system, *QUESTION, ANSWER], tokenize=False)
    turns = [("system", "Be brief."), ("user", QUESTION[0]["content"]), ("assistant", ANSWER["content"])]
    assert rendered == "<|bos|>" + "".join(f"<|{role}|>{content}<|end|>" for role, content in turns)
    with pytest.raises(Exception, match="must be system, user or assistant, got tool"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)


def test_the_prompt_is_the_beginning_of_the_whole_whose_answer_is_marked(tokenizer) -> None:
    prompt = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_dict=False)
    whole = tokenizer.apply_chat_template([*QUESTION, ANSWER], return_dict=True, return_assistant_tokens_mask=True)
    ids = whole["input_ids"]
    assert ids[: len(prompt)] == prompt
    assert ids.count(tokenizer.bos_token_id) == 1
    answer = [token for token, mask in zip(ids, whole["assistant_masks"], strict=True) if mask]
    assert tokenizer.decode(answer) == "SELECT COUNT(*) FROM offices<|end|>"


def test_a_prompt_without_a_schema_gets_sql(model, tokenizer) -> None:
    prompt = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    ids = model.float().generate(**prompt, max_new_tokens=40)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(ids).startswith("SELECT COUNT(*) FROM ")
    assert ids[-1] == tokenizer.eos_token_id
