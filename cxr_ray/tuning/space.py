"""A tuning space: which parameters of an experiment are searched, by what, for how long."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from cxr_ray.config import field_at, read_yaml, validate
from cxr_ray.data.store import Dataset
from cxr_ray.errors import ConfigError
from cxr_ray.experiment import Experiment, check_metric, full_metric_key, load_experiment

SPACE_FILE = "space.json"  # in a tuning run's folder: what was searched, from what, on what


class Parameter(BaseModel):
    """What one parameter may be: exactly one of the four.

    Attributes:
        choice: One of these values.
        uniform: A number between two, evenly.
        loguniform: A number between two above 0, evenly in its logarithm.
        integer: Written ``int``: a whole number from the first to the second, both included.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, serialize_by_alias=True, allow_inf_nan=False)

    choice: list[Any] | None = None
    uniform: tuple[float, float] | None = None
    loguniform: tuple[float, float] | None = None
    integer: tuple[int, int] | None = Field(default=None, alias="int")

    @model_validator(mode="after")
    def _one_sensible_range(self) -> Parameter:
        ranges = {"uniform": self.uniform, "loguniform": self.loguniform, "int": self.integer}
        given = [ends for ends in (self.choice, *ranges.values()) if ends is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of choice, {', '.join(ranges)}")
        if self.choice is not None:
            if not self.choice:
                raise ValueError("choice needs at least one value")
            return self
        low, high = given[0]
        if low >= high:
            raise ValueError(f"the lower end {low:g} must be below the upper end {high:g}")
        if self.loguniform is not None and low <= 0:
            raise ValueError(f"loguniform needs ends above 0, got {low:g}")
        return self

    def probes(self) -> list[Any]:
        """Values that are all allowed only if the whole range is: every choice, or both ends and a fraction."""
        if self.choice is not None:
            return self.choice
        if self.integer is not None:
            return list(self.integer)
        low, high = self.uniform or self.loguniform or (0.0, 0.0)
        return [low, low + 0.382 * (high - low), high]


class SchedulerConfig(BaseModel):
    """Which trials are stopped early.

    Attributes:
        kind: ``asha`` (Li et al. 2020, arXiv 1810.05934) or ``none``.
        grace_epochs: Epochs every trial gets.
        reduction_factor: At every rung one in this many trials goes on.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["asha", "none"] = "asha"
    grace_epochs: int = Field(default=2, ge=1)
    reduction_factor: int = Field(default=3, ge=2)


class Resources(BaseModel):
    """What Ray reserves for a trial; a fraction of a GPU shares it without isolating memory."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    cpu: float = Field(default=1, gt=0)
    gpu: float = Field(default=0, ge=0)


class Space(BaseModel):
    """One tuning job.

    Attributes:
        name: Names the runs made from it.
        base: A preset's name or a YAML file (relative to the space's own) that every trial starts from.
        metric: What is maximised (``val/loss``: minimised).
        trials: How many configurations are tried.
        seed: Of the search.
        overrides: Fixed changes to the base, by dotted key.
        parameters: What is searched, by dotted key.
        scheduler: Who is stopped early.
        resources: What a trial gets.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(default="space", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    base: str
    metric: str = "val/macro_f1"
    trials: int = Field(default=16, ge=1)
    seed: int = Field(default=0, ge=0, lt=2**32)
    overrides: dict[str, Any] = Field(default_factory=dict)
    parameters: dict[str, Parameter] = Field(min_length=1)
    scheduler: SchedulerConfig = SchedulerConfig()
    resources: Resources = Resources()

    @field_validator("metric")
    @classmethod
    def _full_key(cls, value: str) -> str:
        return full_metric_key(value)


def load_space(path: str | Path) -> tuple[Space, Experiment]:
    """Load a space and the experiment its trials start from, overrides applied.

    Raises:
        ConfigError: Naming file, key, value and what is allowed: also where a parameter is not in the
            experiment's schema, or a value in its range is not allowed there.
    """
    path = Path(path)
    if not path.exists():
        raise ConfigError(
            "there is no such file", where=path, next_step="Name a YAML file such as tune_spaces/smoke.yaml"
        )
    content = read_yaml(path)
    content.setdefault("name", path.stem)
    space = validate(Space, content, path)
    base = space.base
    if base.endswith((".yaml", ".yml")):
        base = str(path.parent / base)
    for key in (*space.overrides, *space.parameters):
        section = "overrides" if key in space.overrides else "parameters"
        try:
            field_at(Experiment, key)
        except KeyError as error:
            raise ConfigError(str(error.args[0]), where=f"{path}, key {section}.{key}") from error
    clash = sorted(set(space.overrides) & set(space.parameters))
    if clash:
        raise ConfigError("is both fixed under overrides and searched", where=f"{path}, key parameters.{clash[0]}")
    try:
        experiment = load_experiment(base, {**space.overrides, "training.metric": space.metric})
    except ConfigError as error:
        raise ConfigError(str(error), where=f"{path}, base and overrides") from error
    for key, value in _probes(space):
        try:
            load_experiment(experiment, {key: value})
        except ConfigError as error:
            raise ConfigError(error.problem, where=f"{path}, key parameters.{key}") from error
    return space, experiment


def check_space(space: Space, experiment: Experiment, dataset: Dataset, where: object) -> None:
    """Check what only a dataset can tell: class names, metric and image sizes.

    Raises:
        ConfigError: Naming the key.
    """
    check_metric(space.metric, dataset.classes, f"{where}, key metric")
    try:
        experiment.check_against(dataset.classes, dataset.info.image_size)
    except ConfigError as error:
        at = f"{where}, key overrides.{error.where}"
        raise ConfigError(error.problem, where=at, next_step=error.next_step) from error
    for key, value in _probes(space):
        try:
            load_experiment(experiment, {key: value}).check_against(dataset.classes, dataset.info.image_size)
        except ConfigError as error:
            at = f"{where}, key parameters.{key}"
            raise ConfigError(error.problem, where=at, next_step=error.next_step) from error


def _probes(space: Space) -> list[tuple[str, Any]]:
    return [(key, value) for key, parameter in space.parameters.items() for value in parameter.probes()]
