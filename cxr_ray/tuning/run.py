"""Run a tuning job: Ray Tune starts the training loop once a trial and stops the hopeless ones."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from cxr_ray import cluster
from cxr_ray.config import validate
from cxr_ray.data.leakage import checked_for_leakage
from cxr_ray.data.store import Dataset, open_dataset
from cxr_ray.errors import CxrError, RunError
from cxr_ray.experiment import Experiment
from cxr_ray.paths import Location, locate
from cxr_ray.progress import progress
from cxr_ray.training.launch import run_info
from cxr_ray.training.resume import (
    Candidate,
    check_name_free,
    check_same,
    differences,
    newest_unfinished,
    sole_driver,
)
from cxr_ray.training.run_folder import DatasetSummary, RunFolder, now
from cxr_ray.tuning.live import LiveView, show_on
from cxr_ray.tuning.space import SPACE_FILE, Space, check_space, load_space
from cxr_ray.tuning.trial import run_trial, trial_folder_name

MAX_TRIAL_FAILURES = 2


class _Space(BaseModel):
    model_config = ConfigDict(extra="allow")

    trials: int


class _Description(BaseModel):
    """The part of `space.json` that decides whether a run is continued."""

    model_config = ConfigDict(extra="ignore")

    space: _Space
    base: dict[str, Any]
    dataset: DatasetSummary
    created: str


@dataclass(frozen=True)
class TuneResult:
    """A tuning run: where it lies, and how many of its trials ended how."""

    location: Location
    trials: int
    failed: int


def tune(
    space: str | Path,
    data: str | Path | Dataset,
    *,
    trials: int | None = None,
    storage: str | Path = "runs",
    name: str | None = None,
    resume: bool = False,
    address: str | None = None,
    exclude_flags: Sequence[str] = (),
    allow_leakage: bool = False,
    quiet: bool = False,
) -> TuneResult:
    """Search a space with Optuna, trials in parallel as the cluster allows.

    Args:
        space: A YAML file; see `cxr_ray.tuning.space.Space`.
        data: A dataset folder, local or URI.
        trials: How many configurations, instead of the file's number.
        storage: Folder or URI that runs go to.
        name: The run's name; by default a readable, unique one.
        resume: Continue the run of this name, or, without a name, the newest unfinished run of the same
            space in `storage`: finished trials stay, unfinished ones go on from their checkpoints.
        address: A running Ray cluster; None starts Ray on this machine.
        exclude_flags: Leave out films with one of these quality flags.
        allow_leakage: Tune although a patient or a film lies in more than one split; every leaderboard and model
            card will say so.
        quiet: No progress display.

    Raises:
        ConfigError: In the space or its base, or a quality flag that does not exist.
        DataError: In the dataset, or a patient or a film lies in more than one of its splits.
        RunError: The name is taken, there is nothing to resume, another process is at work on the run, or
            every trial failed.
        ClusterError: The cluster cannot be joined or cannot hold a trial.
    """
    cluster.check_name(name)
    loaded, experiment = load_space(space)
    if trials is not None:
        loaded = validate(Space, loaded.model_dump() | {"trials": trials}, "--trials")
    dataset = data if isinstance(data, Dataset) else open_dataset(data)
    dataset = checked_for_leakage(dataset.excluding(exclude_flags), allow=allow_leakage)
    check_space(loaded, experiment, dataset, space)
    root = locate(storage)
    location = root.child(name or cluster.unique_name(loaded.name))
    description = _describe(location.name, loaded, experiment, dataset)
    if not resume:
        check_name_free(location, SPACE_FILE)
    elif name is None:
        candidates = list(_candidates(root, description))
        location = newest_unfinished(candidates, f"space '{loaded.name}'", root)
    else:
        check_same(location, _changes(_read_description(location), description))
    cluster.connect(address)
    resources = {"CPU": loaded.resources.cpu, "GPU": loaded.resources.gpu}
    reserved = {kind: amount for kind, amount in resources.items() if amount}
    cluster.check_fits(1, reserved, what="trial", where=f"{space}, key resources")
    cluster.check_readable(dataset.uri, "dataset")
    location.make_dir()
    cluster.check_readable(location.uri, "storage")
    with sole_driver(location, _trial_folders(location)):
        if resume:
            _forget_unknown_trials(location)
        else:
            check_name_free(location, SPACE_FILE)  # again: now nobody else can take it
            location.child(SPACE_FILE).write_json(description)
        with progress(f"Tuning {location.name}", loaded.trials, quiet=quiet) as line:
            view = LiveView(line, location, loaded)
            with show_on(view), _recording_ends(location):
                interrupted = _fit(location, loaded, experiment, dataset, resume)
            view.refresh()
    if not _is_finished(location, description):
        if interrupted:
            raise KeyboardInterrupt
        raise _damaged_notes(location)  # what else ends Tune without a word
    return _result(location, view)


def _fit(location: Location, space: Space, experiment: Experiment, dataset: Dataset, resume: bool) -> bool:
    """Run Tune to its end; True if somebody interrupted it."""
    from ray import tune as ray_tune

    from cxr_ray.tuning.live import TrialEvents
    from cxr_ray.tuning.search import build_scheduler, build_search, parameter_space, quieten

    quieten()
    job = {
        "run": location.uri,
        "dataset": dataset.reference,
        "experiment": experiment.model_dump(mode="json"),
        "threads": max(1, int(space.resources.cpu)),
        "gpu": space.resources.gpu > 0,
    }
    resources = {"cpu": space.resources.cpu, "gpu": space.resources.gpu}
    trainable = ray_tune.with_resources(ray_tune.with_parameters(run_trial, job=job), resources)
    if resume and ray_tune.Tuner.can_restore(location.path, location.filesystem):
        try:
            tuner = ray_tune.Tuner.restore(
                location.path,
                trainable=trainable,
                param_space=parameter_space(space),
                storage_filesystem=location.filesystem,
            )
        except Exception as error:  # whatever unpickling a damaged file comes to
            raise _damaged_notes(location.child("tuner.pkl")) from error
    else:
        slots = cluster.could_hold({kind.upper(): amount for kind, amount in resources.items()})
        tuner = ray_tune.Tuner(
            trainable,
            param_space=parameter_space(space),
            tune_config=ray_tune.TuneConfig(
                num_samples=space.trials,
                search_alg=build_search(space),
                scheduler=build_scheduler(space, experiment.training.epochs),
                max_concurrent_trials=min(space.trials, slots),
                trial_dirname_creator=trial_folder_name,
                reuse_actors=True,
            ),
            run_config=ray_tune.RunConfig(
                name=location.name,
                storage_path=location.parent.path,
                storage_filesystem=location.filesystem,
                failure_config=ray_tune.FailureConfig(max_failures=MAX_TRIAL_FAILURES),
                callbacks=[TrialEvents()],
                verbose=0,
            ),
        )
    with _catching_interrupts() as interrupted:
        tuner.fit()
    return interrupted()


@contextmanager
def _catching_interrupts() -> Iterator[Callable[[], bool]]:
    """Tell whether Ctrl-C was pressed inside the block, which Tune takes for itself and tells nobody.

    Tune puts its own handler in place and, when it is called, the former one back; when it is not, Tune's stays and
    would swallow the next Ctrl-C of this process.
    """
    former = signal.getsignal(signal.SIGINT)
    pressed = False
    try:
        yield lambda: pressed
    finally:
        if threading.current_thread() is threading.main_thread():
            pressed = signal.getsignal(signal.SIGINT) is former
            signal.signal(signal.SIGINT, former)


@contextmanager
def _recording_ends(location: Location) -> Iterator[None]:
    """Say in one sentence why Tune failed, and write down that trials it left running were interrupted."""
    try:
        yield
    except CxrError:
        raise
    except Exception as error:
        raise cluster.find_cxr_error(error) or RunError(
            f"tuning failed: {cluster.reason_of(error)}",
            where=location,
            next_step=f"Finished trials and checkpoints are kept; continue with --name {location.name} --resume",
        ) from error
    finally:
        with suppress(OSError):
            for folder in _trial_folders(location):
                if (status := folder.status()) is not None and status.state == "running":
                    update = {"state": "interrupted", "reason": "the tuning run ended first"}
                    folder.write_status(status.model_copy(update=update))


def _describe(name: str, space: Space, experiment: Experiment, dataset: Dataset) -> dict[str, Any]:
    summary = run_info(name, experiment, dataset, workers=1)
    return {
        "schema_version": 1,
        "name": name,
        "space": space.model_dump(mode="json", exclude_none=True),
        "base": experiment.model_dump(mode="json"),
        "dataset": summary.dataset.model_dump(mode="json"),
        "versions": summary.versions,
        "git_commit": summary.git_commit,
        "created": now(),
    }


def _read_description(location: Location) -> dict[str, Any]:
    file = location.child(SPACE_FILE)
    if not file.exists():
        raise RunError("there is no tuning run of this name to resume", where=location, next_step="Leave out --resume")
    try:
        return _Description.model_validate(file.read_json()).model_dump()
    except ValueError as error:
        raise RunError(
            f"{SPACE_FILE} is damaged or was written by another version of cxr-ray",
            where=location,
            next_step="Restore it from a copy, or start a run of another --name",
        ) from error


def _changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """How two descriptions of tuning runs differ in what they compute."""

    def described(description: dict[str, Any]) -> dict[str, Any]:
        return {
            "space": description["space"],
            "base": description["base"],
            "dataset": description["dataset"]["fingerprint"],
        }

    return differences(described(before), described(after))


def _forget_unknown_trials(location: Location) -> None:
    """Delete the folders of trials that started after Tune last wrote down what it knows.

    Tune restores from that snapshot and starts others in their place; kept, they would be trials too many.
    """
    snapshots = [name for name in location.children() if name.startswith("experiment_state-")]
    known: set[str] = set()
    if snapshots:
        snapshot = location.child(snapshots[-1])
        try:
            known = {json.loads(trial)["trial_id"] for trial, _ in snapshot.read_json()["trial_data"]}
        except (ValueError, TypeError, KeyError) as error:
            raise _damaged_notes(snapshot) from error
    for folder in _trial_folders(location):
        if folder.location.name.removeprefix("trial_") not in known:
            folder.location.delete_dir()


def _damaged_notes(where: Location) -> RunError:
    return RunError(
        "Tune's own notes are damaged, so it cannot go on with its trials",
        where=where,
        next_step="Promote from the trials there are, or start a run of another --name",
    )


def _candidates(root: Location, description: dict[str, Any]) -> Iterator[Candidate]:
    for name in root.children():
        location = root.child(name)
        try:
            if not location.child(SPACE_FILE).exists():
                continue
            other = _read_description(location)
            unfinished = not _is_finished(location, other)
            yield Candidate(location, other["created"], unfinished, _changes(other, description))
        except (RunError, OSError):  # somebody else's trouble
            continue


def _trial_folders(location: Location) -> list[RunFolder]:
    return [RunFolder(location.child(name)) for name in location.children() if name.startswith("trial_")]


def _is_finished(location: Location, description: dict[str, Any]) -> bool:
    statuses = [folder.status() for folder in _trial_folders(location)]
    ended = [status for status in statuses if status and status.state in ("finished", "stopped", "failed")]
    return len(ended) >= description["space"]["trials"]


def _result(location: Location, view: LiveView) -> TuneResult:
    counts = view.counts()
    if counts["failed"] == sum(counts.values()):
        reasons = "; ".join(sorted(view.reasons())) or "no trial reported an epoch"
        raise RunError(f"every trial failed: {reasons}", where=location, next_step="Mend the cause and tune again")
    return TuneResult(location, sum(counts.values()), counts["failed"])
