"""The pack's loss and its backward against F.cross_entropy, trial by trial."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qlora_ray.training.packed import loss
from qlora_ray.training.packed.loss import backward_losses

ROWS, TOKENS, WIDTH, VOCABULARY = 6, 9, 16, 40
# Whose each row is, and where its answers are predicted; trial 3 has no answer token at all.
MEMBERS = [0, 0, 1, 1, 2, 3]
PREDICTING = [[1, 2, 5], [0, 3], [7], [2, 4, 6, 7], [0, 1, 2, 3, 4, 5, 6, 7], []]
COUNTS = [5, 5, 8, 0]


class Net:
    """A body with one weight, and a head that does more than a product."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x_BTD = torch.randn(ROWS, TOKENS, WIDTH, generator=generator)
        self.weight_DD = torch.randn(WIDTH, WIDTH, generator=generator).requires_grad_()
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False).requires_grad_(False)
        self.head.weight.copy_(torch.randn(VOCABULARY, WIDTH, generator=generator))
        self.labels = torch.randint(VOCABULARY, (ROWS, TOKENS), generator=generator)

    def hidden(self) -> Tensor:
        return torch.tanh(self.x_BTD @ self.weight_DD)

    def logits(self, hidden: Tensor) -> Tensor:
        return 5 * torch.tanh(self.head(hidden) / 5)

    def run(self, weights: list[float], *, predicting: list[list[int]] = PREDICTING) -> tuple[Tensor, Tensor]:
        """Each trial's summed loss, and the body's gradient."""
        places = [(row, at) for row, ats in enumerate(predicting) for at in ats]
        trials_N = torch.tensor([MEMBERS[row] for row, _ in places], dtype=torch.long)
        self.weight_DD.grad = None
        sums_M = backward_losses(
            self.hidden(),
            positions_N=torch.tensor([row * TOKENS + at for row, at in places], dtype=torch.long),
            labels_N=torch.tensor([self.labels[row, at] for row, at in places], dtype=torch.long),
            trials_N=trials_N,
            weights_N=torch.tensor(weights)[trials_N],
            num_trials=len(COUNTS),
            vocab_size=VOCABULARY,
            logits_of=self.logits,
        )
        assert self.weight_DD.grad is not None
        return sums_M, self.weight_DD.grad

    def expect(self, scales: list[float]) -> tuple[list[float], Tensor]:
        """Each trial's mean loss, and the gradient of their sum, each times its scale; in float64."""
        weight_DD = self.weight_DD.detach().double().requires_grad_()
        logits_BTV = 5 * torch.tanh(torch.tanh(self.x_BTD.double() @ weight_DD) @ self.head.weight.double().T / 5)
        means, total = [], torch.zeros((), dtype=torch.double)
        for trial, scale in enumerate(scales):
            places = [(r, at) for r, ats in enumerate(PREDICTING) if MEMBERS[r] == trial for at in ats]
            if not places:
                means.append(0.0)
                continue
            rows, ats = zip(*places, strict=True)
            mean = F.cross_entropy(logits_BTV[rows, ats], self.labels[rows, ats])
            means.append(mean.item())
            total = total + scale * mean
        total.backward()
        assert weight_DD.grad is not None
        return means, weight_DD.grad


def weights_of(scales: list[float]) -> list[float]:
    return [scale / max(1, count) for scale, count in zip(scales, COUNTS, strict=True)]


@pytest.mark.parametrize("scales", [[1.0] * 4, [1.0, 256.0, 0.5, 1.0]])
def test_losses_and_gradient_are_those_of_each_trials_own_mean(scales: list[float]) -> None:
    net = Net()
    sums_M, gradient = net.run(weights_of(scales))
    means, expected = net.expect(scales)
    got = [total / max(1, count) for total, count in zip(sums_M.tolist(), COUNTS, strict=True)]
    assert got == pytest.approx(means, rel=1e-5)
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-4, atol=1e-6 * expected.abs().max().item())


# A chunk is one token where the vocabulary is larger than the bound.
@pytest.mark.parametrize(
    ("chunk_bytes", "num_logits"), [(1, 1), *((4 * VOCABULARY * size, size) for size in (1, 3, 7))]
)
def test_several_chunks_are_one(chunk_bytes: int, num_logits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net()
    whole, whole_gradient = net.run(weights_of([1.0] * 4))
    monkeypatch.setattr(loss, "LOGITS_CHUNK_BYTES", chunk_bytes)
    seen = []
    logits = net.logits
    monkeypatch.setattr(net, "logits", lambda hidden: seen.append(len(hidden)) or logits(hidden))
    parts, parts_gradient = net.run(weights_of([1.0] * 4))
    assert max(seen) == num_logits
    assert sum(seen) == sum(COUNTS)
    torch.testing.assert_close(parts, whole, rtol=1e-6, atol=0)
    torch.testing.assert_close(parts_gradient, whole_gradient, rtol=1e-6, atol=1e-6)


def test_a_pass_without_answer_tokens_has_no_loss_and_no_gradient() -> None:
    sums_M, gradient = Net().run([1.0] * 4, predicting=[[]] * ROWS)
    assert sums_M.tolist() == [0.0] * 4
    assert not gradient.any()


def test_a_members_nan_stays_in_its_own_sum() -> None:
    net = Net()
    before, _ = net.run(weights_of([1.0] * 4))
    net.x_BTD[2] = float("nan")
    after, _ = net.run(weights_of([1.0] * 4))
    assert after[1].isnan()
    assert torch.equal(after[[0, 2, 3]], before[[0, 2, 3]])
