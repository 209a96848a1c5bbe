"""Text that a model writes: from the model's own probabilities, the same each time, and nothing else is disturbed."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from trainer.config import load_config
from trainer.tasks import build_model, build_task
from trainer.tasks.generation import LONGEST_RUN, NUCLEUS, TEMPERATURE, generate
from trainer.tasks.next_token import NextToken, _shown


class Told(nn.Module):
    """Gives logits that depend on the last token only, and remembers how much it saw."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)
        self.lengths: list[int] = []

    def forward(self, tokens: Tensor) -> Tensor:
        self.lengths.append(tokens.shape[1])
        return self.logits[tokens]


def test_tokens_follow_the_probabilities_at_the_temperature_without_the_tail() -> None:
    logits = torch.tensor([[-4.0, 1.0, 0.0, -1.0]] * 4)
    tokens = generate(Told(logits), [0], 4000, context=1, seed=3)
    expected = torch.softmax(logits[0] / TEMPERATURE, dim=0)
    assert expected[[1, 2]].sum() < NUCLEUS < expected[[1, 2, 3]].sum()
    expected[0] = 0.0
    expected /= expected.sum()
    shares = torch.bincount(torch.tensor(tokens), minlength=4) / len(tokens)
    assert shares[0] == 0
    assert torch.allclose(shares, expected, atol=4 * (0.25 / 4000) ** 0.5)  # four standard errors


def test_model_sees_the_prompt_and_at_most_the_context() -> None:
    chain = torch.full((3, 3), -1e9)
    chain[[0, 1, 2], [1, 2, 0]] = 0.0
    model = Told(chain)
    assert generate(model, [0, 1], 5, context=4, seed=0) == [2, 0, 1, 2, 0]
    assert model.lengths == [2, 3, 4, 4, 4]


def test_endless_repetition_is_broken() -> None:
    stuck = torch.tensor([[50.0, 0.0]] * 2)
    assert generate(Told(stuck), [0], 30, context=4, seed=0) == [0] * (LONGEST_RUN - 1) + [1] + [0] * (30 - LONGEST_RUN)


def test_logits_that_are_not_finite_end_the_text() -> None:
    assert generate(Told(torch.full((2, 2), float("nan"))), [0], 5, context=4, seed=0) == []


def test_sample_is_the_same_each_time_and_draws_no_training_numbers(texts: Path) -> None:
    config = load_config(None, [f"task.data={texts}", "task.seq_len=16", "model.d_model=32"])
    task = build_task(config)
    assert isinstance(task, NextToken)
    model = build_model(task, config).eval()
    before = torch.get_rng_state()
    first, again = (task.sample(model, 30) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert first == again is not None
    middle = bytes(task.val.data.tolist())[len(task.val.data) // 2 :]
    assert middle.decode().startswith(first[0]) and 0 < len(first[0]) <= 16
    assert 0 < len(first[1]) <= 30


def test_control_characters_do_not_reach_a_terminal() -> None:
    assert _shown(b"\x1b[2J\x07a\n\tb\0\xff") == "�[2J�a\n\tb��"
