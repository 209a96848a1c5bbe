"""What TensorBoard, W&B, Trackio, Hugging Face and Lightning wrote, against what they were told to."""

from __future__ import annotations

import json
import math
import shutil
import struct
from pathlib import Path

import pytest

from monitor.errors import RunError
from monitor.importers import import_path
from monitor.importers.rows import Account
from monitor.importers.tensorboard import read_events
from monitor.importers.wire import masked_crc32c
from monitor.runfile.reader import open_run
from tests.monitor.importers.helpers import FIXTURES, STEPS, loss_at, norm_at, read, same, series, taken

LOSSES = {step: loss_at(step) for step in STEPS}
NORMS = {step: norm_at(step) for step in STEPS}
EVENTS = FIXTURES / "events.out.tfevents.1700000000.host.1.0"


def test_the_checksum_is_that_of_the_standard():
    # RFC 3720, B.4: 32 bytes of zeros.
    crc = 0x8A9136AA
    assert masked_crc32c(bytes(32)) == ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def test_events_of_both_styles_are_read_as_tensorboard_reads_them():
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_file_loader")
    wanted: list[tuple[int, float, str, float]] = []
    for event in loader.EventFileLoader(str(EVENTS)).Load():  # turns simple values into tensors
        for value in event.summary.value:
            number = struct.unpack("<f", value.tensor.tensor_content)[0] if value.tensor.tensor_content else None
            number = value.tensor.float_val[0] if number is None else number
            wanted.append((event.step, event.wall_time, value.tag, number))
    rows = read_events([EVENTS], Account())
    found = [(row.step, row.time, name, value) for row in rows for name, value in row.values.items()]
    assert len(found) == 2 * len(STEPS)
    assert str(found) == str(wanted)  # as text: a NaN equals a NaN


def test_a_folder_of_events_is_a_run(tmp_path):
    run = read(FIXTURES / EVENTS.name, tmp_path)
    assert same(series(run, "train_loss"), LOSSES) and same(series(run, "grad_norm_preclip"), NORMS)
    assert run.times().value[0] == 1.7e9
    assert run.task == "imported: TensorBoard"


def test_a_later_event_file_of_a_folder_is_a_resume(tmp_path):
    for number, (begin, end) in enumerate([(0, 300), (100, 400)]):
        rows = [(step, 1.7e9 + step, {"loss": step + number / 4}) for step in range(begin, end, 10)]
        (tmp_path / f"events.out.tfevents.{1700000000 + number}.h").write_bytes(b"".join(map(event, rows)))
    run = read(tmp_path, tmp_path / "runs")
    assert [attempt.resume_step for attempt in run.attempts] == [0, 99]
    loss = series(run, "train_loss")
    assert list(loss) == list(range(0, 400, 10))
    assert loss[90] == 90.0 and loss[100] == 100.25


def _events(folder: Path, curves: dict[str, list[float]], step: int = 1) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    length = max(map(len, curves.values()), default=0)
    rows = [(n * step, 1.7e9 + n, {tag: curve[n] for tag, curve in curves.items()}) for n in range(length)]
    (folder / "events.out.tfevents.1700000000.h").write_bytes(b"".join(map(event, rows)) or event((0, 1.7e9, {})))


def test_the_folders_of_training_and_validation_are_one_run(tmp_path):
    _events(tmp_path / "logs" / "train", {"epoch_loss": [3.0, 2.0, 1.0], "epoch_lr": [0.5, 0.5, 0.5]})
    _events(tmp_path / "logs" / "validation", {"epoch_loss": [3.5, 2.5, 2.75]})
    run = read(tmp_path / "logs", tmp_path / "runs")
    assert series(run, "train_loss") == {0: 3.0, 1: 2.0, 2: 1.0}
    assert series(run, "val_loss") == {0: 3.5, 1: 2.5, 2: 2.75}


def test_the_folders_of_an_estimator_and_of_curves_of_one_chart_are_one_run(tmp_path):
    _events(tmp_path / "a", {"loss": [4.0, 3.0, 2.0]}, step=100)
    _events(tmp_path / "a" / "eval", {"loss": [4.5]})
    assert list(series(read(tmp_path / "a", tmp_path / "r"), "val_loss").values()) == [4.5]
    _events(tmp_path / "b", {"other": [1.0, 1.0]})
    _events(tmp_path / "b" / "Loss_train", {"Loss": [3.0, 2.0]})
    _events(tmp_path / "b" / "Loss_val", {"Loss": [3.5, 2.5]})
    run = read(tmp_path / "b", tmp_path / "s")
    assert series(run, "train_loss") == {0: 3.0, 1: 2.0} and series(run, "val_loss") == {0: 3.5, 1: 2.5}


