"""Launch one training run: under Ray Train's TorchTrainer, or in this process."""

from __future__ import annotations

import platform
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from cxr_ray import cluster
from cxr_ray.data.leakage import checked_for_leakage
from cxr_ray.data.loader import check_batch
from cxr_ray.data.store import Dataset, DatasetReference, open_dataset
from cxr_ray.errors import ClusterError, ConfigError, CxrError, RunError
from cxr_ray.experiment import Experiment, load_experiment
from cxr_ray.paths import Location, locate
from cxr_ray.progress import ProgressLine, progress
from cxr_ray.training.resume import check_name_free, choose_folder, sole_driver
from cxr_ray.training.run_folder import (
    EXPERIMENT_FILE,
    DatasetSummary,
    Replaced,
    RunFolder,
    RunInfo,
    Status,
    best_row,
    now,
)

MAX_WORKER_FAILURES = 3
_POLL_S = 0.5


@dataclass(frozen=True)
class TrainResult:
    """A finished run: where it lies, its last status, and the row of its best epoch."""

    folder: RunFolder
    status: Status
    best: dict[str, Any]


class Silent:
    """A reporter for runs in this process: the run folder already says it all."""

    def report(self, row: dict[str, Any]) -> None:
        pass


class _TrainReporter:
    """Forwards every epoch to Ray Train, which shows it in its dashboard and metrics."""

    def report(self, row: dict[str, Any]) -> None:
        import ray.train

        ray.train.report(row)


def train(
    experiment: str | Path | Experiment,
    data: str | Path | Dataset,
    *,
    workers: int = 1,
    gpu: bool = False,
    set_options: Sequence[str] = (),
    storage: str | Path = "runs",
    name: str | None = None,
    resume: bool = False,
    address: str | None = None,
    cpus_per_worker: int | None = None,
    exclude_flags: Sequence[str] = (),
    allow_leakage: bool = False,
    quiet: bool = False,
) -> TrainResult:
    """Train one experiment.

    Args:
        experiment: A preset's name, a YAML file, or an `Experiment`.
        data: A dataset folder, local or URI.
        workers: Data-parallel workers under Ray Train; 0 trains in this process, without Ray.
        gpu: One GPU a worker.
        set_options: ``key=value`` changes to the experiment.
        storage: Folder or URI that runs go to.
        name: The run's name; by default a readable, unique one.
        resume: Continue the run of this name, or, without a name, the newest unfinished run of the same
            experiment in `storage`.
        address: A running Ray cluster; None starts Ray on this machine.
        cpus_per_worker: CPUs Ray reserves for each worker; by default this machine's, shared evenly
            (1 on a cluster).
        exclude_flags: Leave out films with one of these quality flags.
        allow_leakage: Train although a patient or a film lies in more than one split; every leaderboard and model
            card will say so.
        quiet: No progress display.

    Raises:
        ConfigError: In the experiment, or a quality flag that does not exist.
        DataError: In the dataset, or a patient or a film lies in more than one of its splits.
        RunError: The name is taken, there is nothing to resume, another process is at work on the run, or
            training failed.
        ClusterError: The cluster cannot be joined or cannot hold the workers.
    """
    if workers < 0 or (cpus_per_worker is not None and cpus_per_worker < 1):
        raise ConfigError("workers must be 0 or more, and CPUs for each of them 1 or more", where="--workers")
    cluster.check_name(name)
    resolved = load_experiment(experiment, set_options=set_options)
    dataset = data if isinstance(data, Dataset) else open_dataset(data)
    dataset = checked_for_leakage(dataset.excluding(exclude_flags), allow=allow_leakage)
    resolved.check_against(dataset.classes, dataset.info.image_size)
    check_batch(resolved.training.batch_size, len(dataset.rows("train")), max(1, workers))
    root = locate(storage)
    info = run_info(name or cluster.unique_name(resolved.name), resolved, dataset, workers=workers)
    folder = choose_folder(root, info, name, resume)
    per_worker = _prepare_cluster(workers, gpu, address, cpus_per_worker, dataset.uri, root)
    folder.location.make_dir()
    with sole_driver(folder.location, [folder]):
        if not resume:
            check_name_free(folder.location, EXPERIMENT_FILE)  # again: now nobody else can take it
            folder.write_info(info)
        if (status := folder.status()) is not None and status.state in ("finished", "stopped"):
            return _result(folder)
        with progress(f"Training {folder.location.name}", resolved.training.epochs, quiet=quiet) as line:
            if workers == 0:
                _train_here(resolved, dataset, folder, gpu, line)
            else:
                _train_on_ray(folder, dataset.reference, workers, per_worker, line)
        return _result(folder)


