"""The models: what they start from, what they may see, what they count."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tests.trainer.conftest import Desk, assert_same
from trainer.config import ModelConfig, load_config
from trainer.tasks import IGNORED, TASKS, Batch, build_task
from trainer.tasks.charmlp import CharMLP
from trainer.tasks.gpt import GPT
from trainer.tasks.initialise import GPT2_STD

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
    model = task.build_model()
    with torch.no_grad():
        loss = task.loss(model, batch) / batch.tokens
        classes = model(batch.inputs).shape[-1]
    assert float(loss) == pytest.approx(math.log(classes), abs=0.12)


@pytest.mark.parametrize("model", [GPT(SMALL, 16).eval(), CharMLP(SMALL, 256).eval()], ids=["gpt", "charmlp"])
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
    model = CharMLP(SMALL.model_copy(update={"context": 4}), 256).eval()
    tokens = torch.randint(0, 256, (1, 10))
    x = model.token(tokens[0, 3:7]).T.flatten()  # what position 6 sees: bytes 3 to 6, feature by feature
    for layer in model.layers:
        x = F.relu(layer(x))
    assert torch.allclose(model(tokens)[0, 6], model.head(model.norm(x)), atol=1e-5)


def test_layers_that_write_the_residual_stream_start_smaller() -> None:
    torch.manual_seed(0)
    model = GPT(ModelConfig(n_layer=8, n_head=2, d_model=64), 16)
    block = model.blocks[0].requires_grad_(False)
    assert float(block.attn.qkv.weight.std()) == pytest.approx(GPT2_STD, rel=0.1)
    assert float(block.mlp.down.weight.std()) == pytest.approx(GPT2_STD / 4, rel=0.1)
    assert float(block.attn.proj.weight.std()) == pytest.approx(GPT2_STD / 4, rel=0.1)


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


def with_options(**more: object) -> GPT:
    torch.manual_seed(0)
    return GPT(SMALL.model_copy(update=more), 16)


def test_gradient_checkpointing_gives_the_same_gradients_and_keeps_less() -> None:
    tokens = torch.randint(0, 256, (4, 16))
    gradients, kept = [], []
    for recompute in (False, True):
        model = with_options(dropout=0.3, gradient_checkpointing=recompute)
        sizes: list[int] = []
        torch.manual_seed(1)
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, sizes=sizes: (sizes.append(t.numel()), t)[1], lambda t: t
        ):
            loss = model(tokens).square().mean()
        loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
        kept.append(sum(sizes))
    assert all(torch.equal(plain, again) for plain, again in zip(*gradients, strict=True))
    assert kept[1] < kept[0] / 2


def test_monitored_training_is_the_same_with_gradient_checkpointing(desk: Desk) -> None:
    common = ("steps=6", "model.dropout=0.1")
    plain, recomputed = desk.train(*common), desk.train(*common, "model.gradient_checkpointing=true")
    assert_same(plain.weights(), recomputed.weights())
    assert (
        recomputed.run.series("grad_norm_preclip").value.tolist()
        == plain.run.series("grad_norm_preclip").value.tolist()
    )
    assert recomputed.run.problems == ()


def test_normalised_queries_and_keys_bound_the_attention_logits() -> None:
    attention = with_options(qk_norm=True).blocks[0].attn
    x = 100 * torch.randn(2, 16, 32)
    q, k, v = attention.qkv(x).view(2, 16, 2, 3, 16).permute(3, 0, 2, 1, 4)
    q, k = (part / part.square().mean(-1, keepdim=True).sqrt() for part in (q, k))
    assert (q @ k.transpose(2, 3) / 4).abs().max() <= 4.0 + 1e-4  # sqrt(E)
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    assert torch.allclose(attention(x), attention.proj(y.transpose(1, 2).flatten(2)), atol=1e-4)


@pytest.mark.parametrize(
    ("scheme", "expected"),
    [("xavier", math.sqrt(2 / (64 + 192))), ("he", math.sqrt(2 / 64)), ("small", math.sqrt(2 / (5 * 64)))],
)
def test_first_weights_have_the_size_that_their_scheme_says(scheme: str, expected: float) -> None:
    model = with_options(d_model=64, init=scheme).requires_grad_(False)
    assert float(model.blocks[0].attn.qkv.weight.std()) == pytest.approx(expected, rel=0.05)
    assert float(model.token.weight.std()) == pytest.approx(GPT2_STD, rel=0.05)


@pytest.mark.parametrize("model", [with_options(), CharMLP(SMALL, 256)], ids=["gpt", "charmlp"])
def test_a_shift_is_added_to_the_embeddings(model: torch.nn.Module) -> None:
    model.eval()
    tokens, other = torch.randint(0, 256, (2, 3, 16))
    table = model.get_parameter("token.weight")
    assert torch.allclose(model(tokens, table[other] - table[tokens]), model(other), atol=1e-5)


def test_held_out_figures_follow_from_the_loss_by_their_definitions(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    overrides = [f"task.data={texts}", "task.seq_len=16", "model.d_model=32", "task.tokens=bpe", "task.vocab_size=400"]
    task = build_task(load_config(None, overrides))
    model = task.build_model().eval()
    batch = task.val_batch(torch.arange(8))
    batch.targets[0] = IGNORED
    with torch.no_grad():
        logits = model(batch.inputs)
        sums = task.scores(model, batch).double()
    figures = task.held_out(dict(zip(task.score_names, (sums / batch.tokens).tolist(), strict=True)))
    shares = logits.double().log_softmax(-1)[1:].gather(2, batch.targets[1:, :, None]).exp()  # of what really came
    written = b"".join(task.vocabulary[token] for token in batch.targets[1:].flatten().tolist())
    assert figures["val_perplexity"] == pytest.approx(float(shares.log().mean().neg().exp()), rel=1e-5)
    assert figures["val_bits_per_byte"] == pytest.approx(-float(shares.log2().sum()) / len(written), rel=1e-5)
    assert figures["val_accuracy"] == pytest.approx(float((logits.argmax(-1) == batch.targets)[1:].double().mean()))
    assert figures["val_loss"] == pytest.approx(math.log(figures["val_perplexity"]))


def test_without_byte_pairs_bits_per_byte_are_the_loss_in_bits(texts: Path) -> None:
    task = build_task(load_config(None, [f"task.data={texts}", "task.seq_len=16"]))
    assert task.held_out({"loss": 2.0, "accuracy": 0.0, "bytes": 1.0})["val_bits_per_byte"] == pytest.approx(
        2 / math.log(2)
    )
    assert task.held_out({"loss": math.inf, "accuracy": 0.0, "bytes": 1.0})["val_perplexity"] == math.inf


def test_byte_pairs_are_learnt_from(desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    trained = desk.train("steps=12", "task.tokens=bpe", "task.vocab_size=400", "optimizer.lr=1e-2")
    assert trained.losses()[0] == pytest.approx(math.log(400), abs=0.1)
    assert trained.losses()[-1] < trained.losses()[0] - 0.5
    (sample,) = trained.run.events("sample")
    assert len(sample.fields["text"]) <= 8 and sample.fields["prompt"]
