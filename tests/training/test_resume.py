"""Who may write a run: one driver at a time, the newest start of the loop, and only what the run was made as."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from cxr_ray.errors import RunError
from cxr_ray.experiment import Experiment, load_experiment
from cxr_ray.paths import Location, locate
from cxr_ray.training.checkpoints import checkpoint_epochs
from cxr_ray.training.launch import Silent, run_info, train
from cxr_ray.training.loop import run_loop
from cxr_ray.training.resume import sole_driver
from cxr_ray.training.run_folder import Replaced, RunFolder, Status

FAST = ["training.image_size=64", "training.batch_size=16", "training.precision=fp32", "training.epochs=2"]


def run(
    phantoms,
    storage,
    *options,
    name: str | None = "run",
    resume: bool = False,
    experiment: str | Experiment = "tiny",
):
    return train(
        experiment,
        phantoms,
        workers=0,
        set_options=[*FAST, *options],
        storage=storage,
        name=name,
        resume=resume,
        quiet=True,
    )


def interrupt(folder: RunFolder) -> None:
    status = folder.status()
    assert status is not None
    folder.write_status(status.model_copy(update={"state": "interrupted"}))


@pytest.fixture(scope="module")
def finished(phantoms, tmp_path_factory) -> RunFolder:
    return run(phantoms, tmp_path_factory.mktemp("runs")).folder


def copy_of(finished: RunFolder, storage: Path, name: str) -> RunFolder:
    import shutil

    shutil.copytree(finished.location.local, storage / name)
    return RunFolder(locate(storage / name))


def test_a_run_that_another_driver_works_on_is_refused_and_named(finished, phantoms, tmp_path):
    folder = copy_of(finished, tmp_path, "run")
    interrupt(folder)
    with (
        sole_driver(folder.location, [folder]),
        pytest.raises(RunError, match=r"/run: another process is at work on this run\. Wait for its end, or stop it"),
    ):
        run(phantoms, tmp_path, resume=True)
    assert run(phantoms, tmp_path, resume=True).status.state == "finished"


@pytest.mark.parametrize(
    ("state", "seconds_ago", "refused"),
    [("running", 30, True), ("running", 200, False), ("interrupted", 1, False)],
)
def test_on_remote_storage_a_run_heard_of_lately_counts_as_alive(tmp_path, monkeypatch, state, seconds_ago, refused):
    folder = RunFolder(locate(f"fsspec+file://{tmp_path}").child("run"))
    folder.location.make_dir()
    clock = time.time()
    monkeypatch.setattr(time, "time", lambda: clock - seconds_ago)
    folder.write_status(Status(state=state))
    monkeypatch.setattr(time, "time", lambda: clock)
    if refused:
        message = r"run: was heard of 30 s ago, .* If that was killed, give --resume again in 90 s"
        with pytest.raises(RunError, match=message), sole_driver(folder.location, [folder]):
            pass
    else:
        with sole_driver(folder.location, [folder]):
            pass


class StartsAnotherLoop:
    """A reporter in whose first report the run is continued to its end by somebody else."""

    def __init__(self, folder: RunFolder, dataset) -> None:
        self.folder, self.dataset, self.done = folder, dataset, False

    def report(self, row) -> None:
        if not self.done:
            self.done = True
            run_loop(self.folder.info().experiment, self.dataset, self.folder, Silent(), torch.device("cpu"))


def test_a_loop_that_was_started_again_elsewhere_writes_no_more(phantoms, tmp_path):
    experiment = load_experiment("tiny", set_options=[*FAST, "training.epochs=3"])
    folder = RunFolder(locate(tmp_path / "run"))
    folder.write_info(run_info("run", experiment, phantoms, workers=0))
    with pytest.raises(Replaced, match="another process has gone on with this run"):
        run_loop(experiment, phantoms, folder, StartsAnotherLoop(folder, phantoms), torch.device("cpu"))
    status = folder.status()
    assert status is not None
    assert (status.state, status.epoch, status.attempt) == ("finished", 3, 2)
    written = [file.stat().st_mtime_ns for file in sorted((tmp_path / "run").rglob("*")) if file.is_file()]
    assert max(written) <= int(status.heartbeat * 1e9) + 50_000_000
    assert checkpoint_epochs(folder.location)[-1] == 3


def test_without_a_name_the_newest_unfinished_run_of_the_same_settings_goes_on(finished, phantoms, tmp_path):
    for name in ("older", "newer", "done"):
        folder = copy_of(finished, tmp_path, name)
        created = {"older": "2026-01-01", "newer": "2026-01-02", "done": "2026-01-03"}[name]
        folder.write_info(folder.info().model_copy(update={"created": created}))
        if name != "done":
            interrupt(folder)
    # Newer still, but made with other settings, or unreadable, or no run.
    longer = copy_of(finished, tmp_path, "longer")
    experiment = load_experiment("tiny", set_options=[*FAST, "training.epochs=9"])
    longer.write_info(run_info("longer", experiment, phantoms, workers=0))
    interrupt(longer)
    broken = copy_of(finished, tmp_path, "broken")
    broken.location.child("experiment.json").write_bytes(b"{")
    (tmp_path / "notes.txt").write_text("not a run")
    assert run(phantoms, tmp_path, name=None, resume=True).folder.location.name == "newer"
    assert run(phantoms, tmp_path, name=None, resume=True).folder.location.name == "older"
    with pytest.raises(RunError, match=r"no unfinished run of experiment 'tiny'") as raised:
        run(phantoms, tmp_path, name=None, resume=True)
    assert "longer (training.epochs: 9 -> 2)" in str(raised.value)
    assert "done (finished)" in str(raised.value)
    assert "broken" not in str(raised.value)


def test_without_a_name_a_run_that_somebody_works_on_is_passed_over(finished, phantoms, tmp_path):
    older, newer = (copy_of(finished, tmp_path, name) for name in ("older", "newer"))
    for folder, created in ((older, "2026-01-01"), (newer, "2026-01-02")):
        folder.write_info(folder.info().model_copy(update={"created": created}))
        interrupt(folder)
    with sole_driver(newer.location, [newer]):
        assert run(phantoms, tmp_path, name=None, resume=True).folder.location.name == "older"
        with pytest.raises(RunError, match=r"every unfinished run of experiment 'tiny' is being worked on: newer"):
            run(phantoms, tmp_path, name=None, resume=True)


def test_a_resumed_run_tells_where_it_goes_on_and_which_checkpoints_it_skipped(finished, phantoms, tmp_path, capsys):
    folder = copy_of(finished, tmp_path, "run")
    interrupt(folder)
    (tmp_path / "run" / "checkpoint_000002" / "SHA256SUMS").unlink()
    train("tiny", phantoms, workers=0, set_options=FAST, storage=tmp_path, name="run", resume=True)
    said = capsys.readouterr().err
    assert said.count("skipped checkpoint 2: its checksums do not verify") == 1
    assert said.count("resumed after epoch 1") == 1
    status = folder.status()
    assert status is not None
    assert status.notes[-1] == "resumed after epoch 1"


def test_a_copied_experiment_under_another_name_is_another_experiment(finished, phantoms, tmp_path):
    interrupt(copy_of(finished, tmp_path, "run"))
    copied = load_experiment("tiny").model_copy(update={"name": "other"})
    with pytest.raises(RunError, match=r"experiment 'other' .* run \(name: tiny -> other\)"):
        run(phantoms, tmp_path, name=None, resume=True, experiment=copied)
    # By its own name a run goes on whatever its file is called by now.
    assert run(phantoms, tmp_path, resume=True, experiment=copied).status.state == "finished"


def test_another_dataset_is_named_in_the_refusal(finished, tmp_path):
    from cxr_ray.data.phantom_dataset import make_phantoms

    other = make_phantoms(tmp_path / "others", images=60, size=64, seed=1, quiet=True)
    interrupt(copy_of(finished, tmp_path, "run"))
    message = rf"dataset: dataset \(\w+\) -> others \({other.info.fingerprint}\)"
    with pytest.raises(RunError, match=rf"made with other settings: {message}"):
        run(other, tmp_path, resume=True)
    with pytest.raises(RunError, match=message):
        run(other, tmp_path, name=None, resume=True)


def test_a_folder_with_something_else_in_it_is_not_taken_for_a_run(phantoms, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "space.json").write_text("{}")
    with pytest.raises(RunError, match=r"/run: this folder holds something else\. Give another --name"):
        run(phantoms, tmp_path)
    # What a driver leaves that was killed before it wrote anything does not keep the name.
    (tmp_path / "run" / "space.json").rename(tmp_path / "run" / ".driver.lock")
    assert run(phantoms, tmp_path).status.state == "finished"


class Remembers(RunFolder):
    """A run folder that keeps what was said in it."""

    def __init__(self, location: Location) -> None:
        super().__init__(location)
        self.said: list[Status] = []

    def write_status(self, status: Status) -> None:
        super().write_status(status)
        self.said.append(status)


def test_a_run_shows_signs_of_life_while_it_validates_and_measures(phantoms, tmp_path, monkeypatch):
    from cxr_ray.training import loop

    experiment = load_experiment("tiny", set_options=[*FAST, "training.epochs=1", "training.batch_size=2"])
    folder = Remembers(locate(tmp_path / "run"))
    folder.write_info(run_info("run", experiment, phantoms, workers=0))
    monkeypatch.setattr(loop, "_STATUS_INTERVAL_S", 0.0)
    run_loop(experiment, phantoms, folder, Silent(), torch.device("cpu"))
    train_images, passes = len(phantoms.rows("train")), [len(phantoms.rows(s)) for s in ("val", "calibration", "train")]
    steps = train_images // 2
    beats = [status for status in folder.said if status.state == "running" and status.steps]
    assert len({status.step for status in beats}) == steps
    assert sum(status.step == steps for status in beats) == 1 + sum(-(-images // 2) for images in passes)
    last = folder.status()
    assert last is not None
    assert (last.state, last.step, last.steps) == ("finished", 0, 0)


def test_a_sign_of_life_that_cannot_be_written_does_not_end_the_run(phantoms, tmp_path, monkeypatch):
    from cxr_ray.training import loop

    class Full(Remembers):
        def write_status(self, status: Status) -> None:
            if status.steps:
                raise OSError(28, "No space left on device")
            super().write_status(status)

    experiment = load_experiment("tiny", set_options=[*FAST, "training.epochs=1"])
    folder = Full(locate(tmp_path / "run"))
    folder.write_info(run_info("run", experiment, phantoms, workers=0))
    monkeypatch.setattr(loop, "_STATUS_INTERVAL_S", 0.0)
    assert run_loop(experiment, phantoms, folder, Silent(), torch.device("cpu")).state == "finished"
