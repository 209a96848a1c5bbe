"""A few lines each from logs that people published, as they stand there; the source is named beside each.

They are what made the readers learn something: counters that stand still, records that lost their line ends, warnings
that are the only trace of a step that was not taken.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from monitor.diagnosis.engine import diagnose
from monitor.importers import import_path
from monitor.runfile.reader import open_run
from tests.monitor.importers.helpers import log, read, same, series

PUBLISHED = {
    "nv-tlabs/LION#9": (  # names in brackets, and Loguru's place in the code, which is no epoch
        "2023-01-25 01:03:05.674 | INFO     | trainers.base_trainer:train_epochs:256 - [R0] | E104 iter[ 14/ 15] "
        "| [Loss] nan | [step]  1574 | [url] none | [time] 0.4m (~4h) |[best] 0 -100.000x1e-2 \n"
        "2023-01-25 01:03:31.050 | INFO     | trainers.base_trainer:train_epochs:256 - [R0] | E105 iter[ 14/ 15] "
        "| [Loss] nan | [step]  1589 | [url] none | [time] 0.4m (~4h) |[best] 0 -100.000x1e-2 \n",
        "train_loss",
        {1574: math.nan, 1589: math.nan},
    ),
    "BenSecret/CartPole#1": (  # nothing but episodes
        "Episode 0       Average reward: nan\nEpisode 10      Average reward: 42.10\nCompleted at episode:  109\n",
        "Average reward",
        {0: math.nan, 10: 42.1},
    ),
    "liampetti/DDPG#2": (
        "| Reward: 09  | Episode 937 | Qmax: 38.8581\n| Reward: 10  | Episode 938 | Qmax: 39.1086\n",
        "Reward",
        {937: 9.0, 938: 10.0},
    ),
    "keras-rl/keras-rl#28": (  # the length of an episode counts nothing
        "  8996/50000: episode: 63, duration: 4.336s, episode steps: 127, episode reward: -223.863, loss: 8734.289\n"
        "  9140/50000: episode: 64, duration: 4.841s, episode steps: 144, episode reward: -225.739, loss: 16017920.0\n",
        "train_loss",
        {8996: 8734.289, 9140: 16017920.0},
    ),
    "icelandman2/helping_hands resnet18extended_numbers.md": (  # the settings say how many epochs are planned
        "{'batch_size': 32, 'epochs': 100}<br> \n\n## Training\n\n#### Epoch 0/99\n"
        "train loss: 1.93706483326, acc: tensor(0.3262, device='cuda:0', dtype=torch.float64)<br>\n"
        "val loss: 1.12561304604, acc: tensor(0.6223, device='cuda:0', dtype=torch.float64)<br>\n\n#### Epoch 1/99\n"
        "train loss: 1.36363145651, acc: tensor(0.5644, device='cuda:0', dtype=torch.float64)<br>\n"
        "val loss: 1.17917729983, acc: tensor(0.6126, device='cuda:0', dtype=torch.float64)<br>\n",
        "val_loss",
        {0: 1.12561304604, 1: 1.17917729983},
    ),
    "soumith/imagenet-multiGPU.torch#70": (  # Torch7 calls the loss so
        "Epoch: [11][1383/10000] Time 0.675 Err 6.9076 Top1-%: 0.00 LR 1e-02 DataLoadingTime 0.015\n"
        "Epoch: [11][1384/10000] Time 0.675 Err 6.9091 Top1-%: 0.00 LR 1e-02 DataLoadingTime 0.014\n",
        "train_loss",
        {101383: 6.9076, 101384: 6.9091},
    ),
    "dexmal/dexbotic#64": (  # what follows a printed dictionary counts something else
        "{'loss': 8.3281, 'grad_norm': 322.77, 'learning_rate': 0.0, 'epoch': 0.0} | 19/92 [00:03<00:11, 6.29it/s]\n"
        "{'loss': 8.5, 'grad_norm': 273.25, 'learning_rate': 5.0e-08, 'epoch': 0.0}\n"
        "{'loss': 7.9219, 'grad_norm': 246.7, 'learning_rate': 1.0e-07, 'epoch': 0.0}\n",
        "train_loss",
        {1: 8.3281, 2: 8.5, 3: 7.9219},
    ),
    "unslothai/unsloth#5207": (
        "{'loss': 1.60,  'grad_norm':     7.64}\n"
        "{'loss': 1.14,  'grad_norm':    92.10}    <-- spike #1 (step 4)\n"
        "{'loss': 1.54,  'grad_norm':    29.00}\n",
        "grad_norm_preclip",
        {1: 7.64, 2: 92.1, 3: 29.0},
    ),
    "Lightning-AI/litgpt#628": (  # batches are accumulated: the step stands, the iteration goes on
        "iter 1150 step 143: loss 1.6, iter time: 1106.53ms\n"
        "iter 1151 step 144: loss 1.7019, iter time: 1106.53ms (optimizer.step)\n"
        "iter 1152 step 144: loss 11.4630, iter time: 1260.82ms\n"
        "iter 1153 step 144: loss 11.7545, iter time: 1109.35ms\n",
        "train_loss",
        {143: 1.6, 144: 1.7019, 1152: 11.463, 1153: 11.7545},
    ),
    "Barber0/LLM-pretrain train.log": (
        "ep: 0, batch: 20, time: 9.17, ntokens: 485.20/513, loss: 10.984375\n"
        "ep: 0, batch: 40, time: 8.38, ntokens: 431.70/513, loss: 10.976562\n",
        "train_loss",
        {20: 10.984375, 40: 10.976562},
    ),
    "qibin0506/Cortex#18": (
        "[2025-09-03 00:00:39] epoch: 0, file: 2/2, batch: 6674/6743, loss: 5.126953125\n"
        "[2025-09-03 00:00:44] epoch: 0, file: 2/2, batch: 6677/6743, loss: 5.041015625\n",
        "train_loss",
        {6674: 5.126953125, 6677: 5.041015625},
    ),
    "Syvia00/Horse2Zebra loss_log.txt": (  # CycleGAN counts the images of an epoch
        "(epoch: 1, iters: 1200, time: 2.437, data: 0.001) D_A: 0.235 G_A: 0.370 cycle_A: 1.224\n"
        "(epoch: 1, iters: 1300, time: 2.291, data: 0.001) D_A: 0.262 G_A: 0.341 cycle_A: 0.931\n"
        "(epoch: 2, iters: 64, time: 1.602, data: 0.002) D_A: 0.248 G_A: 0.468 cycle_A: 1.412\n",
        "D_A",
        {1200: 0.235, 1300: 0.262, 1364: 0.248},
    ),
    "xlvector/learning-dl#1": (  # MXNet
        "2016-07-01 12:27:36,490 Epoch[0] Batch [150] Speed: 164.29 samples/sec Train-Accuracy=0.000000\n"
        "2016-07-01 12:27:46,196 Epoch[0] Batch [200] Speed: 164.85 samples/sec Train-Accuracy=0.000400\n",
        "Train-Accuracy",
        {150: 0.0, 200: 0.0004},
    ),
    "open-mmlab/mmdetection#11893": (  # a month and a day, no year
        "08/03 22:09:24 - mmengine - INFO - Epoch(train)  [1][ 500/2931]  lr: 2.0000e-02  time: 0.0578  loss: nan\n",
        "train_loss",
        {500: math.nan},
    ),
    "PaddlePaddle/PaddleOCR#11031": (
        "[2023/10/09 10:49:12] ppocr INFO: epoch: [986/2000], global_step: 737800, lr: 0.000516, loss: nanxxx\n",
        "train_loss",
        {737800: math.nan},
    ),
    "PaddlePaddle/PaddleOCR#3074": (  # the line ends were lost
        "ples: 5120 [2021/06/30 12:24:47] root INFO: epoch: [1/500], iter: 680, lr: 0.001000, loss: 28.128532"
        " [2021/06/30 12:26:40] root INFO: epoch: [1/500], iter: 690, lr: 0.001000, loss: 28.108297, ips: 60.5\n",
        "train_loss",
        {680: 28.128532, 690: 28.108297},
    ),
    "OpenNMT/OpenNMT-py#1072": (
        "[2018-11-26 15:02:57 INFO] Step 5600/50000; acc:  47.14; ppl:  9.83; xent: 2.29; lr: 0.00069;  20926 sec\n"
        "[2018-11-26 15:06:01 INFO] Step 5650/50000; acc:   0.19; ppl:   nan; xent:  nan; lr: 0.00070;  21110 sec\n",
        "train_loss",
        {5600: 2.29, 5650: math.nan},
    ),
    "dmlc/xgboost#2777": (
        "Will train until train-logloss hasn't improved in 1000 rounds.\n"
        "[500]\teval-logloss:0.41906\ttrain-logloss:0.160439\n[1000]\teval-logloss:0.468176\ttrain-logloss:0.093267\n",
        "val_loss",
        {500: 0.41906, 1000: 0.468176},
    ),
    "lightgbm-org/LightGBM#742": (
        "[1]\ttraining's binary_logloss: 0.712679\tvalid_1's binary_logloss: 0.712513\n"
        "[2]\ttraining's binary_logloss: 0.732192\tvalid_1's binary_logloss: 0.731889\n",
        "train_loss",
        {1: 0.712679, 2: 0.732192},
    ),
    "lightgbm-org/LightGBM#39": (
        "[LightGBM] [Info] Iteration:999, training's auc: 1.000000\n"
        "[LightGBM] [Info] Iteration:999, training's log loss: 0.004589\n"
        "[LightGBM] [Info] cannot find more split with gain = -inf , current #leaves=16\n"
        "[LightGBM] [Info] Iteration:1000, training's auc: 1.000000\n"
        "[LightGBM] [Info] Iteration:1000, training's log loss: 0.004583\n",
        "train_loss",
        {999: 0.004589, 1000: 0.004583},
    ),
    "starrytong/SCNet#11": (
        "> 2024-07-26 17:51:41,888 - INFO - Train Summary | Epoch 2 | Loss=0.1857 | Grad=16170.3185\n"
        "> 2024-07-26 18:36:47,348 - INFO - Train Summary | Epoch 3 | Loss=0.1673 | Grad=inf\n",
        "grad_norm_preclip",
        {2: 16170.3185, 3: math.inf},
    ),
    "JyChen9811/FaithDiff#34": (  # DeepSpeed spoke into the bar; the only loss has a name of its own
        "Steps:   0%|▏         | 16/6000 [00:55<4:54:46,  2.96s/it, lr=0, noise_step_loss=nan][2025-08-27 10:12:25,030]"
        " [INFO] [loss_scaler.py:184:update_scale] [deepspeed] OVERFLOW! Rank 0 Skipping step. Attempted loss scale: 2,"
        " reducing to 1\nSteps:   0%|▏         | 17/6000 [00:58<4:50:05,  2.91s/it, lr=0, noise_step_loss=nan]\n",
        "train_loss",
        {16: math.nan, 17: math.nan},
    ),
    "espnet/espnet#3170": (  # the only trace of the gradient
        "[user] 2021-04-23 19:22:55,597 (trainer:581) WARNING: The grad norm is nan. Skipping updating the model.\n"
        "[user] 2021-04-23 19:22:56,229 (trainer:581) WARNING: The grad norm is nan. Skipping updating the model.\n"
        "[user] 2021-04-23 19:22:56,245 (trainer:636) INFO: 2epoch:train:12009-12640batch: loss=65.129, acc=0.065\n",
        "grad_norm_preclip",
        {1: math.nan, 2: math.nan},
    ),
    "ymcui/Chinese-LLaMA-Alpaca#534": (
        " 14%|█▍        | 380/2724 [14:02:33<86:01:24, 132.12s/it]\n"
        "{'loss': 2.0491, 'learning_rate': 0.0001961913563176343, 'epoch': 0.28}\n"
        " 14%|█▍        | 380/2724 [14:04:45<85:52:52, 131.96s/it][2023-06-07 22:20:23,340] [INFO] [loss_scaler.py:181:"
        "update_scale] [deepspeed] OVERFLOW! Rank 0 Skipping step. Attempted loss scale: 16, reducing to 8\n"
        " 14%|█▍        | 381/2724 [14:06:56<85:46:12, 131.84s/it][2023-06-07 22:22:34,914] [INFO] [loss_scaler.py:181:"
        "update_scale] [deepspeed] OVERFLOW! Rank 0 Skipping step. Attempted loss scale: 8, reducing to 4\n"
        " 14%|█▍        | 382/2724 [14:09:08<85:43:01, 131.80s/it][2023-06-07 22:24:46,260] [INFO] [loss_scaler.py:181:"
        "update_scale] [deepspeed] OVERFLOW! Rank 0 Skipping step. Attempted loss scale: 4, reducing to 2\n",
        "loss_scale",
        {380: 16.0, 381: 8.0, 382: 4.0, 383: 2.0},
    ),
    "huggingface/transformers#14531": (  # nothing but a bar and overflows
        "".join(
            f"  0%|▋         | {step}/24128 [00:40<2:40:10,  2.50it/s][2021-11-27 00:36:55,194] [INFO] [stage2.py:1628:"
            "step] [deepscale] OVERFLOW! Rank 0 Skipping step. Attempted loss scale: 1, reducing to 1\n"
            for step in (98, 99, 100)
        ),
        "skipped_steps",
        {98: 1.0, 99: 2.0, 100: 3.0},
    ),
    "NVIDIA/waveglow#38": (  # numbers without a name, once a second such line has come
        "123890: -4.772330284\n123891: -4.845523357\n123892: 40490.179687500\n123893: -3.482588530\n",
        "train_loss",
        {123891: -4.845523357, 123892: 40490.1796875, 123893: -3.48258853},
    ),
    "NVIDIA/waveglow#32": (
        "step_78600:\tloss_-4.322495461\nstep_78620:\tloss_4191.683593750\nstep_78640:\tloss_-2.408614397\n",
        "train_loss",
        {78600: -4.322495461, 78620: 4191.68359375, 78640: -2.408614397},
    ),
    "JasonWei512/Tacotron-2-Chinese#20": (  # written over a longer line: no step of 674647500
        "Step   67456 [1.078 sec/step, loss=6.73029, avg_loss=6.65925]\n"
        "Generated 64 train batches of size 4 in 0.298 sec\n"
        "Loss exploded to 378655.87500 at step 674647500, avg_loss=3793.17030]\n"
        "Exiting due to exception: Loss exploded\n",
        "train_loss",
        {67456: 6.73029, 67457: 378655.875},
    ),
}


@pytest.mark.parametrize("source", PUBLISHED)
def test_lines_that_were_published(source: str, tmp_path: Path) -> None:
    text, name, wanted = PUBLISHED[source]
    assert same(series(read(log(tmp_path, text), tmp_path / "runs"), name), wanted)


@pytest.mark.parametrize("source", ["ymcui/Chinese-LLaMA-Alpaca#534", "huggingface/transformers#14531"])
def test_a_scale_that_is_at_its_end_is_told(source: str, tmp_path: Path) -> None:
    (one,) = import_path(log(tmp_path, PUBLISHED[source][0]), tmp_path / "runs")
    assert [finding.id for finding in diagnose(one.runs[0]).at_least("warning")] == ["loss-scale"]


def test_a_scaler_that_looks_for_its_scale_is_no_news(tmp_path: Path) -> None:
    """As zai-org/CogVideo#233: from 2**32 down, then it goes on."""
    falls = "".join(
        f" 0%|          | {step}/500 [00:14<02:00, 14.5s/it][2024-09-11 17:52:32,563] [INFO] [loss_scaler.py:183:"
        f"update_scale] [deepspeed] OVERFLOW! Rank 0 Skipping step. Attempted loss scale: {2 ** (32 - step)},"
        f" reducing to {2 ** (31 - step)}\n"
        for step in range(8)
    )
    text = falls + "".join(f"{{'loss': {3 - step / 100}, 'epoch': {step / 50}}}\n" for step in range(1, 20))
    (one,) = import_path(log(tmp_path, text), tmp_path / "runs")
    assert diagnose(one.runs[0]).findings == ()


