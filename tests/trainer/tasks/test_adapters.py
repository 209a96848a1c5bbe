"""Adapters: they begin as nothing, only they are trained, and LoRA can be merged."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from monitor.errors import ConfigError
from tests.trainer.conftest import Desk
from trainer.config import AdapterConfig, ModelConfig, load_config
from trainer.tasks import build_model, build_task
from trainer.tasks.adapters import adapt, merge
from trainer.tasks.gpt import GPT

SMALL = ModelConfig(n_layer=2, n_head=2, d_model=32)
KINDS = ["lora", "prefix", "bottleneck"]


def adapted(kind: str, **more: object) -> tuple[GPT, GPT]:
    """The same model without and with the adapter."""
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(GPT(SMALL, 16).eval())
    adapt(models[1], AdapterConfig.model_validate({"kind": kind, "rank": 4, "prefix_len": 3, **more}))
    return models[0], models[1]


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_adapter_moves_and_the_loss_falls(desk: Desk, tmp_path: Path, kind: str) -> None:
    base = desk.train("steps=20", "optimizer.lr=1e-2")
    (tmp_path / "other.txt").write_text("def walk(tree): return tree\n" * 200)
    tuned = desk.train(
        *("steps=30", f"adapter.kind={kind}", f"task.data={tmp_path / 'other.txt'}", "optimizer.lr=0.1"),
        *(f"model.weights={base.place.checkpoints / '00000020'}", "schedule.kind=constant", "clip.max_norm=none"),
    )
    before, after = base.weights(), tuned.weights()
    own = {name for name in after if any(word in name for word in ("lora", "prefix", "narrow", "wide"))}
    plain = {name.replace(".base_layer", "").replace(".inner", ""): name for name in after.keys() - own}
    assert plain.keys() == before.keys()
    for name, tensor in before.items():
        assert torch.equal(after[plain[name]], tensor), name
    assert tuned.losses()[0] < 5.0  # it goes on from what was learnt: random weights give 5.5
    assert tuned.losses()[-1] < tuned.losses()[0] - 0.05
    matrix = tuned.run.layers("weight_norm")
    trained = {name for name, there in zip(matrix.names, matrix.present.any(axis=0), strict=True) if there}
    assert trained == own  # frozen ones are absent


def test_faults_hit_what_is_trained(desk: Desk) -> None:
    common = ("steps=3", "adapter.kind=bottleneck")
    faulty = desk.train(*common, "fault.kind=weight_scale", "fault.step=2", "fault.factor=2")
    plain = desk.train(*common).weights()
    spoilt = [name for name, tensor in faulty.weights(3).items() if not torch.equal(tensor, plain[name])]
    assert spoilt and all("narrow" in name or "wide" in name for name in spoilt)


@pytest.mark.parametrize("kind", ["lora", "bottleneck"])
def test_fresh_adapter_changes_nothing(kind: str) -> None:
    plain, changed = adapted(kind)
    tokens = torch.randint(0, 256, (2, 16))
    assert torch.equal(plain(tokens), changed(tokens))


def test_merged_lora_equals_unmerged() -> None:
    _, model = adapted("lora", layers="qkv,proj,up,down")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    tokens = torch.randint(0, 256, (2, 16))
    unmerged = model(tokens)
    weight = model.get_parameter("blocks.0.attn.qkv.base_layer.weight")
    before = weight.detach().clone()
    merge(model)
    assert not torch.equal(weight, before)
    assert torch.allclose(model(tokens), unmerged, atol=1e-4)


def test_prefix_is_attended_to_as_if_it_came_before_the_text() -> None:
    _, model = adapted("prefix")
    attention = model.blocks[0].attn
    x = torch.randn(1, 5, 32)
    prefix = attention.prefix
    q, k, v = attention.qkv(x).view(1, 5, 2, 3, 16).permute(3, 0, 2, 1, 4)
    k, v = torch.cat([prefix.keys[None], k], dim=2), torch.cat([prefix.values[None], v], dim=2)
    scores = q @ k.transpose(2, 3) / 4.0
    hidden = torch.cat([torch.zeros(5, 3), torch.ones(5, 5).triu(1)], dim=1).bool()
    y = scores.masked_fill(hidden, float("-inf")).softmax(-1) @ v
    assert torch.allclose(attention(x), attention.proj(y.transpose(1, 2).flatten(2)), atol=1e-6)


def test_lora_fits_other_models_and_refuses_unknown_layers() -> None:
    overrides = ["task.kind=mlp", "adapter.kind=lora"]
    config = load_config(None, [*overrides, "adapter.layers=head"])
    model = build_model(build_task(config), config)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        "head.lora_A.default.weight", "head.lora_B.default.weight",
    }  # fmt: skip
    config = load_config(None, overrides)
    with pytest.raises(ConfigError, match=r"no linear layer's name ends in qkv. There are: 0, 1, 2, 3, head\.$"):
        build_model(build_task(config), config)


def test_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r"pip install 'gradiometer\[peft\]'$"):
        adapted("lora")