def run_info(
    name: str,
    experiment: Experiment,
    dataset: Dataset,
    *,
    workers: int,
    trial: str | None = None,
    parameters: dict[str, Any] | None = None,
) -> RunInfo:
    """What is known of a run when it starts."""
    info = dataset.info
    summary = {key: getattr(info, key) for key in DatasetSummary.model_fields if hasattr(info, key)}
    return RunInfo(
        name=name,
        trial=trial,
        parameters=parameters or {},
        experiment=experiment,
        experiment_fingerprint=experiment.fingerprint,
        dataset=DatasetSummary(
            uri=dataset.uri,
            stored_fingerprint=dataset.stored_fingerprint,
            exclude_flags=list(dataset.exclude_flags),
            leakage=dataset.leakage,
            **summary,
        ),
        workers=workers,
        versions=_versions(),
        git_commit=_git_commit(),
        created=now(),
    )


def train_worker(job: dict[str, Any]) -> CxrError | None:
    """What every Ray Train worker runs; `job` names the run folder and the dataset.

    Returns:
        An error that starting the workers again would only repeat; what may pass (a lost worker) is raised.
    """
    import ray.train
    import ray.train.torch
    import torch

    from cxr_ray.training.inference import Workers
    from cxr_ray.training.loop import run_loop

    # Ray sets one thread a process; the worker may use what was reserved for it.
    torch.set_num_threads(job["threads"])
    workers = Workers.current()
    try:
        with workers.together():  # a node may lack what the others have
            folder = RunFolder(locate(job["folder"]))
            experiment = folder.info().experiment
            dataset = job["dataset"].open()
        run_loop(experiment, dataset, folder, _TrainReporter(), ray.train.torch.get_device())
    except CxrError as error:
        return error
    return None


