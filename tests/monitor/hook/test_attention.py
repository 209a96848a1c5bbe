"""Attention logits and entropy against the definition, written out in float64 from what the modules got."""

from __future__ import annotations

import base64
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from monitor.hook import attention, attention_maps, observe
from monitor.hook.attention import Attention, Call
from monitor.runfile.reader import open_run
from tests.monitor.hook import recorded
from tests.monitor.hook.problems import GPT, Problem, TinyGPT
from tests.monitor.hook.test_activations import TRANSLATOR
from tests.monitor.hook.watching import hooks, train, watched


def _slow(query, key, mask=None, causal=False, scale=None, groups=1):
    """Largest |logit| and [H] entropies of [H, L, E] against [H', S, E], pair by pair."""
    query, key = query.detach().double().numpy(), key.detach().double().numpy()
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    heads, length, _ = query.shape
    largest, entropies = 0.0, []
    for head in range(heads):
        shares = []
        for i in range(length):
            logits, biased = [], []
            for j in range(key.shape[1]):
                bias = 0.0
                if causal and j > i:
                    continue
                if mask is not None:
                    entry = mask.expand(heads, length, key.shape[1])[head, i, j].item()
                    if entry is False or entry == -math.inf:
                        continue
                    bias = 0.0 if entry is True else entry
                logits.append(scale * query[head, i] @ key[head // groups, j])
                biased.append(logits[-1] + bias)
            if logits:
                largest = max(largest, np.abs(logits).max())
            if len(logits) > 1:
                weights = np.exp(np.array(biased) - max(biased))
                weights /= weights.sum()
                weights = weights[weights > 0]
                shares.append(-(weights * np.log(weights)).sum() / math.log(len(logits)))
        entropies.append(np.mean(shares))
    return largest, np.array(entropies)


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


_HIDE = torch.zeros(5, 7).masked_fill(_random(5, 7, seed=9) > 0.5, -math.inf)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"is_causal": True},
        {"scale": 0.7},
        {"attn_mask": _random(5, 7) > -0.5},
        {"attn_mask": _random(3, 1, 5, 7)},
        {"attn_mask": _HIDE},
        {"dropout_p": 0.4},
    ],
    ids=["plain", "causal", "scale", "bool mask", "bias per sequence", "hiding bias", "dropout"],
)
def test_exact_and_bound_of_one_call(options: dict) -> None:
    query, key = 3 * _random(3, 4, 5, 6), 2 * _random(3, 4, 7, 6, seed=1)
    call = Call.of((query, key, key), options)
    assert call is not None
    mask = options.get("attn_mask")
    mask = mask[0] if mask is not None and mask.dim() == 4 else mask
    slow, entropies = _slow(query[0], key[0], mask, options.get("is_causal", False), options.get("scale"))
    largest, lowest, mean, rows = call.first_sequence().summary().tolist()
    assert largest == pytest.approx(slow, rel=1e-5)
    assert lowest == pytest.approx(entropies.min(), rel=1e-5)
    assert mean == pytest.approx(entropies.mean(), rel=1e-5)
    assert rows > 0
    everything = max(_slow(query[at], key[at], scale=options.get("scale"))[0] for at in range(3))
    longest = [torch.linalg.vector_norm(each.double(), dim=-1).amax(-1) for each in (query, key)]
    scale = options.get("scale", 1 / math.sqrt(6))
    assert everything <= call.bound().item() == pytest.approx((longest[0] * longest[1]).max().item() * scale, rel=1e-5)


def test_weights_are_what_attention_multiplies_by() -> None:
    query, key = _random(2, 3, 5, 4), _random(2, 3, 5, 4, seed=1)
    see_through = torch.eye(5).expand(2, 3, 5, 5)
    mixed = functional.scaled_dot_product_attention(query, key, see_through, is_causal=True)
    call = Call.of((query, key, see_through), {"is_causal": True})
    torch.testing.assert_close(call.first_sequence().weights(), mixed[0])


def test_grouped_queries() -> None:
    query, key = _random(2, 6, 5, 4), _random(2, 2, 5, 4, seed=1)
    call = Call.of((), {"query": query, "key": key, "value": key, "enable_gqa": True, "is_causal": True})
    slow, entropies = _slow(query[0], key[0], causal=True, groups=3)
    largest, _, mean, _ = call.first_sequence().summary().tolist()
    assert (largest, mean) == (pytest.approx(slow, rel=1e-5), pytest.approx(entropies.mean(), rel=1e-5))
    assert call.bound() >= slow


def test_a_query_that_sees_nothing_or_one_key_has_no_entropy() -> None:
    mask = torch.zeros(5, 5, dtype=torch.bool)
    mask[0, 0] = True
    call = Call.of((_random(1, 2, 5, 4), _random(1, 2, 5, 4), _random(1, 2, 5, 4), mask), {})
    summary = call.first_sequence().summary()
    assert torch.isfinite(summary).all()
    assert summary[3] == 0


