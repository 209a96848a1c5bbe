"""Tables aligned with blanks, paragraphs of one number a line, and sentences that stand for a row."""

from __future__ import annotations

import math
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given

from monitor.diagnosis.engine import diagnose
from monitor.errors import RunError
from monitor.importers import import_path
from monitor.importers.paragraphs import one_line_each
from tests.monitor.importers.helpers import log, read, same, series

ALIGNED = {
    "spaCy": (
        "E    #       LOSS TOK2VEC  LOSS NER  ENTS_F  SCORE \n"
        "---  ------  ------------  --------  ------  ------\n"
        "  0       0          0.00     38.50    9.10    0.09\n"
        "  0     200         31.20   2050.00   82.00    0.82\n",
        "LOSS NER",
        {0: 38.5, 200: 2050.0},
    ),
    "fastai": (
        "epoch     train_loss  valid_loss  error_rate  time    \n"
        "0         0.900000    0.310000    0.110000    00:35     \n"
        "1         0.600000    nan         0.080000    00:36     \n",
        "val_loss",
        {0: 0.31, 1: math.nan},
    ),
    "one blank between names": ("iter loss lr\n10 2.5 0.1\n20 2.25 0.1\n", "train_loss", {10: 2.5, 20: 2.25}),
    "Markdown without outer bars": (
        "Step | Training Loss | kl\n-- | -- | --\n1 | -0.25 | nan\n2 | -0.125 | No Log\n",
        "train_loss",
        {1: -0.25, 2: -0.125},
    ),
}


@pytest.mark.parametrize("program", ALIGNED)
def test_a_table_without_bars(program: str, tmp_path: Path) -> None:
    text, name, wanted = ALIGNED[program]
    assert same(series(read(log(tmp_path, f"Start.\n\n{text}\nSaved.\n"), tmp_path / "runs"), name), wanted)


