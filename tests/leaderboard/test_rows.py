"""Reading a run's folder, whole or damaged."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cxr_ray.errors import ConfigError, RunError
from cxr_ray.leaderboard.board import Board, Row
from cxr_ray.leaderboard.rows import read_leaderboard
from cxr_ray.paths import locate
from cxr_ray.training.run_folder import SILENT_AFTER_S, RunFolder

Copy = Callable[..., Path]


def row_of(board: Board, trial: str) -> Row:
    return next(row for row in board.rows if row.trial == trial)


def histories(run: Path) -> dict[str, list[dict]]:
    folders = sorted(run.glob("trial_*"))
    return {folder.name.removeprefix("trial_"): RunFolder(locate(folder)).history() for folder in folders}


def change_json(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_trials_stand_best_first_by_the_best_epoch_of_the_runs_metric(tuning_run: Path) -> None:
    board = read_leaderboard(tuning_run)
    best = {
        trial: [row for row in rows if row["best"]][-1]["val/macro_f1"]
        for trial, rows in histories(tuning_run).items()
        if rows
    }
    scores = {row.trial: row.metrics["val/macro_f1"] for row in board.rows if row.best_epoch}
    assert scores == best
    assert list(scores.values()) == sorted(scores.values(), reverse=True)
    assert board.best is board.rows[0]


def test_the_board_knows_the_run_it_came_from(tuning_run: Path) -> None:
    board = read_leaderboard(tuning_run)
    assert (board.name, board.kind, board.metric, board.watched_class) == ("search", "tuning", "val/macro_f1", "covid")
    assert board.classes == ["normal", "covid", "tuberculosis"]
    assert (board.val_images, board.planned_trials, len(board.rows), board.scored) == (30, 4, 3, 2)
    assert board.varying == ["loss.recall_emphasis", "optimization.learning_rate"]


def test_a_row_carries_epochs_parameters_and_the_time_of_all_epochs(tuning_run: Path) -> None:
    row, history = row_of(read_leaderboard(tuning_run), "aaaa0001"), histories(tuning_run)["aaaa0001"]
    assert (row.status, row.epochs, row.planned_epochs, row.val_images) == ("finished", 4, 4, 30)
    assert row.parameters["optimization.learning_rate"] == 0.004
    assert row.seconds == pytest.approx(sum(epoch["seconds"] for epoch in history))
    assert row.curve == tuple(epoch["val/macro_f1"] for epoch in history)


def test_a_failed_trial_stands_last_with_its_reason(tuning_run: Path) -> None:
    row = read_leaderboard(tuning_run).rows[-1]
    assert (row.trial, row.status, row.best_epoch, row.metrics) == ("aaaa0003", "failed", None, {})
    assert "loss became" in row.reason


@pytest.mark.parametrize("metric", ["recall/covid", "val/recall/covid", "accuracy"])
def test_rows_are_sorted_by_the_metric_asked_for(tuning_run: Path, metric: str) -> None:
    board = read_leaderboard(tuning_run, sort=metric)
    assert board.sort == f"val/{metric.removeprefix('val/')}"
    scores = [score for row in board.rows if (score := row.score(board.sort)) is not None]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) == 2


def test_trials_that_tie_are_told_apart_by_macro_f1(tuning_run: Path, copied: Copy) -> None:
    run = copied(tuning_run)
    for file in run.glob("trial_*/history.jsonl"):
        rows = [json.loads(line) | {"val/recall/covid": 1.0} for line in file.read_text().splitlines()]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = [row for row in read_leaderboard(run, sort="recall/covid").rows if row.metrics]
    assert [row.metrics["val/recall/covid"] for row in rows] == [1.0, 1.0]
    assert rows[0].metrics["val/macro_f1"] > rows[1].metrics["val/macro_f1"]


def test_losses_are_sorted_upwards(tuning_run: Path) -> None:
    board = read_leaderboard(tuning_run, sort="loss")
    losses = [row.metrics["val/loss"] for row in board.rows if row.metrics]
    assert losses == sorted(losses)


def test_an_unknown_metric_is_refused_with_those_there_are(tuning_run: Path) -> None:
    with pytest.raises(ConfigError, match=r"--sort: 'recal/covid'.*did you mean 'recall/covid'.*macro_f1"):
        read_leaderboard(tuning_run, sort="recal/covid")


def test_a_training_run_is_a_board_of_one_row(training_run: Path) -> None:
    board = read_leaderboard(training_run)
    assert (board.kind, len(board.rows), board.rows[0].trial, board.rows[0].folder) == ("training", 1, "plain", "")


def test_a_trials_folder_can_be_read_as_a_run_of_its_own(tuning_run: Path) -> None:
    board = read_leaderboard(tuning_run / "trial_aaaa0001")
    assert (board.kind, board.rows[0].trial) == ("training", "aaaa0001")


def test_a_run_is_read_from_a_uri(tuning_run: Path) -> None:
    assert read_leaderboard(tuning_run.as_uri()).rows == read_leaderboard(tuning_run).rows


def test_a_trial_that_has_written_nothing_is_pending(tuning_run: Path, copied: Copy) -> None:
    run = copied(tuning_run)
    (run / "trial_bbbb").mkdir()
    (run / "trial_notes.txt").write_text("no trial")
    board = read_leaderboard(run)
    assert len(board.rows) == 4
    assert row_of(board, "bbbb").status == "pending"


def test_a_trial_that_died_before_its_first_line_tells_why(tuning_run: Path, copied: Copy) -> None:
    run = copied(tuning_run)
    (run / "trial_bbbb").mkdir()
    (run / "trial_bbbb" / "status.json").write_text('{"state": "failed", "reason": "out of memory"}')
    row = row_of(read_leaderboard(run), "bbbb")
    assert (row.status, row.reason) == ("failed", "out of memory")


def test_a_running_trial_says_how_far_it_is(tuning_run: Path, copied: Copy) -> None:
    run = copied(tuning_run)
    status = {"state": "running", "epoch": 1, "epochs": 9, "step": 2, "steps": 4, "heartbeat": time.time()}
    (run / "trial_aaaa0001" / "status.json").write_text(json.dumps(status))
    row = row_of(read_leaderboard(run), "aaaa0001")
    assert (row.status, row.reason) == ("running", "epoch 2 of 9, step 2 of 4")
    assert row.score("val/macro_f1") is not None


def test_a_running_trial_that_is_not_heard_of_is_silent(tuning_run: Path, copied: Copy) -> None:
    run = copied(tuning_run)
    long_ago = time.time() - SILENT_AFTER_S - 600
    change_json(run / "trial_aaaa0001" / "status.json", state="running", heartbeat=long_ago)
    row = row_of(read_leaderboard(run), "aaaa0001")
    assert row.status == "silent"
    assert "12 minutes" in row.reason


def test_a_missing_status_keeps_the_scores(tuning_run: Path, copied: Copy) -> None:
    run = copied(tuning_run)
    (run / "trial_aaaa0001" / "status.json").write_text("{")
    row = row_of(read_leaderboard(run), "aaaa0001")
    assert row.status == "unknown"
    assert row.score("val/macro_f1") is not None


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("history.jsonl", b'{"epoch": 1, "best": true', "history.jsonl is damaged"),
        ("history.jsonl", b'{"epoch": 1, "best": true, "seconds": 1.0}\n', "history.jsonl is damaged"),
        ("history.jsonl", b"5\n", "history.jsonl is damaged"),
        ("history.jsonl", b"\xff\xfe\n", "history.jsonl is damaged"),
        ("experiment.json", b'{"name": "x"}', "experiment.json is damaged"),
        ("experiment.json", b"", "experiment.json is damaged"),
        ("experiment.json", None, "experiment.json is missing"),
    ],
)
def test_a_damaged_trial_is_a_broken_row_and_the_others_stay(
    tuning_run: Path, copied: Copy, file: str, content: bytes | None, reason: str
) -> None:
    target = copied(tuning_run) / "trial_aaaa0001" / file
    target.unlink() if content is None else target.write_bytes(content)
    board = read_leaderboard(target.parent.parent)
    row = row_of(board, "aaaa0001")
    assert row.status == "broken"
    assert reason in row.reason
    assert board.rows[0].trial == "aaaa0002"


def test_a_history_cut_in_its_last_line_is_a_broken_row(tuning_run: Path, copied: Copy) -> None:
    file = copied(tuning_run) / "trial_aaaa0001" / "history.jsonl"
    file.write_bytes(file.read_bytes()[:-40])
    assert row_of(read_leaderboard(file.parent.parent), "aaaa0001").status == "broken"


def test_a_trial_of_another_dataset_is_a_broken_row(tuning_run: Path, copied: Copy) -> None:
    run = copied(tuning_run)
    info = json.loads((run / "trial_aaaa0001" / "experiment.json").read_text())
    info["dataset"]["fingerprint"] = "0123456789abcdef"
    (run / "trial_aaaa0001" / "experiment.json").write_text(json.dumps(info))
    assert "another dataset" in row_of(read_leaderboard(run), "aaaa0001").reason


def test_a_training_run_with_a_damaged_history_is_refused(training_run: Path, copied: Copy) -> None:
    run = copied(training_run)
    (run / "history.jsonl").write_text("{")
    with pytest.raises(RunError, match=r"plain: history.jsonl is damaged.*Restore"):
        read_leaderboard(run)


def test_a_training_run_before_its_first_epoch_is_a_row_without_scores(training_run: Path, copied: Copy) -> None:
    run = copied(training_run)
    (run / "history.jsonl").unlink()
    board = read_leaderboard(run)
    assert board.best is None
    assert board.rows[0].metrics == {}


def test_a_tuning_run_without_trials_is_refused(tuning_run: Path, tmp_path: Path) -> None:
    shutil.copy(tuning_run / "space.json", tmp_path)
    with pytest.raises(RunError, match=r"has no trials yet.*--resume"):
        read_leaderboard(tmp_path)


def test_a_damaged_description_of_a_tuning_run_is_refused(tuning_run: Path, copied: Copy) -> None:
    run = copied(tuning_run)
    (run / "space.json").write_text("{")
    with pytest.raises(RunError, match=r"space.json is damaged"):
        read_leaderboard(run)


def test_a_misspelt_run_names_the_runs_beside_it(tuning_run: Path, training_run: Path) -> None:
    with pytest.raises(RunError, match=r"there is no such folder \(did you mean 'search'\?\); .*plain, search"):
        read_leaderboard(tuning_run.parent / "serch")


def test_a_storage_folder_names_the_runs_in_it(tuning_run: Path, training_run: Path) -> None:
    with pytest.raises(RunError, match=r"is not a run but holds runs: plain, search"):
        read_leaderboard(tuning_run.parent)


def test_a_folder_without_runs_and_a_file_are_refused(tuning_run: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"is not a run \(it holds neither experiment.json nor space.json\)"):
        read_leaderboard(tmp_path)
    with pytest.raises(RunError, match="is a file, not a run"):
        read_leaderboard(tuning_run / "space.json")


def test_two_hundred_trials_are_read_in_under_a_second(tuning_run: Path, copied: Copy) -> None:
    run = copied(tuning_run)
    for number in range(198):
        shutil.copytree(run / "trial_aaaa0001", run / f"trial_copy{number:04d}")
    started = time.perf_counter()
    board = read_leaderboard(run)
    assert time.perf_counter() - started < 1
    assert len(board.rows) == 201