def test_long_sequences_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_MOST", 2 * 40 * 10)
    query, key = _random(2, 2, 40, 4), _random(2, 2, 40, 4, seed=1)
    logits = Call.of((query, key, key), {"is_causal": True}).first_sequence()
    assert logits.scaled.shape == (2, 10, 40)
    assert logits.visible[0].sum(-1).tolist() == list(range(4, 41, 4))  # the last query is one of them


@pytest.mark.parametrize("shape", [(5, 4), (3, 5, 4), (2, 3, 2, 5, 4)])
def test_any_number_of_leading_dimensions(shape: tuple[int, ...]) -> None:
    query, key = _random(*shape), _random(*shape, seed=1)
    call = Call.of((query, key, key), {})
    first = query.reshape(-1, *query.shape[-3:])[0] if query.dim() > 2 else query[None]
    other = key.reshape(-1, *key.shape[-3:])[0] if key.dim() > 2 else key[None]
    assert call.first_sequence().summary()[0].item() == pytest.approx(_slow(first, other)[0], rel=1e-5)
    assert call.bound() >= call.first_sequence().summary()[0]


def _spied(model: nn.Module) -> dict[str, list[Tensor]]:
    """Inputs of the attention modules as they run."""
    given: dict[str, list[Tensor]] = {}
    for name, module in model.named_modules():
        if name.endswith(("attention", "self_attn")):
            module.register_forward_hook(
                lambda _m, args, kwargs, _o, name=name: given.setdefault(name, []).append(
                    (args[0] if args else kwargs["query"]).detach().clone()
                ),
                with_kwargs=True,
            )
    return given


def _projected(module: nn.Module, given: Tensor) -> tuple[Tensor, Tensor]:
    """[B, H, T, E] queries and keys of the attention modules of the test problems."""
    if isinstance(module, nn.MultiheadAttention):
        both = functional.linear(given, module.in_proj_weight, module.in_proj_bias).chunk(3, -1)[:2]
        heads = module.num_heads
    else:
        both, heads = module.qkv(given).chunk(3, -1)[:2], module.heads
    return tuple(each.unflatten(-1, (heads, -1)).transpose(1, 2) for each in both)


@pytest.mark.parametrize("problem", [GPT, TRANSLATOR], ids=lambda problem: problem.name)
def test_attention_belongs_to_the_module_that_calls_it(tmp_path: Path, problem: Problem) -> None:
    model = problem.made()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    original = functional.scaled_dot_product_attention
    given = _spied(model)
    before = hooks(model)
    with watched(tmp_path, model, optimizer, [Attention(model)]) as mon:
        assert functional.scaled_dot_product_attention is not original
        train(mon, model, optimizer, problem, range(1, 12))
        assert hooks(model) == before + 1
    assert functional.scaled_dot_product_attention is original
    run = open_run(mon.run_dir)
    bound, largest, lowest = (
        run.modules(name) for name in ("attention_logit_bound", "attention_logit_max", "attention_entropy_min")
    )
    assert (bound.step.tolist(), largest.step.tolist()) == ([1, 10], [1, 10])
    assert {name for name, there in zip(bound.names, bound.present[0], strict=True) if there} == set(given)
    for name, seen in given.items():
        at = bound.names.index(name)
        query, key = _projected(model.get_submodule(name), seen[0])
        slow, entropies = _slow(query[0], key[0], causal=problem is GPT)
        assert largest.value[0, at] == pytest.approx(slow, rel=1e-4)
        assert lowest.value[0, at] == pytest.approx(entropies.min(), rel=1e-4)
        query, key = _projected(model.get_submodule(name), seen[9])
        assert bound.value[1, at] >= max(_slow(query[b], key[b])[0] for b in range(4)) * (1 - 1e-5)


@pytest.mark.parametrize("batch_first", [True, False])
def test_multihead_attention_that_returns_its_weights(tmp_path: Path, batch_first: bool) -> None:
    class Asks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Embedding(31, 8)
            self.look = nn.MultiheadAttention(8, 2, batch_first=batch_first)
            self.head = nn.Linear(8, 31)

        def forward(self, tokens: Tensor) -> Tensor:
            x = self.token(tokens)
            later = torch.ones(12, 12, dtype=torch.bool).triu(1)
            padding = torch.zeros(tokens.shape, dtype=torch.bool)
            padding[:, -2:] = True
            x = x if batch_first else x.transpose(0, 1)
            mixed, self.weights = self.look(
                x, x, x, key_padding_mask=padding, attn_mask=later, average_attn_weights=False
            )
            return self.head(mixed if batch_first else mixed.transpose(0, 1))

    model = Asks()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with watched(tmp_path, model, optimizer, [Attention(model)]) as mon:
        train(mon, model, optimizer, GPT, [1])
        weights = model.weights[0].detach().double().numpy()  # [H, T, T]
        seen = np.minimum(np.arange(1, 13), 10)[1:]
        logs = np.log(weights, where=weights > 0, out=np.zeros_like(weights))
        entropies = (-(weights * logs).sum(-1)[:, 1:] / np.log(seen)).mean(-1)
    run = open_run(mon.run_dir)
    at = run.modules("attention_entropy_min").names.index("look")
    assert run.modules("attention_entropy_min").value[0, at] == pytest.approx(entropies.min(), rel=1e-4)
    assert run.modules("attention_entropy_mean").value[0, at] == pytest.approx(entropies.mean(), rel=1e-4)
    assert run.modules("attention_logit_max").value[0, at] > 0


