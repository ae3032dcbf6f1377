"""Run a tuning job: Ray Tune starts the training loop once a trial and stops the hopeless ones."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cxr_ray import cluster
from cxr_ray.config import validate
from cxr_ray.data.store import Dataset, open_dataset
from cxr_ray.errors import RunError
from cxr_ray.experiment import Experiment
from cxr_ray.paths import Location, locate
from cxr_ray.progress import progress
from cxr_ray.training.launch import differences, run_info
from cxr_ray.training.run_folder import RunFolder, now
from cxr_ray.tuning.live import LiveView, show_on
from cxr_ray.tuning.space import SPACE_FILE, Space, check_space, load_space
from cxr_ray.tuning.trial import run_trial, trial_folder_name

MAX_TRIAL_FAILURES = 2


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
        quiet: No progress display.

    Raises:
        ConfigError: In the space or its base.
        DataError: In the dataset.
        RunError: The name is taken, there is nothing to resume, or every trial failed.
        ClusterError: The cluster cannot be joined or cannot hold a trial.
    """
    cluster.check_name(name)
    loaded, experiment = load_space(space)
    if trials is not None:
        loaded = validate(Space, loaded.model_dump() | {"trials": trials}, "--trials")
    dataset = data if isinstance(data, Dataset) else open_dataset(data)
    check_space(loaded, experiment, dataset, space)
    root = locate(storage)
    location = root.child(name or cluster.unique_name(loaded.name))
    description = _describe(location.name, loaded, experiment, dataset)
    if resume:
        location = location if name else _newest_unfinished(root, loaded.name)
        _check_same(location, description)
    elif location.exists():
        raise RunError(
            "a run of this name exists", where=location, next_step="Give --resume to continue it, or another --name"
        )
    cluster.connect(address)
    resources = {"CPU": loaded.resources.cpu, "GPU": loaded.resources.gpu}
    cluster.check_fits(1, {kind: amount for kind, amount in resources.items() if amount})
    cluster.check_readable(dataset.uri, "dataset")
    location.make_dir()
    cluster.check_readable(location.uri, "storage")
    location.child(SPACE_FILE).write_json(description)
    if resume:
        _forget_unknown_trials(location)
    with progress(f"Tuning {location.name}", loaded.trials, quiet=quiet) as line:
        view = LiveView(line, location, loaded)
        with show_on(view):
            interrupted = _fit(location, loaded, experiment, dataset, resume)
        view.refresh()
    if interrupted:
        raise KeyboardInterrupt
    return _result(location, view)


def _fit(location: Location, space: Space, experiment: Experiment, dataset: Dataset, resume: bool) -> bool:
    """Run Tune to its end; True if somebody interrupted it."""
    from ray import tune as ray_tune

    from cxr_ray.tuning.live import TrialEvents
    from cxr_ray.tuning.search import build_scheduler, build_search, parameter_space

    job = {
        "run": location.uri,
        "dataset": dataset.uri,
        "experiment": experiment.model_dump(mode="json"),
        "threads": max(1, int(space.resources.cpu)),
        "gpu": space.resources.gpu > 0,
    }
    resources = {"cpu": space.resources.cpu, "gpu": space.resources.gpu}
    trainable = ray_tune.with_resources(ray_tune.with_parameters(run_trial, job=job), resources)
    if resume and ray_tune.Tuner.can_restore(location.uri):
        tuner = ray_tune.Tuner.restore(location.uri, trainable=trainable, param_space=parameter_space(space))
    else:
        slots = min(cluster.could_have(kind.upper()) // amount for kind, amount in resources.items() if amount)
        tuner = ray_tune.Tuner(
            trainable,
            param_space=parameter_space(space),
            tune_config=ray_tune.TuneConfig(
                num_samples=space.trials,
                search_alg=build_search(space),
                scheduler=build_scheduler(space, experiment.training.epochs),
                max_concurrent_trials=min(space.trials, int(slots)),
                trial_dirname_creator=trial_folder_name,
                reuse_actors=True,
            ),
            run_config=ray_tune.RunConfig(
                name=location.name,
                storage_path=location.uri.rsplit("/", 1)[0],
                failure_config=ray_tune.FailureConfig(max_failures=MAX_TRIAL_FAILURES),
                callbacks=[TrialEvents()],
                verbose=0,
            ),
        )
    results = tuner.fit()
    return results.num_terminated + results.num_errors < space.trials


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


def _check_same(location: Location, description: dict[str, Any]) -> None:
    file = location.child(SPACE_FILE)
    if not file.exists():
        raise RunError("there is no tuning run of this name to resume", where=location)
    before = file.read_json()
    changes = differences(
        {key: before[key] for key in ("space", "base")}, {key: description[key] for key in ("space", "base")}
    )
    if before["dataset"]["fingerprint"] != description["dataset"]["fingerprint"]:
        changes.append(f"dataset: {before['dataset']['fingerprint']} -> {description['dataset']['fingerprint']}")
    if changes:
        raise RunError(
            f"was made with other settings: {'; '.join(changes)}",
            where=location,
            next_step="Resume with the same space and data, or start a run of another --name",
        )


def _forget_unknown_trials(location: Location) -> None:
    """Delete the folders of trials that started after Tune last wrote down what it knows.

    Tune restores from that snapshot and starts others in their place; kept, they would be trials too many.
    """
    snapshots = [name for name in location.children() if name.startswith("experiment_state-")]
    known: set[str] = set()
    if snapshots:
        content = location.child(snapshots[-1]).read_json()
        known = {json.loads(trial)["trial_id"] for trial, _ in content["trial_data"]}
    for child in location.children():
        if child.startswith("trial_") and child.removeprefix("trial_") not in known:
            location.child(child).delete_dir()


def _newest_unfinished(root: Location, space_name: str) -> Location:
    candidates = []
    for child in root.children():
        location = root.child(child)
        if not location.child(SPACE_FILE).exists():
            continue
        description = location.child(SPACE_FILE).read_json()
        if description["space"]["name"] == space_name and not _is_finished(location, description):
            candidates.append((description["created"], location))
    if not candidates:
        names = ", ".join(name for name in root.children() if root.child(name, SPACE_FILE).exists())
        raise RunError(
            f"there is no unfinished run of space '{space_name}' (tuning runs here: {names or 'none'})",
            where=root,
            next_step="Name a run with --name, or leave out --resume",
        )
    return max(candidates, key=lambda candidate: candidate[0])[1]


def _is_finished(location: Location, description: dict[str, Any]) -> bool:
    folders = [location.child(child) for child in location.children() if child.startswith("trial_")]
    statuses = [RunFolder(folder).status() for folder in folders]
    ended = [status for status in statuses if status and status.state in ("finished", "stopped", "failed")]
    return len(ended) >= description["space"]["trials"]


def _result(location: Location, view: LiveView) -> TuneResult:
    counts = view.counts()
    if counts["failed"] == sum(counts.values()):
        reasons = "; ".join(sorted(view.reasons())) or "no trial reported an epoch"
        raise RunError(f"every trial failed: {reasons}", where=location, next_step="Mend the cause and tune again")
    return TuneResult(location, sum(counts.values()), counts["failed"])