@pytest.mark.parametrize(
    ("overflows", "told"),
    [
        ({n: 2.0 ** (17 - n) for n in range(1, 7)}, []),
        ({10: 4096.0, 35: 4096.0, 58: 4096.0}, []),
        ({n: max(1.0, 2.0 ** (37 - n)) for n in range(21, 61)}, ["loss-scale"]),
    ],
    ids=["looks for its scale", "now and then", "falls to 1"],
)
def test_overflows_between_rows_have_their_scales(overflows: dict[int, float], told: list[str], tmp_path: Path) -> None:
    said = "[2023-06-07 22:20:23,340] [deepspeed] OVERFLOW! Skipping step. Attempted loss scale: {}, reducing to {}\n"
    lines = []
    for n in range(1, 61):
        if n in overflows:
            lines.append(said.format(2 * overflows[n], overflows[n]))
        lines.append(f"{{'loss': {2 + n % 7 / 70:.4f}, 'learning_rate': 1e-05, 'epoch': {n / 60:.2f}}}\n")
    (one,) = import_path(log(tmp_path, "".join(lines)), tmp_path / "runs")
    assert series(open_run(one.runs[0]), "loss_scale") == overflows
    assert [finding.id for finding in diagnose(one.runs[0]).at_least("warning")] == told