def test_runs_below_a_folder_with_events_stay_their_own(tmp_path):
    _events(tmp_path / "runs", {})
    for name in ("exp_1", "exp_2"):
        _events(tmp_path / "runs" / name, {"loss": [3.0, 2.0]})
    assert len(import_path(tmp_path / "runs", tmp_path / "imported")) == 2


def test_the_parts_of_any_of_ultralytics_losses_are_summed(tmp_path):
    v5 = "             epoch,     train/box_loss,     train/obj_loss,     train/cls_loss,       val/box_loss, x/lr0"
    rows = "".join(f"\n{n},0.5,0.25,{1 / 2**n},0.5,0.1" for n in range(3))
    (tmp_path / "results.csv").write_text(v5 + rows)
    run = read(tmp_path / "results.csv", tmp_path / "runs")
    assert series(run, "train_loss") == {0: 1.75, 1: 1.25, 2: 1.0}


def event(row: tuple[int, float, dict[str, float]]) -> bytes:
    """An Event with simple values, framed as a record, written by hand."""
    step, time, values = row
    data = b"\x09" + struct.pack("<d", time) + b"\x10" + varint(step)
    for tag, value in values.items():
        inner = b"\x0a" + varint(len(tag)) + tag.encode() + b"\x15" + struct.pack("<f", value)
        data += b"\x2a" + varint(len(inner) + 2) + b"\x0a" + varint(len(inner)) + inner
    head = struct.pack("<Q", len(data))
    sums = [struct.pack("<I", masked_crc32c(part)) for part in (head, data)]
    return head + sums[0] + data + sums[1]


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def test_curves_written_one_after_another_are_put_together(tmp_path):
    parts = [event((step, 1.7e9, {name: step})) for name in ("loss", "lr") for step in range(1, 3000)]
    (tmp_path / "events.out.tfevents.1.h").write_bytes(b"".join(parts))
    run = read(tmp_path, tmp_path / "runs")
    assert len(run.attempts) == 1
    assert len(run.series("train_loss")) == len(run.series("lr")) == 2999


def test_a_flipped_bit_costs_one_record_and_is_said(tmp_path):
    data = bytearray(EVENTS.read_bytes())
    data[len(data) // 2] ^= 4
    (tmp_path / EVENTS.name).write_bytes(data)
    account = Account()
    rows = list(read_events([tmp_path / EVENTS.name], account))
    assert 0 < len(rows) < len(STEPS)
    assert len(account.messages) == 1 and "damaged" in account.messages[0]


def test_a_wandb_file_gives_what_was_logged(tmp_path):
    run = read(FIXTURES / "offline.wandb", tmp_path)
    assert same(series(run, "train_loss"), LOSSES) and same(series(run, "grad_norm_preclip"), NORMS)
    assert series(run, "nested/a")[290] == 145.0
    assert list(series(run, "val_loss")) == [0, 100, 200]
    assert run.config == {"lr": 1e-3, "model": {"layers": 2}}
    assert run.name == "tiny" and run.state.word == "finished"


def test_each_run_of_a_trackio_project_is_a_run(tmp_path):
    before = (FIXTURES / "tiny.db").read_bytes()
    one = _runs(FIXTURES / "tiny.db", tmp_path)
    assert [run.name for run in one] == ["tiny-alpha", "tiny-beta"]
    assert same(series(one[0], "train_loss"), LOSSES) and same(series(one[0], "grad_norm_preclip"), NORMS)
    assert series(one[1], "train_loss")[0] == 4.0
    assert one[0].config == {"lr": 1e-3}
    assert (FIXTURES / "tiny.db").read_bytes() == before
    assert sorted(path.name for path in FIXTURES.glob("tiny.db*")) == ["tiny.db"]


def _runs(source: Path, runs: Path):
    from monitor.importers import import_path
    from monitor.runfile.reader import open_run

    return [open_run(run_dir) for one in import_path(source, runs) for run_dir in one.runs]


def test_rows_in_the_journal_of_a_database_are_read(tmp_path):
    import sqlite3

    base = sqlite3.connect(tmp_path / "live.db")
    base.execute("PRAGMA journal_mode = WAL")
    base.execute("CREATE TABLE metrics (id INTEGER, timestamp TEXT, run_name TEXT, step INTEGER, metrics TEXT)")
    rows = [(n, "2026-01-01T00:00:00+00:00", "r", n, json.dumps({"loss": n / 4})) for n in range(20)]
    base.executemany("INSERT INTO metrics VALUES (?, ?, ?, ?, ?)", rows)
    base.commit()
    listed = sorted(path.name for path in tmp_path.iterdir())
    assert "live.db-wal" in listed
    run = read(tmp_path / "live.db", tmp_path / "runs")
    assert series(run, "train_loss")[19] == 4.75
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "runs") == listed
    base.close()


