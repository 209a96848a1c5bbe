"""The benchmark itself: its arithmetic against closed forms and by hand, and a few of its cases from end to end."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from monitor.diagnosis.rules import RULES
from tests.faults import harness, peer, report
from tests.faults.__main__ import Bench, main
from tests.faults.cases import CONTROLS, FAULTS, PLACE, SMALL_SET
from tests.faults.harness import Forge, TrainingFailed, job_of, layers_of, onset_of, source_of
from tests.faults.metrics import Share, brier, confusion, precision, reliability, wilson
from tests.faults.scoring import Events, Score, Truth, events
from tests.faults.training import Job


@pytest.mark.parametrize(("hits", "trials"), [(0, 5), (3, 5), (5, 5), (97, 100), (1, 1)])
def test_wilsons_bounds_are_the_shares_that_are_just_not_refuted(hits: int, trials: int) -> None:
    """They solve (share - p)^2 = z^2 p (1 - p) / n, of which the formula is the closed form."""

    def refuted(p: float) -> float:
        return (hits / trials - p) ** 2 - 1.96**2 * p * (1 - p) / trials

    low, high = wilson(hits, trials)
    share = hits / trials
    assert low == 0.0 if hits == 0 else refuted(low) == pytest.approx(0.0, abs=1e-12)
    assert high == 1.0 if hits == trials else refuted(high) == pytest.approx(0.0, abs=1e-12)
    assert low <= share <= high
    assert high - low > 0.01


@pytest.mark.parametrize(
    ("alarms", "lasts", "expected"),
    [
        ([100, 102, 119], False, Events(1, 0, 0, 100)),
        ([97], False, Events(0, 1, 0, None)),
        ([98], False, Events(1, 0, 0, 98)),
        ([80, 99], False, Events(1, 0, 0, 99)),
        ([50, 121, 122], False, Events(0, 2, 0, None)),
        ([50, 121], True, Events(0, 2, 1, None)),
        ([110, 160], True, Events(1, 1, 1, 110)),
        ([], False, Events(0, 0, 0, None)),
    ],
)
def test_an_event_is_true_within_the_window_alone(alarms: list[int], lasts: bool, expected: Events) -> None:
    assert events([(step, step) for step in alarms], Truth("case", 0, 100, 20, lasts, 400)) == expected


def test_an_alarm_about_a_time_before_the_fault_is_false_though_it_comes_after() -> None:
    truth = Truth("case", 0, 250, 20, True, 400)
    assert events([(260, 110)], truth) == Events(0, 1, 0, None)
    assert events([(268, 201)], truth) == Events(1, 0, 0, 268)  # seen between two measurements, 100 steps apart


def test_a_control_has_no_true_event() -> None:
    assert events([(10, 10), (200, 200)], Truth("control", 0, None, 20, False, 400)) == Events(0, 2, 0, None)


def test_precision_counts_late_alarms_as_false_and_once_without_them() -> None:
    scores = [Score("c", 0, 400, 5, 3, 2, 1), Score("control", 0, 400, None, 0, 1)]
    assert (precision(scores), precision(scores, late_are_false=False)) == (Share(3, 6), Share(3, 5))


def test_a_training_that_fails_is_left_out_and_the_others_are_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And it is made again by the next benchmark, where the others are kept; none is once a source has changed."""
    made: list[int] = []

    def train(forge: Forge, job: Job) -> None:
        made.append(job["config"]["seed"])
        if job["config"]["seed"] == 1:
            raise TrainingFailed("out of memory")
        (Path(job["runs"]) / "run").mkdir()

    monkeypatch.setattr(Forge, "_train", train)
    case = next(case for case in CONTROLS if case.name == "mlp")
    for again in ([0, 1, 2], [0, 1, 2, 1]):
        bench = Bench([(case, seed) for seed in range(3)], 0, Forge(tmp_path), 1)
        bench.train(lambda text: None, twins=False)
        assert made == again
        assert [seed for _, seed in bench.work] == [0, 2]
        assert list(bench.failed) == ["mlp 1"]
    monkeypatch.setattr(harness, "source_of", lambda *places: "another")
    Bench([(case, 0)], 0, Forge(tmp_path), 1).train(lambda text: None, twins=False)
    assert made == [0, 1, 2, 1, 0]


def test_the_hash_of_sources_follows_what_is_in_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "ROOT", tmp_path)
    (tmp_path / "folder").mkdir()
    file = tmp_path / "folder" / "a.py"
    file.write_text("x = 1")
    before = source_of("folder")
    assert source_of("folder/*.py") == before
    file.write_text("x = 2")
    assert source_of("folder") != before


def test_each_case_accepts_findings_that_exist_and_says_where_it_breaks() -> None:
    known = {rule.id for rule in RULES}
    names = [case.name for case in (*FAULTS, *CONTROLS)]
    assert len(set(names)) == len(names)
    assert set(SMALL_SET) <= set(names)
    for case in FAULTS:
        assert case.accept <= known, case.name
        assert case.accept, case.name
        assert case.causes, case.name
        assert bool(case.places) >= any(fault.get("layer") == PLACE for fault in case.faults), case.name
    assert all(case.healthy and not case.accept for case in CONTROLS)


