"""Lines that well-known programs print, line by line; and what is written as text is read back."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.importers import import_path
from monitor.importers.lines import read_lines
from monitor.importers.names import Naming
from monitor.importers.rows import Account
from monitor.importers.text import read_log
from monitor.runfile.reader import open_run
from monitor.signals import CATALOGUE
from tests.monitor.importers.helpers import log, read, same, series

PRINTED = {
    "nanoGPT": (
        "iter 100: loss 2.3145, time 23.40ms, mfu 12.30%",
        100,
        {"train_loss": 2.3145, "step_time_s": 0.0234, "mfu (%)": 12.3},
    ),
    "nanoGPT-evaluation": ("step 250: train loss 1.9, val loss 2.0", 250, {"train_loss": 1.9, "val_loss": 2.0}),
    "llm.c": (
        "step    7/19560 | loss 11.009 (+nanz)| norm 15.3 (+nanz)| lr 8.57e-07 | 3000.0 ms | 58.1% bf16 MFU |"
        " 174000 tok/s",
        7,
        {
            "train_loss": 11.009,
            "grad_norm_preclip": 15.3,
            "lr": 8.57e-07,
            "step_time_s": 3.0,
            "bf16 MFU (%)": 58.1,
            "tokens_per_s": 174000.0,
        },
    ),
    "Megatron-LM": (
        " [2024-01-01 00:00:00] iteration      100/  500000 | consumed samples:        51200 | elapsed time per"
        " iteration (ms): 1234.5 | learning rate: 1.000E-05 | lm loss: 1.045E+01 | loss scale: 1.0 | grad norm: 2.3 |"
        " number of skipped iterations:   0 |",
        100,
        {
            "train_loss": 10.45,
            "grad_norm_preclip": 2.3,
            "lr": 1e-5,
            "loss_scale": 1.0,
            "step_time_s": 1.2345,
            "consumed samples": 51200.0,
            "number of skipped iterations": 0.0,
        },
    ),
    "Megatron-LM-validation": (
        " validation loss at iteration 1000 | lm loss value: 2.5E+00 | lm loss PPL: 9.97E+00 | ",
        1000,
        {"val_loss": 2.5, "val/lm loss PPL": 9.97},
    ),
    "torchtitan": (
        "[rank0]:[titan] 2025-01-01 12:00:00,123 - root - INFO - \x1b[31mstep:  1  \x1b[32mloss: 12.2  "
        "\x1b[33mgrad_norm:  3.2  memory:  1.2GiB(3%)  tps: 1,234  mfu: 4.5%\x1b[39m",
        1,
        {"train_loss": 12.2, "grad_norm_preclip": 3.2, "memory (GiB)": 1.2, "tps": 1234.0, "mfu (%)": 4.5},
    ),
    "fairseq": (
        "2021-01-01 12:00:00 | INFO | train_inner | epoch 001:    100 / 1234 loss=12.3, nll_loss=11.2, num_updates=90, "
        "lr=1.25e-05, gnorm=3.2, loss_scale=64",
        90,
        {
            "train_loss": 12.3,
            "nll_loss": 11.2,
            "lr": 1.25e-05,
            "grad_norm_preclip": 3.2,
            "loss_scale": 64.0,
            "epoch": 1.0,
        },
    ),
    "fairseq-json": (
        '2021-01-01 12:00:00 | INFO | train | {"epoch": 1, "train_loss": "12.3", "train_num_updates": "90"}',
        90,
        {"train_loss": 12.3, "epoch": 1.0},
    ),
    "fairseq-validation": (
        "2021-01-01 12:00:00 | INFO | valid | epoch 001 | valid on 'valid' subset | loss 5.4 | num_updates 1234",
        1234,
        {"val_loss": 5.4, "epoch": 1.0},
    ),
    "DeepSpeed": ("steps: 10 loss: 2.34 iter time (s): 0.5", 10, {"train_loss": 2.34, "step_time_s": 0.5}),
    "Hugging Face": (
        "  1%|1         | 30/1000 [00:05<08:15,  2.0it/s]\r{'loss': 2.3, 'grad_norm': nan, 'learning_rate': 5e-05}",
        30,
        {"train_loss": 2.3, "grad_norm_preclip": math.nan, "lr": 5e-05},
    ),
    "Hugging Face 5": (
        "  1%|1         | 30/1000 [00:05<08:15,  2.0it/s]\r{'loss': '0', 'grad_norm': 'nan', 'learning_rate': '5e-05'}",
        30,
        {"train_loss": 0.0, "grad_norm_preclip": math.nan, "lr": 5e-05},
    ),
    "Keras": (
        "Epoch 2/10\n1875/1875 [==============================] - 3s 1ms/step - loss: 0.29 - accuracy: 0.91"
        " - val_loss: 0.14",
        3750,
        {"train_loss": 0.29, "val_loss": 0.14, "accuracy": 0.91, "epoch": 2.0},
    ),
    "examples/mnist": ("Train Epoch: 1 [640/60000 (1%)]\tLoss: 2.291", 640, {"train_loss": 2.291, "epoch": 1.0}),
    "timm": (
        "Train: 1 [  50/1251 (  4%)]  Loss: 6.95 (6.95)  LR: 1.000e-06",
        1251 * 0 + 50,
        {"train_loss": 6.95, "lr": 1e-6, "epoch": 1.0},
    ),
    "mmengine": (
        "2023/05/01 10:00:00 - mmengine - INFO - Epoch(train)  [1][ 50/1000]  lr: 2.0e-02  eta: 0:10:00  "
        "grad_norm: 3.2  loss: 1.2  loss_cls: 0.3",
        50,
        {"train_loss": 1.2, "lr": 0.02, "grad_norm_preclip": 3.2, "loss_cls": 0.3, "epoch": 1.0},
    ),
    "tqdm": (
        "Epoch 0:  10%|#         | 100/1000 [00:10<01:30,  9.50it/s, v_num=3, train_loss=2.3]",
        100,
        {"train_loss": 2.3, "epoch": 0.0},
    ),
    "modded-nanogpt": (
        "step:100/5100 train_loss:4.5000 step_avg:98.00ms",
        100,
        {"train_loss": 4.5, "step_avg (ms)": 98.0},
    ),
    "nanochat": (
        "step 00100/21400 (0.47%) | loss: 4.56 | grad norm: 0.5000 | lrm: 1.00 | dt: 500.00ms | tok/sec: 1,000,000",
        100,
        {"train_loss": 4.56, "grad_norm_preclip": 0.5, "lrm": 1.0, "step_time_s": 0.5, "tokens_per_s": 1e6},
    ),
    "build-nanogpt": ("250 train 10.95", 250, {"train_loss": 10.95}),
    "llm.c-main.log": (
        "s:250 trl:5.4 lr:0.0006 norm:2.5",
        250,
        {"train_loss": 5.4, "lr": 6e-4, "grad_norm_preclip": 2.5},
    ),
    "tensor": ("step 20 | loss tensor(2.5, device='cuda:0', grad_fn=<X>)", 20, {"train_loss": 2.5}),
}


@pytest.mark.parametrize("program", PRINTED)
def test_a_line_that_a_program_prints(program: str, tmp_path: Path) -> None:
    text, step, wanted = PRINTED[program]
    rows = list(read_log(log(tmp_path, text), Account()))
    assert [row.step for row in rows] == [step]
    naming = Naming(dict.fromkeys(rows[0].values, 1))
    found = {naming.of(name).name: value * naming.of(name).factor for name, value in rows[0].values.items()}
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value, rel=1e-12, nan_ok=True), name


@pytest.mark.parametrize(
    "line",
    [
        "number of parameters: 10.65M",
        "Loading checkpoint shards: 100%|##########| 2/2 [00:05<00:00,  2.0it/s]",
        "saving checkpoint at step 1000",
        "learning_rate: 0.001",
        "Namespace(loss_scale=128, seed=7)",
        "Finished 3/7 downloads",
        "2024-01-01 10:00:00 step 7",
    ],
)
def test_what_is_no_measurement_gives_no_row(line: str, tmp_path: Path) -> None:
    assert list(read_log(log(tmp_path, line), Account())) == []


def test_a_share_of_the_training_that_is_whole_is_no_counter(tmp_path):
    shares = ["0.0", "0.5", "1.0", "1.5", "2.0"]
    text = "\n".join(f"{{'loss': {2 - n / 4}, 'epoch': {share}}}" for n, share in enumerate(shares))
    run = read(log(tmp_path, text), tmp_path / "runs")
    assert list(series(run, "train_loss")) == [1, 2, 3, 4, 5]


def test_a_share_that_goes_back_is_another_training(tmp_path):
    """Each shows its bar only once it is complete."""
    trainings = [[0.25, 0.5, 0.75], [0.2, 0.4, 0.6, 0.8]]
    text = ""
    for shares in trainings:
        text += "".join(f"{{'loss': {4 - share}, 'grad_norm': nan, 'epoch': {share}}}\n" for share in shares)
        text += "100%|#####| 1152/1152 [00:18<00:00, 63.70it/s]\n"
    (one,) = import_path(log(tmp_path, text), tmp_path / "runs")
    assert [list(series(open_run(path), "train_loss").values()) for path in one.runs] == [
        [4 - share for share in shares] for shares in trainings
    ]


def test_passes_over_the_data_without_a_word_on_the_epoch_are_counted(tmp_path):
    text = "\n".join(f"15/15 [=====] - 115s 7s/step - loss: {3 - n / 4} - val_loss: {n}" for n in range(5))
    run = read(log(tmp_path, text), tmp_path / "runs")
    assert list(series(run, "train_loss")) == [15, 30, 45, 60, 75]


def test_what_a_callback_says_into_the_bar_is_no_metric(tmp_path):
    text = "".join(
        f"Epoch {n}/9\n9/10 [==>.] - ETA: 0s - loss: {n}.5Epoch {n - 1:05d}: val_loss improved from 0.9 to 0.8\n"
        f"10/10 [===] - 1s - loss: {n}.25 - val_loss: {n}.75\n"
        for n in range(1, 10)
    )
    run = read(log(tmp_path, text), tmp_path / "runs")
    assert series(run, "val_loss") == {10 * n: n + 0.75 for n in range(1, 10)}
    assert series(run, "train_loss")[79] == 8.5 and set(run.names) == {"train_loss", "val_loss", "epoch"}


def test_an_epoch_with_one_row_goes_on_too(tmp_path):
    text = "".join(f"Epoch {n}, Iter 39, Loss: {9 - n}\nEpoch {n}, Train Loss: {9.5 - n}\n" for n in range(2, 8))
    run = read(log(tmp_path, text), tmp_path / "runs")
    assert series(run, "train_loss") == {39 * (n - 1): 9.0 - n for n in range(2, 8)}


def test_an_evaluation_after_the_last_epoch_is_none_of_the_training(tmp_path):
    text = "".join(f"Epoch {n}/3\n100/100 [===] - 1s 9ms/step - loss: {4.0 - n}\n" for n in (1, 2, 3))
    run = read(log(tmp_path, text + "20/20 - 1s - loss: 9.0\n"), tmp_path / "runs")
    assert series(run, "train_loss") == {100: 3.0, 200: 2.0, 300: 1.0}
    assert series(run, "val_loss") == {300: 9.0}


def test_a_test_set_before_the_first_step_belongs_to_step_0(tmp_path):
    text = "Test set: Avg. loss: 2.5, Accuracy: 913/10000 (9%)\nTrain Epoch: 1 [64/100 (64%)]\tLoss: 2.0\n"
    run = read(log(tmp_path, text), tmp_path / "runs")
    assert series(run, "val_loss") == {0: 2.5} and series(run, "val/Accuracy") == {0: 0.0913}
    assert series(run, "train_loss") == {64: 2.0}


def test_a_traceback_at_the_end_is_a_crash(tmp_path):
    text = "step 1 loss 2\nstep 2 loss 2\n"
    text += "Traceback (most recent call last):\n  File 'x', line 3\nRuntimeError: CUDA error\n"
    run = read(log(tmp_path, text), tmp_path / "runs")
    assert run.state.word == "crashed" and "CUDA error" in run.state.reason


NAMES = st.lists(
    st.sampled_from(["loss", "grad_norm", "lr", "acc", "my_metric", "val_loss", "train/acc", "f1@5"]),
    min_size=1,
    max_size=6,
    unique=True,
)
VALUES = st.one_of(
    st.floats(width=32),
    st.sampled_from([0.0, -1.5, 1e-30, 3e38, math.nan, math.inf, -math.inf]),
)
STYLES = {
    "equals": lambda step, row: f"step={step} " + " ".join(f"{name}={value!r}" for name, value in row.items()),
    "colon": lambda step, row: f"step: {step} | " + " | ".join(f"{name}: {value!r}" for name, value in row.items()),
    "words": lambda step, row: f"step {step}, " + ", ".join(f"{name} {value!r}" for name, value in row.items()),
    "dict": lambda step, row: repr({"step": step, **row}),
    "json": lambda step, row: "metrics " + json.dumps({"step": step, **row}),
}


@given(st.data())
def test_what_is_written_in_any_style_is_read_back(tmp_path_factory, data):
    style = data.draw(st.sampled_from(sorted(STYLES)))
    names = data.draw(NAMES)
    steps = sorted(data.draw(st.sets(st.integers(0, 10**6), min_size=2, max_size=6)))
    rows = {step: {name: data.draw(VALUES) for name in names} for step in steps}
    folder = tmp_path_factory.mktemp("log")
    path = log(folder, "\n".join(STYLES[style](step, row) for step, row in rows.items()))
    found = {row.step: row.values for row in read_log(path, Account())}
    assert found.keys() == rows.keys()
    for step, row in rows.items():
        assert same(dict(enumerate(found[step].values())), dict(enumerate(row.values()))), (found[step], row)
        assert list(found[step]) == list(row)


@given(
    st.lists(
        st.one_of(
            st.text(max_size=40),
            st.sampled_from(
                [*CATALOGUE, "loss", "Loss", "train/loss", "lr-AdamW", "lr-AdamW/pg2", "step", "eval_loss", "norm"]
            ),
        ),
        unique=True,
        max_size=40,
    ),
    st.integers(0, 40),
)
def test_no_name_is_lost_and_none_is_used_twice(names, known):
    naming = Naming({name: 1 + place % 3 for place, name in enumerate(names[:known])})
    ours = [naming.of(name).name for name in names]
    assert len(set(ours)) == len(names) and all(ours)
    assert [naming.of(name).name for name in names] == ours


@given(st.binary(max_size=300), st.integers(1, 64))
def test_lines_of_any_bytes_are_those_that_python_splits(tmp_path_factory, data, chunk):
    path = tmp_path_factory.mktemp("log") / "x.log"
    path.write_bytes(b"x" + data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("monitor.importers.lines.CHUNK", chunk)
        found = list(read_lines(path, Account(), 1 << 20))
    text = (b"x" + data).decode("utf-8", "replace").replace("\r\n", "\n").replace("\r", "\n")
    assert [line for line in found if line] == [line for line in text.split("\n") if line]


def test_what_powershell_writes_is_read(tmp_path):
    path = tmp_path / "train.log"
    path.write_bytes("\n".join(f"step {step} loss {3 - step / 8}" for step in range(9)).encode("utf-16"))
    assert series(read(path, tmp_path / "runs"), "train_loss")[8] == 2.0


BOX = """\
------------------------------------
| rollout/           |             |
|    ep_len_mean     | 28.3        |
|    ep_rew_mean     | {reward:<11} |
| time/              |             |
|    total_timesteps | {step:<11} |
| train/             |             |
|    approx_kl       | 0.009214947 |
|    loss            | {loss:<11} |
------------------------------------
"""


def test_boxes_of_stable_baselines_are_rows_with_their_sections(tmp_path: Path) -> None:
    boxes = "".join(BOX.format(reward=-20 + n, step=2048 * n, loss=5.0 / n) for n in range(1, 5))
    run = read(log(tmp_path, f"Using cpu device\n{boxes}| a line | that is no box |\n"), tmp_path / "runs")
    assert series(run, "train_loss") == pytest.approx({2048 * n: 5.0 / n for n in range(1, 5)})
    assert series(run, "rollout/ep_rew_mean") == {2048 * n: -20 + n for n in range(1, 5)}
    assert series(run, "train/approx_kl")[2048] == 0.009214947


@pytest.mark.parametrize("indent", [None, 4], ids=["pprint", "json"])
def test_dictionaries_printed_over_several_lines_are_one_row(tmp_path: Path, indent: int | None) -> None:
    rows = [{"epoch": n / 10, "grad_norm": 1.5, "learning_rate": 1e-5, "loss": 2.0 - n / 10} for n in range(1, 5)]
    text = [json.dumps(row, indent=indent) if indent else str(row).replace(", ", ",\n ") for row in rows]
    code = "def f():\n  return {\n    x: 3 for x in loss_names\n  }"
    run = read(log(tmp_path, "\n".join([code, *text])), tmp_path / "runs")
    assert list(series(run, "train_loss").values()) == pytest.approx([1.9, 1.8, 1.7, 1.6])
    assert set(series(run, "lr").values()) == {1e-5}


def test_a_markdown_table_is_a_course_when_it_counts_and_no_course_when_it_compares(tmp_path: Path) -> None:
    table = "| epoch | train loss | val loss |\n| :--- | ---: | ---: |\n| 5 | 2.24 | 2.89 |\n| 10 | 1.86 | nan |\n"
    results = "| model | loss |\n|---|---|\n| small | 0.5 |\n| large | 0.4 |\n"
    run = read(log(tmp_path, f"Our training\n\n{table}\n{results}"), tmp_path / "runs")
    assert series(run, "train_loss") == {5: 2.24, 10: 1.86}
    assert same(series(run, "val_loss"), {5: 2.89, 10: math.nan})


def test_the_last_state_of_a_yolo_bar_is_the_epochs_row(tmp_path: Path) -> None:
    header = "      Epoch    GPU_mem   box_loss   cls_loss   dfl_loss  Instances       Size"
    bars = [
        f"      {epoch}/3   2.5G   {1.0 / epoch:.4f}   {state}   1.0    14     640: {done}%|##  | 4/9"
        for epoch in (1, 2, 3)
        for done, state in ((50, "9.0"), (100, "nan" if epoch == 3 else "0.5"))
    ]
    text = "\n".join(f"{header}\n" * (n % 2 == 0) + bar for n, bar in enumerate(bars))
    run = read(log(tmp_path, text), tmp_path / "runs")
    assert same(series(run, "train_loss"), {1: 2.5, 2: 2.0, 3: math.nan})
    assert series(run, "train/box_loss") == {1: 1.0, 2: 0.5, 3: 0.3333}


def test_darknets_line_is_loss_average_and_rate(tmp_path: Path) -> None:
    lines = [f" {n}: {100 / n:.6f}, {200 / n:.6f} avg loss, 0.001000 rate, 0.95 seconds, 704 images" for n in (1, 2, 3)]
    region = "Region 23 Avg IOU: -nan, Class: -nan, Obj: -nan, No Obj: 0.556013, .5R: -nan, .75R: -nan,  count: 0"
    run = read(log(tmp_path, f"\n{region}\n".join(lines)), tmp_path / "runs")
    assert same(series(run, "train_loss"), {1: 100.0, 2: 50.0, 3: 33.333333})
    assert set(series(run, "lr").values()) == {1e-3}


def test_a_rate_that_darknet_cannot_write_is_no_zero(tmp_path: Path) -> None:
    """Its burn-in grows with the fourth power of the step; older versions write no ``loss``, classifiers an epoch."""
    lines = [
        f"{n}, 0.0{n}: {100 / n:.6f}, {200 / n:.6f} avg, 0.00000{n > 2:d} rate, 0.9 seconds, 64 images"
        for n in (1, 2, 3)
    ]
    run = read(log(tmp_path, "\n".join(lines)), tmp_path / "runs")
    assert same(series(run, "train_loss"), {1: 100.0, 2: 50.0, 3: 33.333333})
    assert series(run, "lr") == {3: 1e-6}


def test_a_rate_below_its_decimals_is_left_out_and_a_zero_is_not(tmp_path: Path) -> None:
    """MLPerf's single-stage detector warms up over an epoch of 36571 batches."""
    lines = [
        f"Epoch: [0]  [{n:5d}/36571]  eta: 6:17:02  lr: {rate}  loss: 2.1944 (2.2521)  time: 0.4317  max mem: 51676"
        for n, rate in ((20, "0.000000"), (40, "0.000001"), (60, "0.0"))
    ]
    assert series(read(log(tmp_path, "\n".join(lines)), tmp_path / "runs"), "lr") == {40: 1e-6, 60: 0.0}


