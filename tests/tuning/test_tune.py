"""A real tuning run on a real Ray: trials as folders, failures as rows, nothing left running."""

from __future__ import annotations

import json
import logging
import shutil
import signal
from pathlib import Path

import pytest
import yaml

from cxr_ray.errors import RunError
from cxr_ray.leaderboard.rows import read_leaderboard
from cxr_ray.paths import locate
from cxr_ray.training.resume import sole_driver
from cxr_ray.training.run_folder import RunFolder
from cxr_ray.tuning.run import tune
from cxr_ray.tuning.search import quieten

pytestmark = pytest.mark.usefixtures("local_ray")

SPACE = {
    "base": "tiny",
    "trials": 4,
    "metric": "macro_f1",
    "overrides": {
        "training.image_size": 64,
        "training.epochs": 3,
        "training.batch_size": 16,
        "training.precision": "fp32",
        "optimization.clip_norm": 1e30,
    },
    # Half of the choices cannot train: their loss is no number from the first step on.
    "parameters": {
        "optimization.learning_rate": {"choice": [0.001, 1e30]},
        "loss.recall_emphasis.covid": {"uniform": [1, 4]},
    },
    "scheduler": {"kind": "asha", "grace_epochs": 1, "reduction_factor": 2},
}


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    path = tmp_path_factory.mktemp("space") / "mixed.yaml"
    path.write_text(yaml.safe_dump(SPACE))
    return path


@pytest.fixture(scope="module")
def tuned(space, phantoms, tmp_path_factory):
    return tune(space, phantoms, storage=tmp_path_factory.mktemp("runs"), name="mixed", quiet=True)


def folders(result):
    names = [name for name in result.location.children() if name.startswith("trial_")]
    return [RunFolder(result.location.child(name)) for name in names]


def test_every_trial_is_a_run_folder_that_ended(tuned):
    assert tuned.trials == 4
    states = [folder.status().state for folder in folders(tuned)]  # pyright: ignore[reportOptionalMemberAccess]
    assert len(states) == 4
    assert set(states) <= {"finished", "stopped", "failed"}


def test_a_trial_that_fails_says_why_and_the_others_go_on(tuned):
    failed = [folder for folder in folders(tuned) if folder.info().parameters["optimization.learning_rate"] > 1]
    assert len(failed) == tuned.failed > 0
    for folder in failed:
        status = folder.status()
        assert status is not None and status.state == "failed"
        assert "training loss became" in status.reason
    assert tuned.failed < 4


def test_a_trial_trained_what_the_search_chose(tuned):
    for folder in folders(tuned):
        info = folder.info()
        assert info.experiment.loss.recall_emphasis == {"covid": info.parameters["loss.recall_emphasis.covid"]}
        assert info.experiment.training.epochs == 3


def test_the_leaderboard_reads_the_run(tuned):
    board = read_leaderboard(str(tuned.location))
    assert len(board.rows) == 4
    assert sum(row.status == "failed" for row in board.rows) == tuned.failed


def test_a_name_in_use_is_refused_and_a_changed_space_is_not_resumed(tuned, space, phantoms):
    storage = tuned.location.local.parent
    with pytest.raises(RunError, match="a run of this name exists"):
        tune(space, phantoms, storage=storage, name="mixed", quiet=True)
    with pytest.raises(RunError, match=r"other settings: space\.trials: 4 -> 9"):
        tune(space, phantoms, storage=storage, name="mixed", trials=9, resume=True, quiet=True)
    with pytest.raises(RunError, match=r"no unfinished run of space 'mixed'.*: mixed \(finished\)"):
        tune(space, phantoms, storage=storage, resume=True, quiet=True)
    with pytest.raises(RunError, match="there is no tuning run of this name to resume"):
        tune(space, phantoms, storage=storage, name="nobody", resume=True, quiet=True)


def copy_of(tuned, storage: Path) -> Path:
    shutil.copytree(tuned.location.local, storage / "mixed")
    return storage / "mixed"


def test_a_run_that_another_driver_works_on_is_refused(tuned, space, phantoms, tmp_path):
    run = copy_of(tuned, tmp_path)
    before = sorted(path.name for path in run.iterdir())
    with sole_driver(locate(run), []), pytest.raises(RunError, match="mixed: another process is at work on this run"):
        tune(space, phantoms, storage=tmp_path, name="mixed", resume=True, quiet=True)
    assert sorted(path.name for path in run.iterdir()) == before