def test_onset_and_place_come_from_the_seed_and_reach_the_fault() -> None:
    case = next(case for case in FAULTS if case.name == "gradient-x50-mlp")
    onsets = {seed: onset_of(case, seed) for seed in range(30)}
    assert len(set(onsets.values())) > 10
    assert all(150 <= onset <= 300 for onset in onsets.values())
    for seed, onset in onsets.items():
        (fault,) = job_of(case, seed)["config"]["fault"]
        assert fault["step"] == onset
        assert fault["layer"].startswith(layers_of(case, seed))
        assert job_of(case, seed, healthy=True)["config"]["fault"] == []
    assert {layers_of(case, seed) for seed in range(30)} == set(case.places.values())


def test_every_place_that_a_training_follows_from_is_there() -> None:
    nothing = source_of("nowhere")
    assert all(source_of(place) != nothing for place in (*harness.MAKES, *harness.ARMS))


def test_confusion_counts_another_accepted_cause_as_right() -> None:
    def score(causes: tuple[str, ...], right: bool, reported: int | None = 5) -> Score:
        return Score("c", 0, 400, 5, 1, 0, causes=causes, cause_right=right, reported_onset=reported, true_cause="a")

    counted = confusion([score(("a",), True), score(("b",), True), score(("c", "a"), False), score((), False, None)])
    assert counted == {"a": {"a": 2, "c": 1, "no alarm": 1}}
    ElementTree.fromstring(report.picture(counted))


def test_a_confidence_that_is_the_share_of_right_answers_is_reliable_in_each_band() -> None:
    """Answers drawn with the confidence that is said for them: what is right lies in the interval of each band, and
    the Brier score is the mean of p (1 - p)."""
    draws = np.random.default_rng(3)
    said = draws.choice([0.5, 0.7, 0.8, 0.9, 1.0], 4000)
    scores = [
        Score("c", 0, 400, 5, 1, 0, confidence=float(p), cause_right=bool(right))
        for p, right in zip(said, draws.random(4000) < said, strict=True)
    ]
    bands = reliability([*scores, Score("c", 0, 400, 5, 1, 0, causes=("unknown",), cause_right=False)])
    assert [band.said for band in bands] == pytest.approx([0.5, 0.7, 0.8, 0.9, 1.0])
    assert sum(band.right.trials for band in bands) == 4000
    assert all(band.right.interval[0] <= band.said <= band.right.interval[1] + 1e-12 for band in bands)
    assert brier(scores) == pytest.approx(float(np.mean(said * (1 - said))), abs=0.01)
    overdone = [Score("c", 0, 400, 5, 1, 0, confidence=0.9, cause_right=number % 2 == 0) for number in range(100)]
    assert reliability(overdone)[0].right.interval[1] < 0.9
    assert brier([]) is None and reliability([]) == []


def _run(loss: np.ndarray, norm: np.ndarray | None = None) -> peer.Run:
    steps = list(range(1, len(loss) + 1))
    flat = [1.0] * len(loss)
    return {"steps": steps, "loss": loss.tolist(), "grad_norm": flat if norm is None else norm.tolist(), "lr": flat,
            "step_time": flat}  # fmt: skip


@pytest.mark.parametrize("detector", [peer.six_sigma, peer.seven_sigma, peer.robust_z, peer.megatron])
def test_rules_of_others_see_a_large_spike_and_a_nan_and_nothing_in_noise(detector: peer.Detector) -> None:
    rng = np.random.default_rng(0)
    calm = 2.0 * np.exp(0.02 * rng.uniform(-1, 1, 400))
    assert detector(_run(calm)) == []
    spiked = calm.copy()
    spiked[300] = 40.0
    assert detector(_run(spiked)) == [301]
    lost = calm.copy()
    lost[350] = math.nan
    assert detector(_run(lost)) == [351]


def test_megatrons_bar_is_ten_times_the_largest_of_the_first_hundred() -> None:
    loss = np.ones(200)
    loss[50], loss[150] = 3.0, 29.0
    assert peer.megatron(_run(loss)) == []
    loss[150] = 31.0
    assert peer.megatron(_run(loss)) == [151]


def test_a_few_faults_and_controls_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One seed of each: what must be seen is seen, where and why, and nothing is in healthy runs."""
    main([
        "--only", ",".join(SMALL_SET), "--seeds", "1", "--first-seed", "7", "--no-twins", "--to", str(tmp_path),
    ])  # fmt: skip
    told = capsys.readouterr().out
    record = json.loads((tmp_path / "faults.json").read_text())
    scores = {score["case"]: score for score in record["scores"]}
    assert set(scores) == set(SMALL_SET)
    for name, score in scores.items():
        if score["onset"] is not None:
            assert score["hit"], f"{name}\n{told}"
            assert score["cause_right"], f"{name}\n{told}"
        else:  # a busy machine is slow indeed, and that may be said
            assert {word.partition("@")[0] for word in score["said"]} <= {"slower-steps", "stall", "input-bound"}, told
    assert record["all"]["unsorted"]["hits"] == record["all"]["unsorted"]["trials"] > 0
    assert isinstance(record["peers"]["robust z > 8 / 100"], dict)
    ElementTree.fromstring((tmp_path / "causes.svg").read_text())
