"""The configuration: what is accepted, and the exact words with which something is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from monitor.errors import ConfigError
from trainer.config import (
    PRESETS,
    TrainConfig,
    describe,
    differences,
    form_fields,
    from_record,
    load_config,
    to_overrides,
    with_values,
)
from trainer.schedules import SHAPES

LOWER_CASE = ("wsd", "fp16", "fp32,", "one_cycle", "cosine_restarts", "step,", "value", "adaptive")
"""Words of the configuration with which a description may begin."""


def refusal(*overrides: str, path: Path | None = None, preset: str | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides, preset=preset)
    return str(caught.value)


def test_defaults_are_a_valid_configuration() -> None:
    assert load_config(None) == TrainConfig()


def test_values_come_from_preset_then_file_then_overrides(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("steps = 70\n[optimizer]\nlr = 0.1\nbeta2 = 0.9\n")
    config = load_config(file, ["optimizer.lr=3e-4"], preset="quick")
    assert (config.steps, config.optimizer.lr, config.optimizer.beta2, config.model.n_layer) == (70, 3e-4, 0.9, 3)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.toml", '[optimizer]\nlr = 3e-4\n[clip]\nmax_norm = "none"\n'),
        ("c.yaml", "optimizer:\n  lr: 3e-4\nclip:\n  max_norm: off\n"),
        ("c.yml", "optimizer: {lr: 3.0e-4}\nclip: {max_norm: null}\n"),
        ("c.json", '{"optimizer": {"lr": 3e-4}, "clip": {"max_norm": null}}'),
    ],
)
def test_the_same_values_in_every_format(tmp_path: Path, name: str, text: str) -> None:
    file = tmp_path / name
    file.write_text(text)
    config = load_config(file)
    assert config.optimizer.lr == 3e-4  # YAML 1.1 reads 3e-4 as text
    assert config.clip.max_norm is None


@pytest.mark.parametrize(
    ("override", "read", "value"),
    [
        ("optimizer.lr=.5", lambda c: c.optimizer.lr, 0.5),
        ("optimizer.lr=1", lambda c: c.optimizer.lr, 1.0),
        ("steps=1_000", lambda c: c.steps, 1000),
        ("model.tied_head=true", lambda c: c.model.tied_head, True),
        ("name=123", lambda c: c.name, "123"),
        ("name=a=b", lambda c: c.name, "a=b"),
        ("task.data=/tmp/my texts", lambda c: c.task.data, "/tmp/my texts"),
        ("evaluation.every_steps=off", lambda c: c.evaluation.every_steps, None),
        ("schedule.kind=wsd", lambda c: c.schedule.kind, "wsd"),
    ],
)
def test_override_is_read_as_what_the_field_wants(override: str, read: Any, value: Any) -> None:
    assert read(load_config(None, [override])) == value


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.lr=-1", "--set: optimizer.lr = -1: must be greater than 0."),
        ("steps=2.5", "--set: steps = 2.5: must be a whole number."),
        ("steps=many", '--set: steps = "many": must be a whole number.'),
        ("clip.max_norm=abc", '--set: clip.max_norm = "abc": must be a number, or none.'),
        ("clip.max_norm=inf", "--set: clip.max_norm = inf: must be a finite number, or none."),
        ("model.tied_head=1", "--set: model.tied_head = 1: must be true or false."),
        ("evaluation.every_steps=0", "--set: evaluation.every_steps = 0: must be 1 or more, or none."),
        ("model.dropout=1", "--set: model.dropout = 1: must be less than 1."),
        ("model.dropout=none", '--set: model.dropout = "none": must be a number.'),
        (
            "optimizer.lrr=1",
            '--set: optimizer.lrr: no such field. Did you mean "lr"? '
            "Accepted: kind, lr, weight_decay, beta1, beta2, eps, momentum, nesterov, trust.",
        ),
        (
            "schedule.kind=cosin",
            '--set: schedule.kind = "cosin": unknown. Did you mean "cosine"? '
            "Choose from: cosine, cosine_restarts, linear, step, exponential, inverse_sqrt, one_cycle, wsd, constant.",
        ),
        (
            "optimizer=3",
            "--set: optimizer = 3: is a section, so its values are set one by one, such as optimizer.kind=...",
        ),
        ("lr", "--set lr: not of the form name=value, such as optimizer.lr=3e-4."),
        ("schedule.gamma=0", "--set: schedule.gamma = 0: must be greater than 0."),
        ("schedule.period_steps=0", "--set: schedule.period_steps = 0: must be 1 or more, or none."),
        ("schedule.cycle_factor=1.5", "--set: schedule.cycle_factor = 1.5: must be a whole number."),
        ("schedule.peak_at=1", "--set: schedule.peak_at = 1: must be less than 1."),
        ("clip.growth=0.9", "--set: clip.growth = 0.9: must be 1 or more."),
        ("ema.decay=1", "--set: ema.decay = 1: must be less than 1, or none."),
        (
            "compile.backend=inducto",
            '--set: compile.backend = "inducto": unknown. Did you mean "inductor"? '
            "Choose from: inductor, aot_eager, eager, cudagraphs.",
        ),
        ("optimizer..lr=1", "--set optimizer..lr=1: not of the form name=value, such as optimizer.lr=3e-4."),
        ("model.d_model=130", "model.d_model = 130 is not a multiple of model.n_head = 4; nearest that fits: 128."),
    ],
)
def test_refusal_names_field_value_and_what_is_accepted(override: str, message: str) -> None:
    assert refusal(override) == message


def test_unknown_section_is_refused_with_the_nearest_name() -> None:
    assert '--set: optimzer: no such section or field. Did you mean "optimizer"?' in refusal("optimzer.lr=1")


def test_batch_that_cannot_be_shared_out_is_refused() -> None:
    assert refusal("batch_size=10", "grad_accum_steps=4") == (
        "batch_size = 10 cannot be shared out evenly over grad_accum_steps x parallel.processes = 4 x 1; "
        "nearest that fits: 8."
    )


def test_early_stopping_needs_evaluations_and_the_checkpoint_of_the_best() -> None:
    patience = "early_stopping.patience=3"
    assert refusal(patience, "evaluation.every_steps=none") == (
        "early_stopping.patience = 3 counts evaluations, and evaluation.every_steps = none leaves only the last one; "
        "give it a number of steps."
    )
    assert refusal(patience, "checkpoint.keep_best=false").startswith("early_stopping.restore_best = true takes")
    load_config(None, [patience, "checkpoint.keep_best=false", "early_stopping.restore_best=false"])


def test_all_refused_values_are_listed_with_where_they_came_from(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('steps = 0\n[schedule]\nkind = "cosin"\n')
    lines = refusal("optimizer.lr=-1", path=file).splitlines()
    assert lines[0] == "3 values of the configuration are refused."
    assert lines[1] == f"  {file}: steps = 0: must be 1 or more."
    assert lines[2] == "  --set: optimizer.lr = -1: must be greater than 0."
    assert lines[3].startswith(f'  {file}: schedule.kind = "cosin": unknown.')


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.toml", b"lr = = 3", "cannot be parsed: Invalid value (at line 1, column 6)"),
        ("c.yaml", b"a: [1", "cannot be parsed"),
        ("c.yaml", b"- 1\n- 2\n", "holds a list; sections and values are accepted"),
        ("c.json", b'{"steps": }', "cannot be parsed"),
        ("c.toml", b"\xff\xfe", "is not UTF-8 text (byte 0)"),
        ("c.txt", b"", "cannot tell its format from '.txt'. Accepted: .toml, .yaml, .yml, .json"),
        ("c.toml", b"#" * (1 << 20) + b"#", "is larger than 1 MiB, so it is not a configuration"),
    ],
)
def test_unreadable_file_is_named_with_the_reason(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    told = refusal(path=file)
    assert str(file) in told
    assert message in told


def test_missing_file_and_folder_are_named(tmp_path: Path) -> None:
    assert "does not exist" in refusal(path=tmp_path / "absent.toml")
    (tmp_path / "folder.toml").mkdir()
    assert "cannot be read" in refusal(path=tmp_path / "folder.toml")


def test_yaml_cannot_make_objects(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("steps: !!python/object/apply:os.getpid []\n")
    assert "cannot be parsed" in refusal(path=file)


def test_unknown_preset_is_refused_with_the_list() -> None:
    assert refusal(preset="quik").startswith(
        "Unknown preset 'quik'. Did you mean \"quick\"? Choose from: default, quick"
    )


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_valid_and_survive_record_and_command_line(preset: str) -> None:
    config = load_config(None, preset=preset)
    assert from_record(json.loads(json.dumps(config.record()))) == config
    assert load_config(None, to_overrides(config)) == config
    assert str(config.task.seq_len if config.task.is_text else config.batch_size) in describe(config)


def test_fault_is_never_in_the_record() -> None:
    config = load_config(None, ["fault.kind=lr_factor", "fault.step=3", "fault.factor=30"])
    assert config.fault[0].factor == 30
    assert "fault" not in json.dumps(config.record())
    assert not any("fault" in override for override in to_overrides(config))


def test_several_faults_are_tables(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text(
        '[[fault]]\nkind = "lr_factor"\nstep = 3\nsteps = "none"\n[[fault]]\nkind = "random_bytes"\nstep = 9\n'
    )
    assert [(fault.kind, fault.steps) for fault in load_config(file).fault] == [
        ("lr_factor", None),
        ("random_bytes", 1),
    ]


def test_refused_fault_says_which() -> None:
    assert refusal("fault.kind=lr_factor") == "--set: fault[0].step: missing. Give it a value."
    assert refusal("fault.kind=lr_factr", "fault.step=1").startswith(
        '--set: fault[0].kind = "lr_factr": unknown. Did you'
    )


def test_differences_are_dotted_and_can_be_applied() -> None:
    before, after = TrainConfig(), load_config(None, ["optimizer.lr=1", "clip.max_norm=none"])
    assert differences(before, after) == {"optimizer.lr": 1.0, "clip.max_norm": None}
    assert with_values(before, differences(before, after)) == after


def test_configuration_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        TrainConfig().steps = 3  # type: ignore[misc]


def test_every_value_is_described_in_one_sentence_and_is_in_the_form() -> None:
    fields = {field.name: field for field in form_fields()}
    assert set(fields) == set(dict(_leaves(TrainConfig().record())))
    for field in fields.values():
        assert field.description and field.description.endswith("."), field.name
        assert field.description[0].isupper() or field.description.split()[0].rstrip(":") in LOWER_CASE
    lr = fields["optimizer.lr"]
    assert (lr.kind, lr.minimum, lr.exclusive_minimum, lr.maximum, lr.optional) == ("float", 0, True, 100, False)
    assert set(fields["schedule.kind"].choices) == set(SHAPES)
    assert fields["clip.max_norm"].optional


def test_schema_is_plain_json() -> None:
    schema = TrainConfig.model_json_schema()
    assert json.loads(json.dumps(schema))["additionalProperties"] is False


def test_config_schedule_place_and_launch_parts_leave_torch_alone() -> None:
    program = (
        "import sys, trainer, trainer.config, trainer.schedules, trainer.stop, trainer.place, trainer.commit, "
        "trainer.progress; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def _leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


@pytest.mark.parametrize("value", ["https://hooks.slack.com/services/SECRET", "GRADIOMETER WEBHOOK", "", "1HOOK"])
def test_an_address_is_no_name_of_a_variable(value: str) -> None:
    with pytest.raises(ConfigError, match="name of an environment variable") as refused:
        load_config(None, [f"alerts.webhook={value}"])
    assert "run" in str(refused.value)


def test_a_webhook_is_named_by_its_variable() -> None:
    assert load_config(None, ["alerts.webhook=GRADIOMETER_WEBHOOK"]).alerts.webhook == "GRADIOMETER_WEBHOOK"