def test_a_loss_of_training_beside_an_evaluation_that_was_not_made(tmp_path: Path) -> None:
    """LitGPT."""
    lines = [
        f"Epoch 1 | iter {n} step {n} | loss train: {3 / n:.3f}, val: n/a | iter time: 177.84 ms" for n in (1, 2, 3)
    ]
    assert series(read(log(tmp_path, "\n".join(lines)), tmp_path / "runs"), "train_loss") == {1: 3.0, 2: 1.5, 3: 1.0}


def test_the_total_of_tensorflows_object_detection(tmp_path: Path) -> None:
    text = "".join(
        f"INFO:tensorflow:Step {n * 100} per-step time 1.375s\n"
        f"INFO:tensorflow:{{'Loss/RPNLoss/objectness_loss': 0.66165924,\n 'Loss/regularization_loss': 0.0,\n"
        f" 'Loss/total_loss': {0.75 / n},\n 'learning_rate': 0.00016000001}}\n"
        for n in (1, 2, 3)
    )
    run = read(log(tmp_path, text), tmp_path / "runs")
    assert series(run, "train_loss") == {100: 0.75, 200: 0.375, 300: 0.25}


def test_marians_updates_are_its_steps(tmp_path: Path) -> None:
    text = (
        "[2021-05-26 23:22:42] Ep. 1 : Up. 500 : Sen. 15,203 : Cost 6.01253986 * 414,436 @ 2,380 after 414,436 : "
        "Time 609.91s : 679.50 words/s : gNorm 0.6358 : L.r. 1.5000e-04\n"
        "[2021-05-26 23:32:41] Ep. 1 : Up. 1000 : Sen. 31,050 : Cost nan * 412,771 after 827,207 : Time 599.31s\n"
        "[2021-05-26 23:33:33] [valid] Ep. 1 : Up. 1000 : ce-mean-words : 5.21277 : new best\n"
        "[2021-05-26 23:33:34] [valid] Ep. 1 : Up. 1000 : bleu : 4.1 : stalled 2 times (last best: 4.2)\n"
    )
    run = read(log(tmp_path, text), tmp_path / "runs")
    assert same(series(run, "train_loss"), {500: 6.01253986, 1000: math.nan})
    assert series(run, "grad_norm_preclip") == {500: 0.6358}
    assert series(run, "lr") == {500: 1.5e-4}
    assert series(run, "val_loss") == {1000: 5.21277}