def test_a_table_of_columns_is_read_by_run(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {"run_name": ["a", "a", "b"], "step": [1, 2, 1], "loss": [1.0, math.nan, 3.0]}
    pq.write_table(pa.table(columns), tmp_path / "metrics.parquet")
    runs = _runs(tmp_path / "metrics.parquet", tmp_path / "runs")
    assert [list(series(run, "train_loss")) for run in runs] == [[1, 2], [1]]
    assert math.isnan(series(runs[0], "train_loss")[2])


def trainer_state(folder: Path, history: list[dict], **more: object) -> Path:
    """As TrainerState.save_to_json writes it: keys sorted, indented, NaN bare."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "trainer_state.json"
    state = {"global_step": history[-1]["step"], "max_steps": 400, "logging_steps": 10, **more}
    path.write_text(json.dumps({"log_history": history, **state}, indent=2, sort_keys=True) + "\n")
    return path


def history(last: int) -> list[dict]:
    rows = [
        {"loss": loss_at(step), "grad_norm": norm_at(step), "learning_rate": 1e-4, "epoch": step / 100, "step": step}
        for step in range(10, last + 1, 10)
    ]
    rows.insert(10, {"eval_loss": 2.0, "eval_runtime": 3.0, "epoch": 1.0, "step": 100})
    return [*rows, {"train_loss": 1.5, "train_runtime": 9.0, "total_flos": 1e15, "epoch": 4.0, "step": last}]


def test_a_trainer_state_of_hugging_face(tmp_path):
    path = trainer_state(tmp_path / "out", history(400))
    one = taken(path, tmp_path / "runs")
    run = _runs(path, tmp_path / "runs")[0]
    assert one.interval == 10 and run.planned_steps == 400 and run.state.word == "finished"
    wanted = {step: loss_at(step) for step in range(10, 401, 10)}
    assert same(series(run, "train_loss"), wanted)
    assert math.isnan(series(run, "grad_norm_preclip")[200])
    assert series(run, "val_loss") == {100: 2.0}
    assert series(run, "imported/train_loss") == {400: 1.5}  # the mean of the whole training is no step's loss
    assert run.events("import")[0].fields["origins"] == {"loss": "mean since the row before"}


def test_of_checkpoints_the_last_state_counts(tmp_path):
    for last in (100, 400, 200):
        trainer_state(tmp_path / "out" / f"checkpoint-{last}", history(last))
    run = read(tmp_path / "out", tmp_path / "runs")
    assert run.last_step == 400


def test_lightnings_csv(tmp_path):
    from lightning.pytorch.loggers import CSVLogger

    logger = CSVLogger(tmp_path, version=0)
    for step in STEPS:
        logger.log_metrics({"train_loss_step": loss_at(step), "lr-AdamW": 1e-3, "epoch": step // 100}, step)
        if step % 100 == 90:
            logger.log_metrics({"val_loss": 1.0, "train_loss_epoch": 2.0, "epoch": step // 100}, step)
    logger.save()
    run = read(Path(logger.log_dir) / "metrics.csv", tmp_path / "runs")
    assert same(series(run, "train_loss"), LOSSES)
    assert list(series(run, "val_loss")) == list(series(run, "train_loss_epoch")) == [90, 190, 290]
    assert series(run, "lr")[0] == 1e-3


def test_every_kind_in_one_folder(tmp_path):
    for path in FIXTURES.iterdir():
        if path.suffix != ".py":
            shutil.copy(path, tmp_path / path.name)
    kinds = sorted(run.task for run in _runs(tmp_path, tmp_path / "runs"))
    assert kinds == ["imported: TensorBoard", "imported: Trackio", "imported: Trackio", "imported: W&B"]


def test_a_run_of_mlflow_is_a_folder_with_a_file_for_each_metric(tmp_path):
    run = tmp_path / "mlruns" / "0" / "abc123"
    (run / "metrics" / "val").mkdir(parents=True)
    (run / "meta.yaml").write_text("run_id: abc123\n")
    (run / "metrics" / "loss").write_text("".join(f"{1700000000000 + n} {3 - n / 8} {n * 10}\n" for n in range(8)))
    (run / "metrics" / "val" / "loss").write_text("1700000000500 2.5 0\n1700000009000 nan 70\nnot a value\n")
    one = taken(tmp_path / "mlruns", tmp_path / "runs")
    found = read(tmp_path / "mlruns", tmp_path / "runs")
    assert one.source.format == "MLflow"
    assert series(found, "train_loss") == {n * 10: 3 - n / 8 for n in range(8)}
    assert same(series(found, "val_loss"), {0: 2.5, 70: math.nan})
    assert any("not a value" in message for message in one.messages)


def _notebook(*outputs: list[dict]) -> str:
    cells = [{"cell_type": "code", "source": ["trainer.train()"], "outputs": output} for output in outputs]
    return json.dumps({"cells": [{"cell_type": "markdown", "source": ["# loss: 3"]}, *cells], "nbformat": 4}, indent=1)


def test_the_cells_of_a_notebook_are_trainings(tmp_path):
    bars = [f"Epoch {n}/3\n10/10 [====] - 1s - loss: {3 - n}.5 - val_loss: {4 - n}.0\n" for n in (1, 2, 3)]
    head = "".join(f"<th>{name}</th>" for name in ("Step", "Training Loss", "Validation Loss"))
    body = "".join(f"<tr>\n<td>{n}00</td> <td>{n}.5</td><td>{'No log' if n == 5 else 'nan'}</td></tr>" for n in (5, 6))
    table = f'<div><p>done</p></div><table border="1"><tr>{head}</tr>{body}</table>'
    path = tmp_path / "train.ipynb"
    path.write_text(_notebook(
        [{"output_type": "stream", "name": "stdout", "text": bars}],
        [{"output_type": "execute_result", "data": {"text/plain": "42"}}],
        [{"output_type": "display_data", "data": {"text/html": [table], "text/plain": ["<HTML object>"]}}],
    ))  # fmt: skip
    first, second = (open_run(one.runs[0]) for one in import_path(path, tmp_path / "runs"))
    assert series(first, "train_loss") == {10: 2.5, 20: 1.5, 30: 0.5}
    assert series(second, "train_loss") == {500: 5.5, 600: 6.5}
    assert same(series(second, "val_loss"), {600: math.nan})


@pytest.mark.parametrize(
    "text", [_notebook([]), '{"cells": 3}', "{", ""], ids=["no outputs", "no cells", "cut", "empty"]
)
def test_a_notebook_without_metrics_is_refused_in_one_message(text, tmp_path):
    path = tmp_path / "a.ipynb"
    path.write_text(text)
    with pytest.raises(RunError, match="no training metrics found"):
        import_path(path, tmp_path / "runs")


COURSES = {
    "settings beside": {
        "config": {"lr": 0.1, "sizes": [64, 32]},
        "train_loss": [3, 2, 1.5],
        "val_loss": [3, 2.5, 2.75],
    },
    "by split": {"train": {"loss": [3, 2, 1.5]}, "val": {"loss": [3, 2.5, 2.75]}},
    "XGBoost": {"train": {"logloss": [3, 2, 1.5]}, "valid": {"logloss": [3, 2.5, 2.75]}},
    "pandas": {"loss": {"0": 3, "1": 2, "2": 1.5}, "val_loss": {"0": 3, "1": 2.5, "2": 2.75}},
    "records": {
        "best": 2,
        "epochs": [{"loss": 3, "val_loss": 3}, {"loss": 2, "val_loss": 2.5}, {"loss": 1.5, "val_loss": 2.75}],
    },
}


@pytest.mark.parametrize("indent", [None, 2], ids=["one line", "indented"])
@pytest.mark.parametrize("kind", COURSES)
def test_a_training_in_one_document(kind, indent, tmp_path):
    path = tmp_path / "history.json"
    path.write_text(json.dumps(COURSES[kind], indent=indent))
    run = read(path, tmp_path / "runs")
    assert list(series(run, "train_loss").values()) == [3, 2, 1.5]
    assert list(series(run, "val_loss").values()) == [3, 2.5, 2.75]


@pytest.mark.parametrize(
    "document",
    [
        {"layers": {"sizes": [64, 32]}, "dropout": [0.1, 0.2]},
        {"vocab": {"a": 0, "b": 1}},
        {"tags": [{"name": "x"}] * 5},
    ],
    ids=["settings", "vocabulary", "records without numbers"],
)
def test_a_document_without_a_loss_is_no_training(document, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(document, indent=2))
    with pytest.raises(RunError, match="no training metrics found"):
        import_path(path, tmp_path / "runs")


def test_the_planned_steps_are_no_counter(tmp_path):
    rows = [{"total_steps": 90, "current_steps": 10 * n, "loss": 3.0 - n, "lr": 1e-4} for n in (1, 2, 3)]
    path = tmp_path / "trainer_log.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    assert series(read(path, tmp_path / "a"), "train_loss") == {10: 2.0, 20: 1.0, 30: 0.0}
    texts = [{"loss": 3.0 - n, "epoch": n / 10, "global_step/max_steps": f"{10 * n}/90"} for n in (1, 2, 3)]
    path.write_text("\n".join(map(json.dumps, texts)))
    assert list(series(read(path, tmp_path / "b"), "train_loss")) == [10, 20, 30]


def test_names_of_rllib_and_the_twin_of_a_loss(tmp_path):
    stats = "info/learner/default_policy/learner_stats"
    csv = f"training_iteration,{stats}/total_loss,{stats}/cur_lr,{stats}/kl\n1,200,5e-5,0.1\n2,150,5e-5,0.2\n"
    (tmp_path / "progress.csv").write_text(csv)
    run = read(tmp_path / "progress.csv", tmp_path / "a")
    assert series(run, "train_loss") == {1: 200, 2: 150} and series(run, "lr") == {1: 5e-5, 2: 5e-5}
    (tmp_path / "log.csv").write_text("epoch,dice_loss,val_dice_loss\n1,0.9,0.95\n2,0.8,0.9\n")
    run = read(tmp_path / "log.csv", tmp_path / "b")
    assert series(run, "train_loss") == {1: 0.9, 2: 0.8} and series(run, "val_loss") == {1: 0.95, 2: 0.9}


OTHERS = {
    "one curve a file": ("train_loss.txt", "2.5\n2.25\nnan\n2.0\n"),
    "a line for each value": (
        "metrics.csv",
        "step,metric,value\n1,loss,2.5\n1,lr,0.1\n2,loss,2.25\n2,lr,0.1\n3,loss,nan\n4,loss,2.0\n",
    ),
    "printed history": ("history.txt", str({"loss": [2.5, 2.25, math.nan, 2.0], "acc": [0.1, 0.2, 0.3, 0.4]})),
    "moments": (
        "stats.jsonl",
        "\n".join(
            json.dumps(
                {"Progress/tick": {"num": 1, "mean": n, "std": 0.0}, "Loss/loss": {"num": 9, "mean": value, "std": 0.1}}
            )
            for n, value in ((1, 2.5), (2, 2.25), (3, math.nan), (4, 2.0))
        ),
    ),
    "Tacotron 2": (
        "train.log",
        "".join(
            f"Train loss {n} {value} Grad Norm 1.25 0.85s/it\n"
            for n, value in ((1, 2.5), (2, 2.25), (3, "nan"), (4, 2.0))
        ),
    ),
}


VALUES = (2.5, 2.25, "nan", 2.0)
OTHERS |= {
    "tensors": ("log.csv", "epoch,loss\n1,tensor(2.5)\n2,\"tensor(2.25, device='cuda:0')\"\n3,tensor(nan)\n4,[2.0]\n"),
    "blanks in a .csv": ("log.csv", "epoch loss lr\n1 2.5 0.1\n2 2.25 0.1\n3 nan 0.1\n4 2.0 0.1\n"),
    "bars": ("log.txt", "epoch|loss|lr\n1|2.5|0.1\n2|2.25|0.1\n3|nan|0.1\n4|2.0|0.1\n"),
    "Chinese": ("a.log", "".join(f"第{n}轮 训练损失: {v} 验证损失: 3.0\n" for n, v in enumerate(VALUES, 1))),
    "Korean": ("log.csv", "에폭,훈련 손실,검증 손실\n1,2.5,3\n2,2.25,3\n3,nan,3\n4,2.0,3\n"),
    "wrapped": ("log.jsonl", "".join(
        f'{{"epoch": {n}, "metrics": {{"train": {{"loss": {v}}}}}}}\n'
        for n, v in enumerate((2.5, 2.25, "NaN", 2.0), 1)
    )),
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHERS)
def test_curves_that_are_written_in_other_ways(kind, tmp_path):
    name, text = OTHERS[kind]
    (tmp_path / name).write_text(text)
    assert same(series(read(tmp_path / name, tmp_path / "runs"), "train_loss"), {1: 2.5, 2: 2.25, 3: math.nan, 4: 2.0})