def test_maps_of_some_heads_with_their_tokens(tmp_path: Path) -> None:
    problem = Problem("deep", lambda: TinyGPT(blocks=6, heads=8), GPT.batch, GPT.loss)
    model = problem.made()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    given = _spied(model)
    with watched(tmp_path, model, optimizer, [Attention(model)]) as mon:
        train(mon, model, optimizer, problem, range(1, 11))
    events = recorded.events(mon.run_dir, "attention_map")
    assert [event["module"] for event in events] == [f"blocks.{at}.attention" for at in (0, 2, 3, 5)]
    for event in events:
        assert (event["step"], event["shape"], event["tokens"]) == (10, [4, 12, 12], GPT.batch(10)[0][0].tolist())
        query, key = _projected(model.get_submodule(event["module"]), given[event["module"]][9][:1])
        weights = functional.scaled_dot_product_attention(
            query, key, torch.eye(12).expand(1, 8, 12, 12), is_causal=True
        )
        stored = np.frombuffer(base64.b64decode(event["weights"]), np.uint8).reshape(event["shape"])
        np.testing.assert_allclose((stored / 255.0) ** 2, weights[0, :4].detach().numpy(), atol=1.1 / 255)


def test_maps_are_bounded_and_thin_out() -> None:
    taken = [step for step in range(1, 100_001) if attention_maps.due(step)]
    assert taken == [10, 100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 51200]
    assert attention_maps.some_layers([]) == set()
    assert attention_maps.some_layers(list(range(100))) == {0, 33, 66, 99}
    query, key = _random(1, 8, 100, 4), _random(1, 8, 100, 4, seed=1)
    call = Call.of((query, key, key), {"attn_mask": _random(8, 100, 100) > 0})
    weights = call.first_sequence(64, 4).weights()
    torch.testing.assert_close(weights, call.first_sequence().weights()[:4, :64])
    maps = attention_maps.Maps({3})
    maps.take(3, weights)
    maps.take(4, weights)
    [event] = maps.events([tensor.numpy() for tensor in maps.tensors()], [str(at) for at in range(5)])
    assert (event["module"], event["shape"], event["tokens"]) == ("3", [4, 64, 64], None)
    assert len(event["weights"]) < 22_000


def test_a_half_precision_call_is_computed_in_float32() -> None:
    query = torch.full((1, 1, 2, 64), 60.0, dtype=torch.float16)
    call = Call.of((query, query, query), {})
    with torch.autocast("cpu", dtype=torch.bfloat16), attention.plainly(query):
        assert call.bound().item() == pytest.approx(60 * 60 * 8, rel=1e-5)
        assert call.first_sequence().summary()[0].item() == pytest.approx(60 * 60 * 8, rel=1e-5)


def test_calls_outside_the_training_s_forward_are_not_counted(tmp_path: Path) -> None:
    model = GPT.made()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    probe = Attention(model)
    with watched(tmp_path, model, optimizer, [probe]) as mon:
        loss = GPT.loss(model, *GPT.batch(0))
        counted = len(probe._bounds)
        with mon.phase("eval"), torch.no_grad():
            model(GPT.batch(1)[0])
        any_other = _random(1, 2, 3, 4)
        functional.scaled_dot_product_attention(any_other, any_other, any_other)
        assert len(probe._bounds) == counted == 2
        loss.backward()
        optimizer.step()
        mon.step()


def test_the_function_is_as_it_was_for_scripts_and_transforms(tmp_path: Path) -> None:
    plain = functional.scaled_dot_product_attention
    x = _random(2, 3, 4, 5)
    watchers = [lambda args, kwargs: None, lambda args, kwargs: None]
    observe.watch_attention(watchers[0])
    observe.watch_attention(watchers[1])
    try:
        ours = functional.scaled_dot_product_attention
        assert ours is not plain and ours.__doc__ == plain.__doc__

        def attend(x: Tensor) -> Tensor:
            return functional.scaled_dot_product_attention(x, x, x, is_causal=True)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit.script is deprecated, and used all the same
            scripted = torch.jit.script(attend)
        assert torch.equal(scripted(x), plain(x, x, x, is_causal=True))
        assert torch.allclose(torch.func.vmap(attend)(x), plain(x, x, x, is_causal=True), atol=1e-6)
        traced = torch.fx.symbolic_trace(attend)
        assert torch.equal(traced(x), plain(x, x, x, is_causal=True))
    finally:
        observe.unwatch_attention(watchers[0])
        assert functional.scaled_dot_product_attention is ours
        observe.unwatch_attention(watchers[1])
    assert functional.scaled_dot_product_attention is plain
    assert torch.equal(scripted(x), plain(x, x, x, is_causal=True))
