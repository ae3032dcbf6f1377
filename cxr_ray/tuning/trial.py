"""One trial: the training loop inside a Tune actor, in a run folder of its own."""

from __future__ import annotations

from typing import Any

from cxr_ray.errors import CxrError
from cxr_ray.experiment import Experiment, load_experiment
from cxr_ray.paths import locate
from cxr_ray.training.launch import run_info
from cxr_ray.training.run_folder import Replaced, RunFolder, Status


class _TuneReporter:
    """Tells Tune the running best, which search and scheduler judge by."""

    def report(self, row: dict[str, Any]) -> None:
        from ray import tune

        tune.report({"score": row["score"], "epoch": row["epoch"]})


def trial_folder_name(trial: Any) -> str:
    """The folder of a Tune trial inside the run's."""
    return f"trial_{trial.trial_id}"


def run_trial(config: dict[str, Any], job: dict[str, Any]) -> None:
    """Train one configuration; resumes from the trial's own checkpoints when Tune starts it again.

    An error of the trial's own (a loss that is no number, memory that does not suffice) is written down and
    ends the trial without being raised: Tune starts what raised again, which mends lost processes and would
    only repeat this.

    Args:
        config: What the search chose, by dotted key.
        job: ``run`` by path or URI, ``dataset`` (a `DatasetReference`), ``experiment`` to start from, ``threads``,
            ``gpu``.
    """
    import torch
    from ray import tune

    from cxr_ray.training.loop import run_loop

    trial_id = tune.get_context().get_trial_id()
    folder = RunFolder(locate(job["run"]).child(f"trial_{trial_id}"))
    if (status := folder.status()) is not None and status.state in ("finished", "stopped"):
        # It had ended when the driver was killed, and Tune's older snapshot does not know.
        if history := folder.history():
            _TuneReporter().report(history[-1])
        return
    torch.set_num_threads(job["threads"])
    try:
        dataset = job["dataset"].open()
        experiment = load_experiment(Experiment.model_validate(job["experiment"]), config)
        if not folder.exists():
            info = run_info(f"trial_{trial_id}", experiment, dataset, workers=1, trial=trial_id, parameters=config)
            folder.write_info(info)
        device = torch.device("cuda" if job["gpu"] else "cpu")
        run_loop(experiment, dataset, folder, _TuneReporter(), device)
    except Replaced:
        raise  # the status is now somebody else's
    except Exception as error:
        reason = error.problem if isinstance(error, CxrError) else f"{type(error).__name__}: {error}"
        folder.location.make_dir()
        status = folder.status() or Status(state="failed")
        folder.write_status(status.model_copy(update={"state": "failed", "reason": reason}))