def test_vits_lists_its_losses_the_step_and_the_rate(tmp_path: Path) -> None:
    text = "".join(
        f"2021-07-01 10:00:0{n},123\tmi-test\tINFO\tTrain Epoch: 1 [{n}%]\n"
        f"2021-07-01 10:00:0{n},124\tmi-test\tINFO\t[2.5, 2.9, 3.3, {mel}, 1.9, 2.5, {n * 200}, 0.0002]\n"
        for n, mel in enumerate(("50.1", "40.2", "nan"))
    )
    run = read(log(tmp_path, text), tmp_path / "runs")
    assert same(series(run, "loss/mel"), {0: 50.1, 200: 40.2, 400: math.nan})
    assert series(run, "lr") == {0: 2e-4, 200: 2e-4, 400: 2e-4}


def test_a_loggers_name_says_nothing_of_validation(tmp_path: Path) -> None:
    text = "".join(
        f"2023-06-01 10:00:0{n},124\tmi-test\tINFO\tTrain Epoch: {n} loss_gen={3 / n:.3f}, loss_kl=1.5\n"
        for n in (1, 2, 3)
    )
    assert series(read(log(tmp_path, text), tmp_path / "runs"), "loss_gen") == {1: 3.0, 2: 1.5, 3: 1.0}