def test_a_total_is_the_loss_and_not_one_of_its_parts(tmp_path: Path) -> None:
    """GolfBravoSierra/Projeto-Nimbus: the column of a part is nearer to the usual name."""
    text = (
        "epoch,train_loss_total,train_loss_ce,val_loss,train_acc,val_acc\n1,2.434952,1.684376,1.342127,0.4174,0.5267\n"
        "2,1.784480,1.036432,1.224463,0.6386,0.5829\n3,1.520076,0.774031,1.173076,0.7492,0.6364\n"
    )
    run = read(log(tmp_path, text, "training_history.csv"), tmp_path / "runs")
    assert list(series(run, "train_loss").values()) == [2.434952, 1.78448, 1.520076]
    assert list(series(run, "val_loss").values()) == [1.342127, 1.224463, 1.173076]


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [
        ("0,2.3,0.1,2.4\n1,2.1,0.2,2.2\n2,,0.098,\n3,,0.098,\n", {1: 2.3, 2: 2.1, 3: math.nan, 4: math.nan}),
        ("0,2.3,0.1,2.4\n1,2.1,0.2,2.2\n2,,0.098,\n3,,0.098,\n4,2.0,0.3,2.1\n", {1: 2.3, 2: 2.1, 5: 2.0}),
        ("0,2.3,0.1,2.4\n1,2.1,0.2,2.2\n2,,,2.2\n3,,,2.2\n", {1: 2.3, 2: 2.1}),
        ("0,2.3,0.1,2.4\n1,2.1,0.2,2.2\n2,,0.098,\n", {1: 2.3, 2: 2.1}),
    ],
    ids=["pandas' NaN", "a table with gaps", "lists of unlike lengths", "a test at the end"],
)
def test_a_loss_that_ends_as_nothing_beside_an_accuracy(rows: str, wanted: dict[int, float], tmp_path: Path) -> None:
    text = f",loss,accuracy,val_loss\n{rows}"
    assert same(series(read(log(tmp_path, text, "history.csv"), tmp_path / "runs"), "train_loss"), wanted)


