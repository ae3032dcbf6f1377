"""The board in the terminal and as a page."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from cxr_ray.errors import RunError
from cxr_ray.leaderboard.board import Board
from cxr_ray.leaderboard.render import render_html, render_terminal, write_html
from cxr_ray.leaderboard.rows import read_leaderboard
from cxr_ray.leaderboard.text import duration_text, metric_words, short_names, value_text

Copy = Callable[..., Path]
HOSTILE = "<script>alert(1)</script>[red]\x1b[2J"


def shown(board: Board, width: int, *, terminal: bool = True) -> str:
    sink = io.StringIO()
    render_terminal(board, Console(file=sink, width=width, force_terminal=terminal, color_system=None))
    return re.sub(r"\x1b\[[0-9;]*m", "", sink.getvalue())


def with_many_parameters(board: Board) -> Board:
    keys = [f"augment.dial_number_{number}" for number in range(8)]
    rows = [
        dataclasses.replace(row, parameters={key: 0.1 * place + 0.01 * number for number, key in enumerate(keys)})
        for place, row in enumerate(board.rows)
    ]
    return dataclasses.replace(board, parameters=keys, rows=tuple(rows))


@pytest.mark.parametrize("width", [60, 100, 140])
def test_the_table_never_exceeds_the_terminal(tuning_run: Path, width: int) -> None:
    text = shown(with_many_parameters(read_leaderboard(tuning_run)), width)
    lines = [line for line in text.splitlines() if not line.startswith("Promote it:")]
    assert max(map(len, lines)) <= width
    assert "…" not in text


def test_every_trial_is_listed_with_status_scores_and_varying_parameters(tuning_run: Path) -> None:
    board = read_leaderboard(tuning_run)
    text = shown(board, 140)
    best = next(line for line in text.splitlines() if line.startswith("1  "))
    assert best.split()[1:4] == [board.rows[0].trial, "finished", "4/4"]
    for key in ("val/macro_f1", "val/accuracy", "val/recall/normal", "val/recall/covid", "val/recall/tuberculosis"):
        assert f"{board.rows[0].metrics[key]:.3f}" in best
    assert "aaaa0003  failed" in text
    assert "covid*" in text
    assert '{"covid": 3.0}' in text


def test_the_reasons_of_failed_trials_stand_below(tuning_run: Path) -> None:
    assert re.search(
        r"^aaaa0003 failed: the training loss became", shown(read_leaderboard(tuning_run), 200), re.MULTILINE
    )


def test_parameters_get_a_table_of_their_own_where_they_do_not_fit_beside_the_scores(tuning_run: Path) -> None:
    board = with_many_parameters(read_leaderboard(tuning_run))
    lines = shown(board, 100).splitlines()
    assert sum(line.startswith(" ") is False and f"  {board.rows[0].trial}  " in line for line in lines) == 2


def test_columns_that_do_not_fit_are_named(tuning_run: Path) -> None:
    text = shown(read_leaderboard(tuning_run), 60)
    left_out = text[text.index("Left out for lack of width:") :].replace("\n", " ")
    assert "time" in left_out
    assert "covid*" in text


def test_a_pipe_gets_one_table_with_everything(tuning_run: Path) -> None:
    text = shown(with_many_parameters(read_leaderboard(tuning_run)), 80, terminal=False)
    assert "Left out" not in text
    assert sum(line.startswith("1  ") for line in text.splitlines()) == 1


def test_the_best_of_many_is_called_optimistic_with_the_numbers(tuning_run: Path) -> None:
    text = "The best of 2 trials on 30 validation images looks better than it is"
    board = read_leaderboard(tuning_run)
    assert text in shown(board, 200)
    assert text in render_html(board)


def test_the_promote_command_names_the_trial_only_where_promote_would_choose_another(tuning_run: Path) -> None:
    assert f"cxr-ray promote {tuning_run} --out bundles/search" in shown(read_leaderboard(tuning_run), 100)
    board = read_leaderboard(tuning_run, sort="loss")
    assert f"--trial {board.rows[0].trial} --out" in render_html(board)


def test_foreign_text_steers_neither_terminal_nor_page(tuning_run: Path, copied: Copy) -> None:
    run = copied(tuning_run)
    status = run / "trial_aaaa0003" / "status.json"
    status.write_text(json.dumps({"state": "failed", "reason": HOSTILE}))
    board = read_leaderboard(run)
    board = dataclasses.replace(board, name=HOSTILE, dataset=board.dataset.model_copy(update={"name": HOSTILE}))
    text = shown(board, 200)
    assert "\x1b" not in text
    assert "<script>alert(1)</script>[red]?[2J" in text
    assert "<script" not in render_html(board)


def test_the_page_is_one_file_that_fetches_nothing_and_shows_every_trial(tuning_run: Path) -> None:
    board = read_leaderboard(tuning_run)
    html = render_html(board)
    assert not re.search(r'(?:src|href)="(?!data:)', html)
    assert all(row.trial in html for row in board.rows)
    # One learning curve a trial that has an epoch.
    assert html.count("<polyline") == 2
    assert f"--share:{board.rows[0].metrics['val/macro_f1']:.1%}" in html


def test_a_board_without_a_finished_epoch_is_shown_as_such(training_run: Path, copied: Copy) -> None:
    run = copied(training_run)
    (run / "history.jsonl").unlink()
    board = read_leaderboard(run)
    assert "No trial has a finished epoch yet" in shown(board, 100)
    assert "No trial has a finished epoch yet" in render_html(board)


def test_the_page_is_written_whole_over_an_old_one_and_never_over_a_folder(training_run: Path, tmp_path: Path) -> None:
    board, out = read_leaderboard(training_run), tmp_path / "board.html"
    out.write_text("old")
    assert write_html(board, out).local == out
    assert out.read_text().startswith("<!doctype html>")
    assert list(tmp_path.iterdir()) == [out]
    with pytest.raises(RunError, match=r"is a folder.*leaderboard.html"):
        write_html(board, tmp_path)


def test_short_names_keep_as_many_parts_as_tell_keys_apart() -> None:
    keys = ["loss.recall_emphasis.covid", "loss.class_weights.covid", "optimization.learning_rate"]
    assert short_names(keys, taken=["covid"]) == ["recall_emphasis.covid", "class_weights.covid", "learning_rate"]
    assert short_names(["loss.recall_emphasis.covid"], taken=["covid"]) == ["recall_emphasis.covid"]
    assert short_names(["seed"], taken=["seed"]) == ["seed"]


def test_numbers_and_metrics_read_as_people_write_them() -> None:
    assert [duration_text(seconds) for seconds in (0, 48, 720, 12_240)] == ["–", "48 s", "12 min", "3.4 h"]
    assert [value_text(value) for value in (0.00123456, 3, "focal", None, True)] == [
        "0.001235",
        "3",
        "focal",
        "null",
        "true",
    ]
    assert metric_words("val/recall/lung_opacity") == "recall of lung opacity"
    assert metric_words("val/f1/covid") == "F1 of covid"
    assert metric_words("val/macro_f1") == "macro-F1"