def test_mindspore_says_what_its_loss_is(tmp_path: Path) -> None:
    text = "".join(f"epoch: {epoch} step: {step}, loss is {loss}\n" for epoch, step, loss in (
        (1, 125, 2.3), (1, 250, 2.1), (2, 125, 1.4), (2, 250, "nan"),
    ))  # fmt: skip
    run = read(log(tmp_path, text), tmp_path / "runs")
    assert same(series(run, "train_loss"), {125: 2.3, 250: 2.1, 375: 1.4, 500: math.nan})


@pytest.mark.parametrize(("after", "scales"), [(4, [64.0, 32.0, 16.0, 8.0, 4.0]), (1, [64.0])])
def test_overflows_that_end_a_log_are_steps_with_their_loss_scales(
    tmp_path: Path, after: int, scales: list[float]
) -> None:
    row = "| epoch 001 | loss 3.9 | num_updates {step} | lr 0.0003 | gnorm 0.6 | loss_scale 64.000"
    note = "| WARNING: overflow detected, setting loss scale to: {scale}"
    between = "\n".join(note.format(scale=scale) for scale in (32.0, 16.0, 8.0, 4.0)[:after])
    run = read(log(tmp_path, f"{row.format(step=100)}\n{between}\n"), tmp_path / "runs")
    assert list(series(run, "loss_scale").values()) == scales
    went_on = log(tmp_path, f"{row.format(step=100)}\n{between}\n{row.format(step=101)}\n", "on.log")
    assert list(series(read(went_on, tmp_path / "on"), "loss_scale")) == [100, 101]


def test_an_export_of_wandb_has_its_runs_by_their_own_names(tmp_path: Path) -> None:
    runs = ("calm-sea-1", "lr - 3e-4")
    columns = [f"{run} - train/loss{end}" for run in runs for end in ("", "__MIN", "__MAX")]
    lines = [",".join(f'"{name}"' for name in ("Step", *columns))]
    lines += [f'"{step}","2.5","2.4","2.6",' + (",," if step == 20 else '"3","3","NaN"') for step in (10, 20, 30)]
    dirs = [
        open_run(path)
        for one in import_path(log(tmp_path, "\n".join(lines), "e.csv"), tmp_path / "r")
        for path in one.runs
    ]
    assert {run.name for run in dirs} == set(runs)
    found = {run.name: series(run, "train_loss") for run in dirs}
    assert found == {runs[0]: {10: 2.5, 20: 2.5, 30: 2.5}, runs[1]: {10: 3.0, 30: 3.0}}
    assert all(run.names == ("train_loss",) for run in dirs)
