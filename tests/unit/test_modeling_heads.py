"""Body and head apart make what the model makes whole, in every architecture; and leave it as it was."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers

from qlora_ray.modeling.heads import SplitModel
from tests.unit.model_fixtures import CONFIGS as PLAIN
from tests.unit.model_fixtures import GATED, assert_same_state, clone_state

# A window shorter than the rows, so that it matters what a token attends to.
WINDOW = {"sliding_window": 4}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: PLAIN[name] for name in ("qwen3", "phi3", "gpt_neox", "starcoder2", "gpt2")},
    "llama": ("LlamaConfig", {**GATED, "tie_word_embeddings": False}),
    "llama-tied": ("LlamaConfig", {**GATED, "tie_word_embeddings": True}),
    "mistral": ("MistralConfig", {**GATED, **WINDOW}),
    "qwen2": ("Qwen2Config", {**GATED, "tie_word_embeddings": True}),
    "gemma2": ("Gemma2Config", {**GATED, **WINDOW, "head_dim": 16, "final_logit_softcapping": 0.5}),
    "gemma3": ("Gemma3TextConfig", {**GATED, **WINDOW, "head_dim": 16}),
    "cohere": ("CohereConfig", {**GATED, "logit_scale": 0.25}),
    "granite": ("GraniteConfig", {**GATED, "logits_scaling": 7.0}),
}
LENGTHS = (11, 7, 3)
# What each does to logits besides the product; a head that is only a product would get these wrong.
MORE_THAN_A_PRODUCT = ("gemma2", "cohere", "granite")


@pytest.fixture(scope="module", params=list(CONFIGS))
def causal(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A model of two layers with random weights."""
    name, sizes = CONFIGS[request.param]
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, name)(**sizes)).eval()
    model.architecture = request.param
    with torch.no_grad():
        yield model


def draw_rows() -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of LENGTHS padded on the right with zeros, and their attention mask."""
    ids_BT = torch.randint(1, 96, (len(LENGTHS), max(LENGTHS)), generator=torch.Generator().manual_seed(1))
    mask_BT = torch.arange(max(LENGTHS))[None] < torch.tensor(LENGTHS)[:, None]
    return ids_BT * mask_BT, mask_BT


def test_head_of_body_is_the_whole_and_the_model_is_as_it_was(causal: Any) -> None:
    state, (ids_BT, mask_BT) = clone_state(causal), draw_rows()
    whole_BTV = causal(ids_BT, use_cache=False).logits
    split = SplitModel(causal)
    hidden_ND = split.hidden(ids_BT).flatten(0, 1)
    logits_NV = split.logits(hidden_ND)
    torch.testing.assert_close(logits_NV, whole_BTV.flatten(0, 1), rtol=1e-5, atol=1e-6)
    masked_BTV = causal(ids_BT, attention_mask=mask_BT.long(), use_cache=False).logits
    torch.testing.assert_close(logits_NV[mask_BT.flatten()], masked_BTV[mask_BT], rtol=1e-5, atol=1e-6)
    chosen = torch.tensor([3, 0, 17, 17])
    torch.testing.assert_close(split.logits(hidden_ND[chosen]), logits_NV[chosen])
    assert "forward" not in causal.base_model.__dict__
    assert torch.equal(causal(ids_BT, use_cache=False).logits, whole_BTV)
    assert_same_state(causal, state)


def test_what_a_model_does_after_its_product_is_done(causal: Any) -> None:
    hidden_ND = SplitModel(causal).hidden(draw_rows()[0]).flatten(0, 1)
    product_NV = causal.get_output_embeddings()(hidden_ND)
    is_the_product = torch.allclose(SplitModel(causal).logits(hidden_ND), product_NV)
    assert is_the_product == (causal.architecture not in MORE_THAN_A_PRODUCT)


def test_the_gradient_of_hidden_states_is_the_heads(causal: Any) -> None:
    split = SplitModel(causal)
    hidden_ND = torch.randn(5, 64, generator=torch.Generator().manual_seed(2))
    with torch.enable_grad():
        leaf_ND = hidden_ND.clone().requires_grad_()
        (gradient_ND,) = torch.autograd.grad(split.logits(leaf_ND).square().sum(), leaf_ND)
    step = 1e-2 * torch.randn(5, 64, generator=torch.Generator().manual_seed(3))
    ends = [split.logits(hidden_ND + sign * step).double().square().sum() for sign in (1, -1)]
    assert (gradient_ND * step).sum().item() == pytest.approx((ends[0] - ends[1]).item() / 2, rel=1e-2)


def build_llama() -> Any:
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(transformers.LlamaConfig(**GATED)).eval()


def test_a_forward_that_others_put_on_the_body_is_put_back() -> None:
    causal = build_llama()
    body = causal.base_model
    own = body.forward
    body.forward = wrapper = lambda *args, **kwargs: own(*args, **kwargs)
    SplitModel(causal).logits(torch.zeros(2, 64))
    assert body.forward is wrapper


def test_a_head_that_fails_leaves_the_bodys_forward() -> None:
    causal = build_llama()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        SplitModel(causal).logits(torch.zeros(2, 63))
    assert "forward" not in causal.base_model.__dict__
    assert causal(draw_rows()[0]).logits.shape == (3, 11, 96)


def test_a_model_that_is_all_body_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="LlamaModel has no body apart from its head"):
        SplitModel(build_llama().base_model)