def test_frames_and_games_are_counted(tmp_path: Path) -> None:
    """sebtheiler/tutorials#10."""
    text = (
        "Game number: 010590  Frame number: 07943478  Average reward: 115.7  Time taken: 69.4s\n"
        "Game number: 010600  Frame number: 07958788  Average reward: 118.1  Time taken: 92.3s\n"
    )
    run = read(log(tmp_path, text), tmp_path / "runs")
    assert series(run, "Average reward") == {7943478: 115.7, 7958788: 118.1}


NULLS = {
    "to the end": (((2.0, 1.0), (1.5, 1.1), (None, None), (None, None)), {1: 2.0, 2: 1.5, 3: math.nan, 4: math.nan}),
    "the norm alone": (((2.0, 1.0), (1.5, 1.1), (1.25, None), (1.0, None)), {1: 2.0, 2: 1.5, 3: 1.25, 4: 1.0}),
    "every other row": (((2.0, 1.0), (None, 1.1), (1.5, 1.0), (None, 0.9), (None, 0.8)), {1: 2.0, 3: 1.5}),
    "a last row without": (((2.0, 1.0), (1.5, 1.1), (None, 1.0)), {1: 2.0, 2: 1.5}),
    "never a number": (((None, 1.0), (None, 1.1), (None, 1.2)), {}),
}