def _prepare_cluster(
    workers: int,
    gpu: bool,
    address: str | None,
    cpus_per_worker: int | None,
    dataset_uri: str,
    storage: Location,
) -> dict[str, float]:
    """Make sure, before anything is written, that training can start; what a worker reserves comes back."""
    if workers == 0:
        import torch

        if gpu and not torch.cuda.is_available():
            raise ClusterError("this machine has no GPU that PyTorch can use", where="--gpu")
        return {"GPU": 1.0} if gpu else {}
    cluster.connect(address)
    if cpus_per_worker is None:
        cpus_per_worker = max(1, int(cluster.available("CPU")) // workers) if address is None else 1
    per_worker = {"CPU": float(cpus_per_worker)} | ({"GPU": 1.0} if gpu else {})
    cluster.check_fits(workers, per_worker)
    cluster.check_readable(dataset_uri, "dataset")
    storage.make_dir()
    cluster.check_readable(storage.uri, "storage")
    return per_worker


def _train_here(experiment: Experiment, dataset: Dataset, folder: RunFolder, gpu: bool, line: ProgressLine) -> None:
    import torch

    from cxr_ray.training.loop import run_loop

    with _following(folder, line), _recording_end(folder):
        run_loop(experiment, dataset, folder, Silent(), torch.device("cuda" if gpu else "cpu"))


def _train_on_ray(
    folder: RunFolder, dataset: DatasetReference, workers: int, per_worker: dict[str, float], line: ProgressLine
) -> None:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.config import LoggingConfig

    trainer = TorchTrainer(
        train_worker,
        train_loop_config={
            "folder": folder.location.uri,
            "dataset": dataset,
            "threads": int(per_worker["CPU"]),
        },
        scaling_config=ScalingConfig(num_workers=workers, use_gpu="GPU" in per_worker, resources_per_worker=per_worker),
        run_config=RunConfig(
            name=folder.location.name,
            storage_path=folder.location.parent.path,
            storage_filesystem=folder.location.filesystem,
            failure_config=FailureConfig(max_failures=MAX_WORKER_FAILURES),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    with _following(folder, line), _recording_end(folder):
        error = trainer.fit().return_value
        if error is not None:
            raise error


@contextmanager
def _recording_end(folder: RunFolder) -> Iterator[None]:
    """Write down how a run ended that did not end by itself, and say it in one sentence."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as stop:
        _write_end(folder, "interrupted", "interrupted from the keyboard")
        # Ray Train turns Ctrl-C into SystemExit.
        raise KeyboardInterrupt from stop
    except Replaced:
        raise  # the status is now somebody else's
    except Exception as error:
        known = cluster.find_cxr_error(error)
        reason = known.problem if known else cluster.reason_of(error)
        _write_end(folder, "failed", reason)
        if known:
            raise known from error
        raise RunError(
            f"training failed: {reason}",
            where=folder,
            next_step=f"Its last checkpoint is kept; continue with --name {folder.location.name} --resume",
        ) from error


def _write_end(folder: RunFolder, state: str, reason: str) -> None:
    before = folder.status() or Status(state="running")
    # A disk that is full must not hide why the run ended.
    with suppress(OSError):
        folder.write_status(before.model_copy(update={"state": state, "reason": reason}))


@contextmanager
def _following(folder: RunFolder, line: ProgressLine) -> Iterator[None]:
    """Show a run's progress while it goes on elsewhere, by reading its folder."""
    over = threading.Event()
    # A remote folder is asked less often: every look is a request somebody pays for.
    interval = _POLL_S if folder.location.is_local else 10.0
    before = folder.status()
    told: set[tuple[int, int]] = {(before.attempt, i) for i in range(len(before.notes))} if before else set()

    def look() -> None:
        status = folder.status()
        if status is None:
            return
        for i, note in enumerate(status.notes):
            if (status.attempt, i) not in told:
                told.add((status.attempt, i))
                line.say(note)
        show_progress(folder, line)

    def follow() -> None:
        while not over.wait(interval):
            look()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        look()


def show_progress(folder: RunFolder, line: ProgressLine) -> None:
    """Bring a progress line up to date with a run's folder."""
    status = folder.status()
    if status is None:
        return
    done = status.epoch + (status.step / status.steps if status.steps else 0.0)
    note = ""
    try:
        history, metric = folder.history(), folder.info().experiment.training.metric
    except (CxrError, OSError):  # only the display: the next look may succeed
        history, metric = [], ""
    if history:
        last, best = history[-1], best_row(history) or history[-1]
        note = (
            f"loss {last['train/loss']:.3f}  {metric} {last[metric]:.3f} "
            f"(best {best[metric]:.3f} at {best['epoch']})  {last['images_per_s']:.0f} images/s"
        )
    line.update(round(done, 2), note)


def _result(folder: RunFolder) -> TrainResult:
    best = best_row(folder.history())
    status = folder.status()
    if best is None or status is None:
        raise RunError("ended without a finished epoch", where=folder)
    return TrainResult(folder, status, best)


def _versions() -> dict[str, str]:
    names = ("cxr_ray", "torch", "ray", "timm", "albumentations", "numpy", "captum", "optuna")
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in names}


def _git_commit() -> str | None:
    """The commit of the checkout this package runs from; None where it was installed from a wheel."""
    try:
        answer = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None
