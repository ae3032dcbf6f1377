"""Which run a command starts or continues, and that one driver at a time does."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from filelock import FileLock, Timeout

from cxr_ray.errors import RunError
from cxr_ray.paths import Location
from cxr_ray.training.run_folder import EXPERIMENT_FILE, SILENT_AFTER_S, RunFolder, RunInfo

DRIVER_LOCK = ".driver.lock"
# A killed driver's memory is given back, and its lock with it, a moment after the kill.
_RELEASE_S = 5.0


@dataclass(frozen=True)
class Candidate:
    """A run that lies in the storage.

    Attributes:
        location: Its folder.
        created: ISO 8601.
        unfinished: Whether there is anything to continue.
        changes: How it differs from what was asked for; empty where it is the same.
    """

    location: Location
    created: str
    unfinished: bool
    changes: list[str]

    def __str__(self) -> str:
        changes = "; ".join(self.changes[:3]) + ("; ..." if len(self.changes) > 3 else "")
        return f"{self.location.name} ({changes if self.unfinished else 'finished'})"


def choose_folder(storage: Location, info: RunInfo, name: str | None, resume: bool) -> RunFolder:
    """The folder of the run to start or, with `resume`, to continue.

    Args:
        storage: Where runs lie.
        info: The run that was asked for.
        name: The run's name; None continues the newest unfinished run like `info`.
        resume: Continue instead of starting.

    Raises:
        RunError: The name is taken, or there is nothing to continue.
    """
    if resume and name is None:
        candidates = list(_candidates(storage, info))
        return RunFolder(newest_unfinished(candidates, f"experiment '{info.experiment.name}'", storage))
    folder = RunFolder(storage.child(info.name))
    if not resume:
        check_name_free(folder.location, EXPERIMENT_FILE)
        return folder
    if not folder.exists():
        raise RunError("there is no run of this name to resume", where=folder, next_step="Leave out --resume")
    check_same(folder.location, _changes(folder.info(), info))
    return folder


def check_name_free(location: Location, description: str) -> None:
    """Refuse a folder that holds something; `description` is the file that makes it a run like the new one."""
    if location.child(description).exists():
        raise RunError(
            "a run of this name exists", where=location, next_step="Give --resume to continue it, or another --name"
        )
    # Hidden files are all that a driver killed at its very start leaves.
    if not all(name.startswith(".") for name in location.children()):
        raise RunError("this folder holds something else", where=location, next_step="Give another --name")


def check_same(location: Location, changes: list[str]) -> None:
    """A run may only be continued as what it was."""
    if changes:
        raise RunError(
            f"was made with other settings: {'; '.join(changes)}",
            where=location,
            next_step="Resume with the same settings and data, or start a run of another --name",
        )


def newest_unfinished(candidates: Sequence[Candidate], what: str, storage: Location) -> Location:
    """The newest run that is unfinished and the same as `what`. Raises RunError, listing all there are."""
    fitting = [candidate for candidate in candidates if candidate.unfinished and not candidate.changes]
    if not fitting:
        raise RunError(
            f"there is no unfinished run of {what} with these settings and data; "
            f"the runs here are: {', '.join(map(str, candidates)) or 'none'}",
            where=storage,
            next_step="Give the settings and data of one of them, or leave out --resume",
        )
    # A run that somebody works on needs nobody to continue it; the one that was left behind does.
    left = [candidate for candidate in fitting if not _is_driven(candidate.location)]
    if not left:
        raise RunError(
            f"every unfinished run of {what} is being worked on: {', '.join(run.location.name for run in fitting)}",
            where=storage,
            next_step="Wait for its end, or leave out --resume to start another",
        )
    return max(left, key=lambda candidate: candidate.created).location


def differences(before: dict[str, Any], after: dict[str, Any], prefix: str = "") -> list[str]:
    """What changed between two nested mappings, ``a.b: 1 -> 2`` each."""
    changes = []
    for key in sorted({*before, *after}):
        old, new = before.get(key), after.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            changes += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            changes.append(f"{prefix}{key}: {old} -> {new}")
    return changes


@contextmanager
def sole_driver(location: Location, folders: Sequence[RunFolder]) -> Iterator[None]:
    """Keep other drivers out of a run for the time of a ``with`` block.

    A folder on this machine is locked, and the system takes the lock away from a process that is killed. Remote
    storage has no locks; there a run that was heard of lately counts as alive.

    Args:
        location: The run's folder, which exists.
        folders: What has a status: the run itself, or the trials of a tuning run.

    Raises:
        RunError: Another driver is at work on it.
    """
    if not location.is_local:
        _check_silent(location, folders)
        yield
        return
    lock = FileLock(location.local / DRIVER_LOCK, timeout=_RELEASE_S)
    try:
        lock.acquire()
    except Timeout as error:
        raise RunError(
            "another process is at work on this run",
            where=location,
            next_step="Wait for its end, or stop it and then give --resume; another --name starts a run beside it",
        ) from error
    try:
        yield
    finally:
        lock.release()


def _is_driven(location: Location) -> bool:
    """Whether a driver on this machine, or one that shares its disk, holds the run's lock."""
    if not location.is_local:
        return False  # `sole_driver` asks the statuses
    lock = FileLock(location.local / DRIVER_LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        return True
    lock.release()
    return False


def _check_silent(location: Location, folders: Sequence[RunFolder]) -> None:
    statuses = [folder.status() for folder in folders]
    heard = max((status.heartbeat for status in statuses if status and status.state == "running"), default=0.0)
    wait = heard + SILENT_AFTER_S - time.time()
    if wait > 0:
        raise RunError(
            f"was heard of {SILENT_AFTER_S - wait:.0f} s ago, so another process seems to be at work on this run",
            where=location,
            next_step=f"If that was killed, give --resume again in {wait:.0f} s; otherwise wait for its end",
        )


def _candidates(storage: Location, info: RunInfo) -> Iterator[Candidate]:
    for name in storage.children():
        folder = RunFolder(storage.child(name))
        try:
            if not folder.exists():
                continue
            other, status = folder.info(), folder.status()
        except (RunError, OSError):  # somebody else's trouble
            continue
        # A copy of the file under another name is another experiment, even while it says the same.
        names = differences({"name": other.experiment.name}, {"name": info.experiment.name})
        unfinished = status is None or status.can_resume
        yield Candidate(folder.location, other.created, unfinished, names + _changes(other, info))


def _changes(before: RunInfo, after: RunInfo) -> list[str]:
    old, new = before.dataset, after.dataset
    changes = [f"dataset: {old.name} ({old.fingerprint}) -> {new.name} ({new.fingerprint})"]
    was, is_now = (info.experiment.model_dump(mode="json", exclude={"name"}) for info in (before, after))
    return (changes if old.fingerprint != new.fingerprint else []) + differences(was, is_now)
