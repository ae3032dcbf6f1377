"""From a space to Ray Tune's parts: search space, Optuna sampler, scheduler."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import optuna
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search.optuna import OptunaSearch

from cxr_ray.experiment import lower_is_better
from cxr_ray.tuning.space import Parameter, Space

# What trials report to Tune: the running best of the space's metric, so that Optuna and the scheduler judge a
# trial by its best epoch, as leaderboard and promote do.
SCORE = "score"


def quieten() -> None:
    """Keep Optuna and Tune from telling users what they cannot act on: studies made, `Tuner.restore` to be called.

    A resumed trial reports its last epoch twice; Optuna drops the second report, and says so.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", "The reported value is ignored because this `step", UserWarning)
    logging.getLogger("ray.tune.tune").setLevel(logging.ERROR)
    # Its traces of trials that failed or notes it could not read; both are told in a sentence.
    logging.getLogger("ray.tune.execution.tune_controller").setLevel(logging.CRITICAL)
    logging.getLogger("ray.tune.execution.experiment_state").addFilter(_is_no_race)


def _is_no_race(record: logging.LogRecord) -> bool:
    """False where Tune copied its notes at the moment it renamed one of them, whose next copy has it."""
    error = record.exc_info[1] if record.exc_info else None
    return not (isinstance(error, FileNotFoundError) and "-tmp-" in str(error))


def parameter_space(space: Space) -> dict[str, Any]:
    """Tune's search space, by dotted key."""
    return {key: _domain(parameter) for key, parameter in space.parameters.items()}


def mode(space: Space) -> str:
    """``max`` or ``min``."""
    return "min" if lower_is_better(space.metric) else "max"


def build_search(space: Space) -> OptunaSearch:
    """Optuna's TPE (Bergstra et al. 2011), its study in memory.

    A study in a live database cannot be restored reliably after the driver is killed, so it is not offered
    one. Options whose defaults changed between Optuna 4 and 5 are set.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(
            seed=space.seed,
            n_startup_trials=10,
            multivariate=True,
            # Running trials count as bad ones, so that parallel trials do not crowd one place.
            constant_liar=True,
        )
    return OptunaSearch(sampler=sampler, metric=SCORE, mode=mode(space))


def build_scheduler(space: Space, epochs: int) -> TrialScheduler:
    """The scheduler, counting epochs."""
    config = space.scheduler
    if config.kind == "none" or config.grace_epochs >= epochs:
        return FIFOScheduler()
    return ASHAScheduler(
        time_attr="epoch",
        metric=SCORE,
        mode=mode(space),
        # One more than there are: at `max_t` ASHA would stop a trial that is about to end by itself.
        max_t=epochs + 1,
        grace_period=config.grace_epochs,
        reduction_factor=config.reduction_factor,
    )


def _domain(parameter: Parameter) -> Any:
    if parameter.choice is not None:
        return tune.choice(parameter.choice)
    if parameter.uniform is not None:
        return tune.uniform(*parameter.uniform)
    if parameter.loguniform is not None:
        return tune.loguniform(*parameter.loguniform)
    low, high = parameter.integer or (0, 0)
    return tune.randint(low, high + 1)