@pytest.mark.parametrize(
    "text",
    ["name loss accuracy\n1 2.5 0.1\n2 2.25 0.2\n", "epoch loss\n1 2.5 0.1\n2 2.25 0.2\n", "1 2 3\n4 5 6\n"],
    ids=["nothing counts", "another number of names", "no names"],
)
def test_numbers_alone_are_no_table(text: str, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no training metrics found"):
        import_path(log(tmp_path, text), tmp_path / "runs")


def _rsl(iteration: int, loss: str) -> str:
    return (
        f"{'#' * 80}\n                      Learning iteration {iteration}/1500                       \n\n"
        "                       Computation: 65606 steps/s (collection: 1.2s, learning\n0.3s)\n"
        f"               Value function loss: {loss}\n                    Surrogate loss: -0.0076\n"
        f"                       Mean reward: {iteration / 4}\n               Mean episode length: 420.57\n"
        f"{'-' * 80}\n                   Total time: 12.5s\n"
    )


def test_a_paragraph_under_a_counter_is_one_row(tmp_path: Path) -> None:
    run = read(log(tmp_path, "".join(_rsl(n, f"{9 - n}.5") for n in range(4))), tmp_path / "runs")
    assert series(run, "Value function loss") == {n: 9.5 - n for n in range(4)}
    assert series(run, "Mean reward") == {n: n / 4 for n in range(4)}
    assert "train_loss" not in run.names  # a surrogate of the policy's return is no loss to fall


def test_a_value_loss_that_is_infinite_at_the_end_is_told_where_no_loss_is_known(tmp_path: Path) -> None:
    text = _rsl(5, "0.25") + _rsl(6, "inf")
    (one,) = import_path(log(tmp_path, text), tmp_path / "runs")
    (finding,) = diagnose(one.runs[0]).at_least("warning")
    assert (finding.id, finding.onset_step) == ("non-finite", 6)


def test_a_paragraph_with_bars_and_means_in_brackets(tmp_path: Path) -> None:
    blocks = "".join(
        f"   --> STEP: {n}/40 -- GLOBAL_STEP: {1000 + n}\n     | > decoder_loss: {n}.5  (17.2)\n"
        f"     | > loss: {2 * n}.25  (15.4)\n     | > grad_norm: 1.5  (1.4)\n\n"
        for n in (10, 20)
    )
    run = read(log(tmp_path, blocks), tmp_path / "runs")
    assert series(run, "train_loss") == {1010: 20.25, 1020: 40.25}
    assert series(run, "grad_norm_preclip") == {1010: 1.5, 1020: 1.5}


_WORDS = st.sampled_from((
    "Epoch 1/3", "Step: 7", "loss: 0.5", "lr: 0.1", "acc: 0.9", "", "--------", "32/32 [====] - 1s - loss: 0.5",
    "time: 3 s", "batch size: 8", "{'loss': 0.5, 'epoch': 1.0}", "Saved.", "| a loss: 2 |",
    "iter 3: loss 0.5, time 2ms",
))  # fmt: skip


@given(st.lists(_WORDS, max_size=30))
def test_no_number_of_a_line_is_lost_in_paragraphs(lines: list[str]) -> None:
    def pairs(some: list[str]) -> list[str]:
        return sorted(part.strip() for line in some for part in line.replace("|", "\n").split("\n") if ": " in part)

    found = list(one_line_each(lines))
    assert [p for p in pairs(found) if "Step" not in p] == [p for p in pairs(lines) if "Step" not in p]
    if found == lines:
        return
    assert any("loss: " in line and " | " in line for line in found)


GAVE_UP = {
    "detectron2": "FloatingPointError: Loss became infinite or NaN at iteration=25!\nloss_dict = {'a': tensor(nan)}",
    "DETR": "Loss is nan, stopping training",
    "TensorFlow": "INFO:tensorflow:Error reported to Coordinator: LossTensor is inf or nan. : Tensor had NaN values",
    "Estimator": "ERROR:tensorflow:Model diverged with loss = NaN.",
    "AllenNLP": "ValueError: nan loss encountered",
    "Coqui": "RuntimeError:  [!] NaN loss with decoder_loss.",
}


@pytest.mark.parametrize("program", GAVE_UP)
def test_a_program_that_gives_up_on_a_nan_says_so_and_prints_no_row(program: str, tmp_path: Path) -> None:
    rows = "".join(f"iter: {n}  total_loss: {3 - n / 20}\n" for n in (10, 20))
    run = read(log(tmp_path, f"{rows}{GAVE_UP[program]}\n"), tmp_path / "runs")
    last = 25 if program == "detectron2" else 21
    assert same(series(run, "train_loss"), {10: 2.5, 20: 2.0, last: math.nan})


@pytest.mark.parametrize(
    "after",
    [
        "Loss is nan, skipping this batch\n",
        "WARNING: received a nan loss, setting loss value to 0\n",
        "nan loss encountered\n",
    ],
)
def test_a_training_that_goes_on_after_the_words_has_no_such_row(after: str, tmp_path: Path) -> None:
    text = f"iter: 10  total_loss: 2.5\n{after}iter: 20  total_loss: 2.0\n"
    assert series(read(log(tmp_path, text), tmp_path / "runs"), "train_loss") == {10: 2.5, 20: 2.0}


def test_an_objective_that_is_maximised_is_a_loss_with_the_other_sign(tmp_path: Path) -> None:
    text = "".join(
        f"LOG (nnet3-train:PrintStatsForThisPhase():nnet-training.cc:121) Average objective function for 'output' for "
        f"minibatches {n}-{n + 9} is {value} over 19538 frames.\n"
        for n, value in ((0, "-3.5"), (10, "-3.25"), (20, "nan"))
    )
    run = read(log(tmp_path, text), tmp_path / "runs")
    assert same(series(run, "train_loss"), {9: 3.5, 19: 3.25, 29: math.nan})


def test_a_scale_that_is_named_in_a_warning_alone(tmp_path: Path) -> None:
    text = "2024-01-14 01:03:00,826 WARNING [train.py:1057] (2/4) Grad scale is small: 1.5e-26\n" * 2
    (one,) = import_path(log(tmp_path, text), tmp_path / "runs")
    assert [finding.id for finding in diagnose(one.runs[0]).findings] == ["loss-scale"]


def test_strokes_between_the_pairs_and_stars_around_a_number(tmp_path: Path) -> None:
    strokes = "".join(f"[{n}] expl 0.0 / model_loss {n / 1000} / div inf\n" for n in (5000, 6000))
    assert series(read(log(tmp_path, strokes), tmp_path / "a"), "train_loss") == {5000: 5.0, 6000: 6.0}
    stars = log(tmp_path, "{'loss': **4.75**, 'grad_norm': 3.0, 'epoch': 0.1}\n", "stars.log")
    assert series(read(stars, tmp_path / "b"), "train_loss") == {1: 4.75}


TAGGED = {
    "OLMo": (
        "2024-02-01 10:00:00.123\thost:0\tolmo.train:600\tINFO\t[step={step}/739328,epoch=0]\n"
        "    train/CrossEntropyLoss={loss}\n    throughput/total_tokens=4,194,304\n    optim/total_grad_norm={norm}\n"
    ),
    "Composer": (
        "[batch={step}/1000]:\n\t Train time/epoch: 0\n\t Train loss/train/total: {loss}\n"
        "\t Train l2_norm/grad/global: {norm}\n"
    ),
    "Flax": "I0101 12:00:00.000000 139 writer.py:48] [{step}] learning_rate=0.001, loss={loss}, grad_norm={norm}\n",
}


@pytest.mark.parametrize("program", TAGGED)
def test_rows_under_a_tag_with_the_step(program: str, tmp_path: Path) -> None:
    text = "".join(TAGGED[program].format(step=10 * n, loss=11 - n / 4, norm=n / 2) for n in (1, 2, 3))
    run = read(log(tmp_path, text), tmp_path / "runs")
    assert series(run, "train_loss") == {10: 10.75, 20: 10.5, 30: 10.25}
    assert series(run, "grad_norm_preclip") == {10: 0.5, 20: 1.0, 30: 1.5}


BATCHES = {
    "nothing but the epoch": ("Epoch {epoch} train Loss: {loss} Accu :0.5\n", [1, 2, 3, 4]),
    "MXNet": ("Epoch[{epoch}] Batch [{before}-{batch}]\tSpeed: 6.24 samples/sec\tLoss={loss}\n", [20, 40, 60, 80]),
    "in words": (
        "epoch {epoch}, total_step {step}, total loss is {loss} , reg_loss is 0.08, time 229.4 s\n",
        [1, 2, 3, 4],
    ),
}


@pytest.mark.parametrize("program", BATCHES)
def test_batches_of_an_epoch_are_rows(program: str, tmp_path: Path) -> None:
    line, steps = BATCHES[program]
    text = "".join(
        line.format(epoch=n // 2, step=n + 1, before=20 * (n % 2), batch=20 * (n % 2 + 1), loss=3 - n / 4)
        for n in range(4)
    )
    found = series(read(log(tmp_path, text), tmp_path / "runs"), "train_loss")
    assert list(found.values()) == [3.0, 2.75, 2.5, 2.25]
    assert list(found) == steps or program == "MXNet"


TUTORIALS = {
    "PyTorch's on transfer": "Epoch {n}/24\n----------\ntrain Loss: {a} Acc: 0.7\nval Loss: {b} Acc: 0.9\n\n",
    "a time in minutes": (
        "Epoch: {n:02} | Epoch Time: 0m 17s\n\tTrain Loss: {a} | Train Acc: 60.12%\n\t Val. Loss: {b} |  Val. Acc: 7%\n"
    ),
    "pictures": "🚀 Epoch {n}/6 | ⏱️ 12.3s | 📉 Train Loss: {a} | 📊 Val Loss: {b}\n",
}


@pytest.mark.parametrize("program", TUTORIALS)
def test_what_tutorials_print(program: str, tmp_path: Path) -> None:
    text = "".join(TUTORIALS[program].format(n=n, a=3 - n / 4, b=3.5 - n / 4) for n in (1, 2, 3))
    run = read(log(tmp_path, text), tmp_path / "runs")
    assert series(run, "train_loss") == {1: 2.75, 2: 2.5, 3: 2.25}
    assert series(run, "val_loss") == {1: 3.25, 2: 3.0, 3: 2.75}


def test_epoch_and_batch_in_two_brackets(tmp_path: Path) -> None:
    text = "".join(
        f"[{epoch}/5][{batch}/100]\tLoss_D: {epoch + batch / 1000:.4f}\tLoss_G: 5.1234\tD(G(z)): 0.1234 / 0.0123\n"
        for epoch in (0, 1)
        for batch in (0, 50)
    )
    run = read(log(tmp_path, text), tmp_path / "runs")
    assert series(run, "Loss_D") == {0: 0.0, 50: 0.05, 100: 1.0, 150: 1.05}


@pytest.mark.parametrize("key", ["phase", "split", "mode"])
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_column_that_says_which_data_a_row_is_of(key: str, kind: str, tmp_path: Path) -> None:
    rows = [(n, word, 3 - n / 4 + (word == "val") / 2) for n in (1, 2, 3) for word in ("train", "val")]
    csv = f"epoch,{key},loss\n" + "".join(f"{n},{word},{loss}\n" for n, word, loss in rows)
    lines = "".join(f'{{"epoch": {n}, "{key}": "{word}", "loss": {loss}}}\n' for n, word, loss in rows)
    run = read(log(tmp_path, csv if kind == "csv" else lines, f"log.{kind}"), tmp_path / "runs")
    assert series(run, "train_loss") == {1: 2.75, 2: 2.5, 3: 2.25}
    assert series(run, "val_loss") == {1: 3.25, 2: 3.0, 3: 2.75}


def test_a_loss_that_megatron_leaves_out_of_a_step_that_it_took_is_nan(tmp_path: Path) -> None:
    row = (
        " iteration {n:8d}/ 8000 | consumed samples: {n}64 | learning rate: 6.680E-06 | {loss}loss scale: 1.0 | "
        "grad norm: {norm} | number of skipped iterations: {skipped:3d} | number of nan iterations:   0 |\n"
    )
    rows = [
        (1, "lm_loss: 7.5E-01 | ", "0.75", 0),
        (2, "", "inf", 1),
        (3, "lm_loss: 7.25E-01 | ", "0.5", 0),
        (4, "", "nan", 0),
    ]
    text = "".join(row.format(n=n, loss=loss, norm=norm, skipped=skipped) for n, loss, norm, skipped in rows)
    found = series(read(log(tmp_path, text), tmp_path / "runs"), "train_loss")
    assert same(found, {1: 0.75, 3: 0.725, 4: math.nan})