@pytest.mark.parametrize("kind", ["lines", "list", "columns", "trainer_state"])
@pytest.mark.parametrize("case", NULLS)
def test_a_loss_that_json_ends_as_null(case: str, kind: str, tmp_path: Path) -> None:
    given, wanted = NULLS[case]
    rows = [
        {"step": n, "loss": loss, "grad_norm": norm, "learning_rate": 0.5} for n, (loss, norm) in enumerate(given, 1)
    ]
    text = {
        "lines": "".join(json.dumps(row) + "\n" for row in rows),
        "list": json.dumps(rows),
        "columns": json.dumps({name: [row[name] for row in rows] for name in rows[0]}),
        "trainer_state": json.dumps({"log_history": rows, "global_step": len(rows)}),
    }[kind]
    name = {"lines": "log.jsonl", "trainer_state": "trainer_state.json"}.get(kind, "history.json")
    run = read(log(tmp_path, text, name), tmp_path / "runs")
    assert same(series(run, "train_loss") if wanted else {}, wanted)
    norms = {n: norm for n, (_, norm) in enumerate(given, 1) if norm is not None}
    if case in ("to the end", "the norm alone"):
        norms |= {3: math.nan, 4: math.nan}
    assert same(series(run, "grad_norm_preclip"), norms)