def test_resuming_leaves_the_runs_description_as_it_was(tuned, space, phantoms, tmp_path):
    run = copy_of(tuned, tmp_path)
    (run / "space.json").write_text((run / "space.json").read_text() + "\n")
    before = (run / "space.json").read_text()
    tune(space, phantoms, storage=tmp_path, name="mixed", resume=True, quiet=True)
    assert (run / "space.json").read_text() == before


def test_damaged_descriptions_and_notes_are_named_and_delete_nothing(tuned, space, phantoms, tmp_path):
    run = copy_of(tuned, tmp_path)
    trials = sorted(path.name for path in run.glob("trial_*"))
    notes = sorted(run.glob("experiment_state-*.json"))[-1]
    whole, pickled = notes.read_text(), (run / "tuner.pkl").read_bytes()
    (run / "tuner.pkl").write_bytes(pickled[:100])
    with pytest.raises(RunError, match=r"tuner\.pkl: Tune's own notes are damaged"):
        tune(space, phantoms, storage=tmp_path, name="mixed", resume=True, quiet=True)
    notes.write_text(whole[:100])
    with pytest.raises(RunError, match=rf"{notes.name}: Tune's own notes are damaged"):
        tune(space, phantoms, storage=tmp_path, name="mixed", resume=True, quiet=True)
    for damaged in ("{", "{}", "[]"):
        (run / "space.json").write_text(damaged)
        with pytest.raises(RunError, match=r"mixed: space\.json is damaged"):
            tune(space, phantoms, storage=tmp_path, name="mixed", resume=True, quiet=True)
    with pytest.raises(RunError, match="the runs here are: none"):
        tune(space, phantoms, storage=tmp_path, resume=True, quiet=True)
    assert sorted(path.name for path in run.glob("trial_*")) == trials


def test_a_search_that_cannot_be_read_is_no_interruption_and_leaves_no_trace_on_the_screen(
    tuned, space, phantoms, tmp_path, capfd
):
    run = copy_of(tuned, tmp_path)
    for state in (*run.glob("searcher-state-*"), *run.glob("search_gen_state-*")):
        state.write_bytes(b"junk")
    trial = RunFolder(locate(sorted(run.glob("trial_*"))[0]))
    status = trial.status()
    assert status is not None
    trial.write_status(status.model_copy(update={"state": "interrupted"}))
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(RunError, match=r"mixed: Tune's own notes are damaged"):
        tune(space, phantoms, storage=tmp_path, name="mixed", resume=True, quiet=True)
    assert signal.getsignal(signal.SIGINT) is handler
    assert "Traceback" not in capfd.readouterr().err


def test_remote_storage_holds_a_run_like_a_local_one(space, phantoms, tmp_path):
    content = SPACE | {"overrides": SPACE["overrides"] | {"training.epochs": 1}, "trials": 2}
    content["parameters"] = {"augment.exposure": {"uniform": [0, 1]}}
    path = tmp_path / "far.yaml"
    path.write_text(yaml.safe_dump(content))
    storage = f"fsspec+file://{tmp_path}/runs"
    (tmp_path / "runs").mkdir()
    assert tune(path, phantoms, storage=storage, name="far", quiet=True).trials == 2
    assert len(list((tmp_path / "runs" / "far").glob("trial_*/history.jsonl"))) == 2
    # Tune's notes lie beside the trials, so that it can be continued.
    assert tune(path, phantoms, storage=storage, name="far", resume=True, quiet=True).trials == 2


def test_the_run_describes_its_search(tuned, phantoms):
    content = json.loads(locate(tuned.location).child("space.json").read_bytes())
    assert content["space"]["metric"] == "val/macro_f1"
    assert content["dataset"]["fingerprint"] == phantoms.info.fingerprint
    assert set(content["space"]["parameters"]) == set(SPACE["parameters"])


def test_a_run_whose_trials_all_fail_ends_in_their_reason(space, phantoms, tmp_path):
    content = SPACE | {"parameters": {"optimization.learning_rate": {"choice": [1e30]}}, "trials": 1}
    path = tmp_path / "hopeless.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(RunError, match=r"every trial failed: .*training loss became"):
        tune(path, phantoms, storage=tmp_path, name="hopeless", quiet=True)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (FileNotFoundError(2, "Failed to open local file '/run/.3224ba28-tmp-search_gen_state.json'"), False),
        (OSError(28, "No space left on device"), True),
    ],
)
def test_a_copy_of_tunes_notes_that_met_a_renaming_is_not_told_and_a_full_disk_is(error, told):
    quieten()
    record = logging.LogRecord("", logging.ERROR, "", 1, "Saving failed", None, (type(error), error, None))
    assert bool(logging.getLogger("ray.tune.execution.experiment_state").filter(record)) is told
