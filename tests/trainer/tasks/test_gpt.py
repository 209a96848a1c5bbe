"""The models: what they start from, what they may see, what they count."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from trainer.config import ModelConfig, load_config
from trainer.tasks import IGNORED, TASKS, Batch, build_task
from trainer.tasks.charmlp import CharMLP
from trainer.tasks.gpt import GPT, INIT_STD

SMALL = ModelConfig(n_layer=2, n_head=2, d_model=32)


def test_every_kind_in_the_configuration_is_a_task() -> None:
    from trainer.config import form_fields

    (kinds,) = (field.choices for field in form_fields() if field.name == "task.kind")
    assert set(kinds) == set(TASKS)


@pytest.mark.parametrize("kind", TASKS)
def test_fresh_model_is_close_to_the_uniform_guess(kind: str, texts: Path) -> None:
    torch.manual_seed(0)
    config = load_config(None, [f"task.kind={kind}", f"task.data={texts}", "task.seq_len=64"])
    task = build_task(config)
    batch = task.train_batch(torch.arange(min(16, task.train_size)))
    with torch.no_grad():
        loss = task.loss(task.build_model(), batch) / batch.tokens
    assert float(loss) == pytest.approx(math.log(256), abs=0.12)


@pytest.mark.parametrize("model", [GPT(SMALL, 16).eval(), CharMLP(SMALL).eval()], ids=["gpt", "charmlp"])
def test_no_position_sees_what_comes_after_it(model: torch.nn.Module) -> None:
    torch.manual_seed(0)
    tokens = torch.randint(0, 256, (1, 16))
    changed = tokens.clone()
    changed[0, 9:] = (changed[0, 9:] + 1) % 256
    with torch.no_grad():
        before, after = model(tokens), model(changed)
    assert torch.allclose(before[0, :9], after[0, :9], atol=1e-5)
    assert not torch.allclose(before[0, 9:], after[0, 9:], atol=1e-5)


def test_attention_is_softmax_of_scaled_products_of_the_past() -> None:
    torch.manual_seed(0)
    model = GPT(SMALL, 16).eval()
    attention = model.blocks[0].attn
    x = torch.randn(2, 16, 32)
    qkv = attention.qkv(x).view(2, 16, 2, 3, 16)  # by head, then query, key and value
    q, k, v = (qkv[:, :, :, index].flatten(2) for index in range(3))
    heads = []
    for h in range(2):
        part = slice(16 * h, 16 * h + 16)
        scores = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(16)
        scores = scores.masked_fill(torch.ones(16, 16).triu(1).bool(), float("-inf"))
        heads.append(scores.softmax(-1) @ v[..., part])
    assert torch.allclose(attention(x), attention.proj(torch.cat(heads, dim=2)), atol=1e-6)


def test_charmlp_sees_the_last_context_bytes() -> None:
    model = CharMLP(SMALL.model_copy(update={"context": 4})).eval()
    tokens = torch.randint(0, 256, (1, 10))
    x = model.token(tokens[0, 3:7]).T.flatten()  # what position 6 sees: bytes 3 to 6, feature by feature
    for layer in model.layers:
        x = F.relu(layer(x))
    assert torch.allclose(model(tokens)[0, 6], model.head(model.norm(x)), atol=1e-5)


def test_layers_that_write_the_residual_stream_start_smaller() -> None:
    torch.manual_seed(0)
    model = GPT(ModelConfig(n_layer=8, n_head=2, d_model=64), 16)
    block = model.blocks[0].requires_grad_(False)
    assert float(block.attn.qkv.weight.std()) == pytest.approx(INIT_STD, rel=0.1)
    assert float(block.mlp.down.weight.std()) == pytest.approx(INIT_STD / 4, rel=0.1)
    assert float(block.attn.proj.weight.std()) == pytest.approx(INIT_STD / 4, rel=0.1)


def test_ignored_targets_carry_no_loss_and_are_not_counted(texts: Path) -> None:
    task = build_task(load_config(None, [f"task.data={texts}", "task.seq_len=16", "model.d_model=32"]))
    model = task.build_model().eval()
    batch = task.train_batch(torch.tensor([0, 1]))
    targets = batch.targets.clone()
    targets[1] = IGNORED
    masked = Batch(batch.inputs, targets)
    assert masked.tokens == 16
    alone = Batch(batch.inputs[:1], batch.targets[:1])
    with torch.no_grad():
        assert float(task.loss(model, masked)) == pytest.approx(float(task.loss(model, alone)), rel=1e-5)