def test_evaluations_after_a_training_name_a_loss_that_they_do_not_have(tmp_path: Path) -> None:
    rows = [{"step": n, "loss": 3.0 - n, "eval_loss": None} for n in (1, 2)]
    rows += [{"step": 3 + n, "loss": None, "eval_loss": 2.5} for n in (0, 1)]
    run = read(log(tmp_path, "".join(json.dumps(row) + "\n" for row in rows), "log.jsonl"), tmp_path / "runs")
    assert series(run, "train_loss") == {1: 2.0, 2: 1.0}
    assert series(run, "val_loss") == {3: 2.5, 4: 2.5}


def test_yolov7s_results_have_no_header(tmp_path: Path) -> None:
    row = (
        "     {}/299     2.59G   0.02872  0.007841  0.009021   {}    8   640   0.884    0.5205    0.6525     0.519{}\n"
    )
    text = row.format(0, "0.04558", "   0   0   0") + row.format(1, "0.0402", "   0.25   0.5   0.125")
    text += row.format(2, "nan", "   nan   0.02   0.01")
    run = read(log(tmp_path, text, "results.txt"), tmp_path / "runs")
    assert same(series(run, "train_loss"), {0: 0.04558, 1: 0.0402, 2: math.nan})
    assert same(series(run, "val_loss"), {1: 0.875, 2: math.nan})


def test_a_guess_over_epochs_that_are_the_steps_of_a_table(tmp_path: Path) -> None:
    """Keras' CSVLogger, as many a notebook's history."""
    rows = "".join(f"{epoch},0.5,0.693{epoch % 5},0.5,0.693{epoch % 3}\n" for epoch in range(8))
    (one,) = import_path(
        log(tmp_path, f"epoch,accuracy,loss,val_accuracy,val_loss\n{rows}", "h.csv"), tmp_path / "runs"
    )
    assert [finding.id for finding in diagnose(one.runs[0]).at_least("warning")] == ["not-learning"]


def test_a_box_of_reinforcement_learning_needs_no_second(tmp_path: Path) -> None:
    """hill-a/stable-baselines#178."""
    text = (
        "--------------------------------------\n| approxkl           | 6.6147855e-05 |\n"
        "| ep_rewmean         | nan           |\n| explained_variance | 0.126         |\n"
        "| fps                | 838           |\n| policy_entropy     | 0.6017113     |\n"
        "| total_timesteps    | 24960         |\n| value_loss         | 63.725853     |\n"
        "--------------------------------------\n"
    )
    assert series(read(log(tmp_path, text), tmp_path / "runs"), "value_loss") == {24960: 63.725853}


def test_a_table_of_rewards_counts_its_steps_by_words_of_its_own(tmp_path: Path) -> None:
    """BoogaQ/PPO-exploration progress.csv: a second training begins in the third row."""
    text = (
        "num_episodes,value_loss,ep_rew_mean,total_loss,total_time,total timesteps\n"
        "213,0.14988,-540.74,0.22046,13.0247,15360\n278,0.1417,-505.25,0.17884,17.7414,20480\n"
        "11,0.07206,-628.96,0.05268,0.7865,1280\n21,0.03094,-551.18,0.01053,1.5886,2560\n"
        "34,0.03825,-479.72,0.02022,2.3753,3840\n47,0.02999,-439.02,0.01554,3.2932,5120\n"
        "61,0.03517,-401.69,0.01728,4.1491,6400\n"
    )
    (one,) = import_path(log(tmp_path, text, "progress.csv"), tmp_path / "runs")
    assert len(one.runs) == 2


@pytest.mark.parametrize(
    "text",
    [
        "Loading checkpoint from ./pt/best_ckpt.pt\nExport complete (22.59s)\nWe set min/opt/max = 1/16/32 default!\n",
        "2019-09-04 16:52:13,391 - train.log - INFO - Reading model parameters from ckpt\\ner.ckpt\n" * 3,
        '[2022-09-23 19:31:01,023][__main__][INFO] - Starting training!\n  File "train.py", line 72, in train\n',
    ],
    ids=["4399123/YOLOV6_XRay", "17680329677/ChineseNER", "AnudeepReddy-Katta/cifar10"],
)
def test_a_train_log_without_a_metric_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="no training metrics found"):
        import_path(log(tmp_path, text), tmp_path / "runs")
