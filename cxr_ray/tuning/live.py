"""What a person sees while a tuning run goes on, and the ends of trials written down as they happen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from ray.tune import Callback

from cxr_ray.cluster import reason_of
from cxr_ray.experiment import lower_is_better
from cxr_ray.paths import Location
from cxr_ray.progress import ProgressLine
from cxr_ray.training.run_folder import RunFolder, Status
from cxr_ray.tuning.space import Space

_ENDED = ("finished", "stopped", "failed")


class LiveView:
    """Counts trials by how they are, and remembers the best."""

    def __init__(self, line: ProgressLine, location: Location, space: Space) -> None:
        self._line = line
        self._location = location
        self._space = space
        self._states: dict[str, str] = {}
        self._reasons: set[str] = set()
        self._scores: dict[str, float] = {}
        # Trials that a resumed run finds done.
        for child in location.children():
            status = RunFolder(location.child(child)).status() if child.startswith("trial_") else None
            if status is not None and status.state in _ENDED:
                self._states[child.removeprefix("trial_")] = status.state

    def running(self, trial_id: str, score: float | None = None) -> None:
        self._states[trial_id] = "running"
        if score is not None:
            self._scores[trial_id] = score
        self.refresh()

    def ended(self, trial_id: str) -> None:
        """Write down how a trial ended that could not do so itself: Tune ends the process of a stopped one."""
        folder = RunFolder(self._location.child(f"trial_{trial_id}"))
        status = folder.status() or Status(state="running")
        if status.state == "running":
            reason = f"by the {self._space.scheduler.kind} scheduler after epoch {status.epoch}"
            status = status.model_copy(update={"state": "stopped", "reason": reason})
            _write(folder, status)
        self._note_end(trial_id, status)

    def died(self, trial_id: str, error: str) -> None:
        """Write down the end of a trial whose process died: killed, out of memory, its node lost."""
        folder = RunFolder(self._location.child(f"trial_{trial_id}"))
        status = folder.status() or Status(state="running")
        status = status.model_copy(update={"state": "failed", "reason": error})
        _write(folder, status)
        self._note_end(trial_id, status)

    def _note_end(self, trial_id: str, status: Status) -> None:
        self._states[trial_id] = status.state
        if status.state == "failed":
            self._reasons.add(status.reason)
            self._line.say(f"trial {trial_id} failed: {status.reason}")
        self.refresh()

    def counts(self) -> Counter[str]:
        return Counter(self._states.values())

    def reasons(self) -> set[str]:
        return self._reasons

    def refresh(self) -> None:
        counts = self.counts()
        done = sum(counts[state] for state in _ENDED)
        parts = [f"{counts[state]} {state}" for state in ("running", *_ENDED) if counts[state]]
        if self._scores:
            choose = min if lower_is_better(self._space.metric) else max
            best = choose(self._scores, key=lambda trial: self._scores[trial])
            parts.append(f"best {self._space.metric} {self._scores[best]:.3f} (trial {best})")
        self._line.update(done, "  ".join(parts))


def _write(folder: RunFolder, status: Status) -> None:
    # What an event handler raises ends the whole tuning run.
    with suppress(OSError):
        folder.location.make_dir()
        folder.write_status(status)


# Tune pickles its callbacks into the run folder, and a terminal cannot be pickled, so they find it here.
_VIEWS: list[LiveView] = []


@contextmanager
def show_on(view: LiveView) -> Iterator[None]:
    """Send the events of the Tune run inside the ``with`` block to a view."""
    _VIEWS.append(view)
    try:
        yield
    finally:
        _VIEWS.remove(view)


class TrialEvents(Callback):
    """Tune's events, forwarded to the view."""

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        for view in _VIEWS:
            view.running(trial.trial_id)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        for view in _VIEWS:
            view.running(trial.trial_id, result.get("score"))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        for view in _VIEWS:
            view.ended(trial.trial_id)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        error = trial.get_error()
        for view in _VIEWS:
            view.died(trial.trial_id, reason_of(error) if error else "its process died")
