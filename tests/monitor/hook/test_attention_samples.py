"""Maps of fixed samples against attention computed by hand on the weights of that step; the training feels nothing."""

from __future__ import annotations

import base64
import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import monitor
from app.charts.attention import attention_maps, head_figure
from monitor.hook.attention_samples import MOST_SAMPLES, THINNED_AFTER, AttentionSamples
from monitor.landscape.undisturbed import at_rest
from monitor.runfile.reader import open_run
from tests.monitor.hook import recorded
from tests.monitor.hook.problems import GPT, TinyGPT

LABELS = [list("abcdefghi"), [f"word-{at}-of-many-letters-indeed" for at in range(9)]]


class Model(nn.Module):
    """A GPT with dropout, running statistics, attention of torch's own module, and a layer of torch's encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.gpt = TinyGPT()
        self.norm = nn.BatchNorm1d(31)
        self.look = nn.MultiheadAttention(31, 1, batch_first=True)
        self.layer = nn.TransformerEncoderLayer(31, 1, 31, batch_first=True, dropout=0.2)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.gpt(tokens).flatten(0, 1)).view(*tokens.shape, 31)
        return self.layer(functional.dropout(self.look(x, x, x)[0], 0.1, self.training))


def _train(
    folder: Path | None, steps: int = 6, watch: bool = True, wrap: Any = lambda model: model, precision: bool = False
) -> tuple[Any, nn.Module, list[dict[str, torch.Tensor]]]:
    torch.manual_seed(3)
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    called = wrap(model)
    mon = monitor.attach(called, optimizer, run=folder, detail="norms") if folder else None
    if mon and watch:
        mon.watch_samples(GPT.batch(99)[0][:2, :9], LABELS, every=2)
    states = []
    for step in range(steps):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision):
            if mon and step:
                mon.step()  # where autocast would remember what it makes of the weights
            loss = GPT.loss(called, *GPT.batch(step))
        loss.backward()
        optimizer.step()
        states.append(copy.deepcopy(model.state_dict()))
    if mon:
        mon.step()
        mon.close()
    return mon, model, states


@pytest.mark.parametrize("precision", [False, True], ids=["float32", "in autocast's region"])
def test_the_training_feels_nothing(tmp_path: Path, precision: bool) -> None:
    mon, watched, _ = _train(tmp_path, precision=precision)
    assert recorded.events(mon.run_dir, "attention_map")
    after = torch.rand(4)
    _, alone, _ = _train(None, precision=precision)
    assert torch.equal(after, torch.rand(4))
    for name, value in alone.state_dict().items():
        assert torch.equal(value, watched.state_dict()[name]), name
    assert all(module.training for module in watched.modules())
    assert sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in watched.modules()) == 0


@pytest.mark.parametrize(
    "wrap", [lambda model: model, lambda model: torch.compile(model, backend="eager")], ids=["plain", "compiled"]
)
def test_maps_are_those_of_the_weights_of_their_step(tmp_path: Path, wrap: Any) -> None:
    mon, model, states = _train(tmp_path, wrap=wrap)
    events = recorded.events(mon.run_dir, "attention_map")
    modules = ["gpt.blocks.0.attention", "gpt.blocks.1.attention", "look", "layer.self_attn"]
    places = [(step, sample, module) for step in (2, 4, 6) for sample in (0, 1) for module in modules]
    assert [(event["step"], event["sample"], event["module"]) for event in events] == places
    tokens = GPT.batch(99)[0][:2, :9]
    for event in events:
        assert event["tokens"] == tokens[event["sample"]].tolist()
        assert event["labels"] == [word[:24] for word in LABELS[event["sample"]]]
        model.load_state_dict(states[event["step"] - 1])
        stored = (np.frombuffer(base64.b64decode(event["weights"]), np.uint8).reshape(event["shape"]) / 255.0) ** 2
        np.testing.assert_allclose(stored, _by_hand(model, event["module"], tokens[event["sample"]]), atol=1.1 / 255)


def _by_hand(model: Model, name: str, tokens: torch.Tensor) -> np.ndarray:
    seen: list[torch.Tensor] = []
    module = model.get_submodule(name)
    handle = module.register_forward_hook(lambda _m, args, _o: seen.append(args[0].detach()))
    with at_rest(model):
        model(tokens[None])
    handle.remove()
    with torch.no_grad():
        if isinstance(module, nn.MultiheadAttention):
            projected = functional.linear(seen[0], module.in_proj_weight, module.in_proj_bias)
            heads, seen_by = 1, torch.ones(9, 9, dtype=torch.bool)
        else:
            projected, heads = module.qkv(seen[0]), 2
            seen_by = torch.ones(9, 9, dtype=torch.bool).tril()
        q, k, _ = (part.view(9, heads, -1).transpose(0, 1) for part in projected[0].chunk(3, -1))
        logits = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~seen_by, -torch.inf)
        return logits.softmax(-1).numpy()


def test_the_viewer_has_the_words_on_its_axes_and_tells_samples_apart(tmp_path: Path) -> None:
    mon, _, _ = _train(tmp_path, steps=2)
    maps, bad = attention_maps(open_run(mon.run_dir).events("attention_map"))
    assert bad == 0 and [(one.sample, one.module) for one in maps[:5:4]] == [(0, maps[0].module), (1, maps[0].module)]
    assert list(head_figure(maps[0], 0).layout.xaxis.ticktext) == LABELS[0]
    assert set(head_figure(maps[-1], 0).layout.yaxis.ticktext) <= {f"word-{at}-of-m…" for at in range(9)}


def test_a_long_training_keeps_a_bounded_number_of_maps() -> None:
    samples = AttentionSamples(TinyGPT(), torch.zeros(1, 4, dtype=torch.long), every=10)
    taken = []
    for step in range(1, 100_001):
        if samples.due(step):
            samples._taken += 1
            taken.append(step)
    assert taken[:THINNED_AFTER] == list(range(10, 10 * THINNED_AFTER + 1, 10))
    assert len(taken) < THINNED_AFTER * 10 and taken[-1] > 50_000


@pytest.mark.parametrize(
    ("batch", "labels", "every", "words"),
    [
        ("text", None, None, "without tensors"),
        (torch.zeros(()), None, None, "without tensors"),
        (torch.zeros(MOST_SAMPLES + 1, 3), None, None, "1 to 4 is accepted"),
        ((torch.zeros(1, 3), torch.zeros(2, 3)), None, None, r"\[1, 2\] samples"),
        (torch.zeros(2, 3), [["a"]], None, "labels has 1 entries"),
        (torch.zeros(2, 3), 3, None, "labels has int"),
        (torch.zeros(1, 3), ["abc"], None, "a list of words"),
        (torch.zeros(1, 3), None, 0, "every is 0"),
    ],
)
def test_bad_arguments_are_one_message(batch: Any, labels: Any, every: Any, words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        AttentionSamples(TinyGPT(), batch, labels, every)


def test_a_sample_that_the_model_cannot_take_ends_it_and_not_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("monitor.guard.STRICT", False)
    model = TinyGPT()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with monitor.attach(model, optimizer, run=tmp_path) as mon:
        mon.watch_samples({"tokens": torch.full((1, 4), 99)}, every=1)
        with pytest.warns(monitor.MonitorWarning, match="attention on fixed samples is no longer recorded"):
            for step in range(3):
                GPT.loss(model, *GPT.batch(step)).backward()
                optimizer.step()
                mon.step()
    assert sorted(recorded.scalars(mon.run_dir)) == [1, 2, 3] and model.training
