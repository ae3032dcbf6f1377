"""What really dies: a worker under Ray Train, and drivers of training and tuning runs, then --resume."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.timeout(600)  # several Rays start and end

OPTIONS = ["training.image_size=64", "training.batch_size=16", "training.precision=fp32", "training.patience=null"]


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "cxr_ray", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def train_arguments(phantoms, storage: Path, epochs: int, *more: str) -> list[str]:
    sets = [part for option in (*OPTIONS, f"training.epochs={epochs}") for part in ("--set", option)]
    return ["train", "tiny", "--data", str(phantoms.root), "--storage", str(storage), "--name", "run", *sets, *more]


def tune_arguments(phantoms, storage: Path, trials: int, epochs: int) -> list[str | Path]:
    overrides = {key: yaml.safe_load(value) for key, value in (option.split("=") for option in OPTIONS)}
    space = {
        "base": "tiny",
        "trials": trials,
        "overrides": overrides | {"training.epochs": epochs},
        "parameters": {"augment.exposure": {"uniform": [0, 1]}},
        "scheduler": {"kind": "none"},
    }
    file = storage / "space.yaml"
    file.write_text(yaml.safe_dump(space))
    return ["tune", file, "--data", phantoms.root, "--storage", storage, "--name", "run", "--quiet"]


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 150) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stdout.read() if process.stdout else ""
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.1)


def finish(process: subprocess.Popen[str], seconds: float = 240) -> str:
    output, _ = process.communicate(timeout=seconds)
    assert process.returncode == 0, output
    return output


def epochs_in(folder: Path) -> list[int]:
    file = folder / "history.jsonl"
    return [json.loads(line)["epoch"] for line in file.read_text().splitlines()] if file.exists() else []


def kill_family(process: subprocess.Popen[str]) -> None:
    """SIGKILL the driver and everything it started, as a lost machine would."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def train_workers() -> list[int]:
    """Worker processes of Ray Train on this machine, of whatever run."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            title = (entry / "cmdline").read_bytes()
        except (OSError, NotADirectoryError):
            continue
        if b"RayTrainWorker" in title or b"TrainWorker" in title:
            found.append(int(entry.name))
    return found


def test_a_killed_worker_is_replaced_and_goes_on_from_the_last_checkpoint(phantoms, tmp_path):
    others = set(train_workers())
    process = start(*train_arguments(phantoms, tmp_path, 25, "--workers", "2"))
    run = tmp_path / "run"
    wait_until(lambda: len(epochs_in(run)) >= 2, process)
    workers = [pid for pid in train_workers() if pid not in others]
    assert workers
    os.kill(workers[-1], signal.SIGKILL)
    finish(process)
    assert epochs_in(run) == list(range(1, 26))


def test_a_killed_training_run_is_continued_by_the_same_command_with_resume(phantoms, tmp_path):
    process = start(*train_arguments(phantoms, tmp_path, 60, "--workers", "0"))
    run = tmp_path / "run"
    wait_until(lambda: len(epochs_in(run)) >= 3, process)
    kill_family(process)
    done = len(epochs_in(run))
    assert done < 60
    first_rows = (run / "history.jsonl").read_text().splitlines()[: done - 1]
    output = finish(start(*train_arguments(phantoms, tmp_path, 60, "--workers", "0", "--resume")))
    assert "resumed after epoch" in output
    assert epochs_in(run) == list(range(1, 61))
    assert (run / "history.jsonl").read_text().splitlines()[: done - 1] == first_rows


def test_a_second_driver_is_refused_until_the_first_is_gone(phantoms, tmp_path):
    arguments = train_arguments(phantoms, tmp_path, 60, "--workers", "0", "--set", "training.loader_processes=1")
    process = start(*arguments)
    run = tmp_path / "run"
    wait_until(lambda: len(epochs_in(run)) >= 2, process)
    second = start(*arguments, "--resume")
    output, _ = second.communicate(timeout=90)
    assert (second.returncode, "Traceback" in output) == (2, False)
    assert f"{run}: another process is at work on this run" in output
    assert process.poll() is None
    # The driver alone, with the processes that it started left behind: they must not hold the run.
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()
    assert 2 <= len(epochs_in(run)) < 60
    finish(start(*arguments, "--resume"))
    assert epochs_in(run) == list(range(1, 61))


def test_ctrl_c_ends_training_cleanly_and_says_how_to_go_on(phantoms, tmp_path):
    process = start(*train_arguments(phantoms, tmp_path, 500, "--workers", "1"))
    run = tmp_path / "run"
    wait_until(lambda: len(epochs_in(run)) >= 1, process)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=90)
    assert process.returncode == 130, output
    assert "--resume" in output
    assert "Traceback" not in output
    assert json.loads((run / "status.json").read_text())["state"] == "interrupted"


def test_ctrl_c_ends_tuning_with_its_trials_interrupted_and_resumable(phantoms, tmp_path):
    arguments = tune_arguments(phantoms, tmp_path, trials=2, epochs=90)
    process = start(*arguments)
    run = tmp_path / "run"
    wait_until(lambda: len(list(run.glob("trial_*/history.jsonl"))) >= 1, process)
    time.sleep(6)  # Tune writes its own state every five seconds
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=90)
    assert (process.returncode, "Traceback" in output) == (130, False), output
    assert "--resume" in output
    states = {json.loads(file.read_text())["state"] for file in run.glob("trial_*/status.json")}
    assert states == {"interrupted"}
    before = {file: file.read_text().splitlines() for file in run.glob("trial_*/history.jsonl")}
    finish(start(*arguments, "--resume"))
    assert {len(epochs_in(folder)) for folder in run.glob("trial_*")} == {90}
    for file, rows in before.items():
        assert file.read_text().splitlines()[: len(rows)] == rows


def test_a_killed_tuning_run_is_continued_with_finished_trials_kept(phantoms, tmp_path):
    arguments = tune_arguments(phantoms, tmp_path, trials=5, epochs=12)
    process = start(*arguments)
    run = tmp_path / "run"

    def trials() -> dict[str, int]:
        return {folder.name: len(epochs_in(folder)) for folder in run.glob("trial_*")}

    wait_until(lambda: 12 in trials().values(), process)
    time.sleep(6)  # Tune writes its own state every five seconds
    kill_family(process)
    # Twelve epochs and no end yet is a trial killed in between, which rightly goes on to its end.
    states = {name: json.loads((run / name / "status.json").read_text())["state"] for name in trials()}
    finished = [name for name, state in states.items() if state == "finished"]
    assert finished
    stamps = {name: (run / name / "history.jsonl").stat().st_mtime_ns for name in finished}
    finish(start(*arguments, "--resume"), 400)
    after = trials()
    assert len(after) == 5
    assert set(after.values()) == {12}
    assert {name: (run / name / "history.jsonl").stat().st_mtime_ns for name in finished} == stamps
    exposures = [
        json.loads((folder / "experiment.json").read_text())["parameters"]["augment.exposure"]
        for folder in run.glob("trial_*")
    ]
    assert len(set(exposures)) == 5
