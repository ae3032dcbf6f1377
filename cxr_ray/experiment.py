"""Experiment: everything that decides what a training run computes, from a preset or a YAML file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from cxr_ray.config import parse_override, read_yaml, set_dotted, validate
from cxr_ray.data.augment import AugmentConfig
from cxr_ray.data.loader import Sampling
from cxr_ray.errors import ConfigError, did_you_mean
from cxr_ray.model.dual_backbone import NetworkConfig
from cxr_ray.model.losses import LossConfig
from cxr_ray.model.optimization import OptimizationConfig

_PLAIN_METRICS = ("macro_f1", "accuracy", "macro_recall", "macro_precision", "loss")
_CLASS_METRICS = ("recall", "precision", "f1", "recall_at_precision")


class TrainingConfig(BaseModel):
    """How long and how fast.

    Attributes:
        epochs: At most this many passes over the training split.
        batch_size: Images a step over all workers together.
        image_size: Edge of the network's input in pixels, 64 or more, at most the dataset's.
        precision: ``auto`` (bf16 where the device computes in it, else fp32), ``bf16`` or ``fp32``.
        channels_last: Store activations with channels innermost, which convolutions run faster on.
        metric: Chooses the best epoch: a validation metric such as ``val/macro_f1`` or ``val/recall/covid``.
        patience: Stop after this many epochs without a better metric; null never stops early.
        precision_floor: The precision at which ``val/recall_at_precision/<class>`` is measured.
        sampling: ``shuffle`` (every image once an epoch) or ``class_balanced`` (every class equally often).
        loader_processes: Processes a worker that read and augment images; 0 does it in the worker itself.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    epochs: int = Field(default=40, ge=1)
    batch_size: int = Field(default=32, ge=2)
    image_size: int = Field(default=224, ge=64)
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    channels_last: bool = True
    metric: str = "val/macro_f1"
    patience: int | None = Field(default=10, ge=1)
    precision_floor: float = Field(default=0.9, gt=0, le=1)
    sampling: Sampling = "shuffle"
    loader_processes: int = Field(default=0, ge=0)

    @field_validator("metric")
    @classmethod
    def _full_key(cls, value: str) -> str:
        return full_metric_key(value)


class Experiment(BaseModel):
    """One configuration of everything; frozen, and written whole into every run and bundle.

    Attributes:
        name: Names the runs made from it.
        seed: Of initial weights, shuffling and augmentation.
        watched_class: The class whose misses cost most; null is ``covid`` where the dataset has it.
        network: The network.
        loss: The loss.
        optimization: Optimiser and learning rate.
        augment: Augmentation strengths.
        training: Length, batch, precision, stopping.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(default="experiment", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    seed: int = Field(default=0, ge=0, lt=2**32)
    watched_class: str | None = None
    network: NetworkConfig = NetworkConfig()
    loss: LossConfig = LossConfig()
    optimization: OptimizationConfig = OptimizationConfig()
    augment: AugmentConfig = AugmentConfig()
    training: TrainingConfig = TrainingConfig()

    @property
    def fingerprint(self) -> str:
        """16 hex digits of sha256 over the configuration, its name left out."""
        content = self.model_dump(mode="json", exclude={"name"})
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def watched(self, classes: Sequence[str]) -> str:
        """The watched class, given the dataset's classes: as configured, else covid, else the last."""
        if self.watched_class is not None:
            return self.watched_class
        return "covid" if "covid" in classes else classes[-1]

    def check_against(self, classes: Sequence[str], image_size: int) -> None:
        """Check what only a dataset can tell: class names and the image size.

        Raises:
            ConfigError: Naming the key.
        """
        if self.watched_class is not None and self.watched_class not in classes:
            raise _no_such_class(self.watched_class, classes, "watched_class")
        check_metric(self.training.metric, classes, "training.metric")
        for key in ("class_weights", "recall_emphasis"):
            value = getattr(self.loss, key)
            if isinstance(value, dict):
                for name in value:
                    if name not in classes:
                        raise _no_such_class(name, classes, f"loss.{key}")
        if self.training.image_size > image_size:
            raise ConfigError(
                f"the experiment asks for {self.training.image_size} px, the dataset holds {image_size} px",
                where="training.image_size",
                next_step=f"Ask for {image_size} px or less, or import again with a larger --size",
            )


def load_experiment(
    source: str | Path | Experiment,
    overrides: Mapping[str, Any] | None = None,
    set_options: Sequence[str] = (),
) -> Experiment:
    """Load an experiment.

    Args:
        source: A preset's name (`preset_names`), a YAML file, or an experiment to derive from.
        overrides: Values by dotted key, applied on top.
        set_options: ``key=value`` texts, applied last.

    Raises:
        ConfigError: Naming file, key, value and what is allowed.
    """
    if isinstance(source, Experiment):
        content, where = source.model_dump(mode="json"), f"experiment {source.name}"
    else:
        content, where = _read(source)
    for key, value in (overrides or {}).items():
        set_dotted(content, key, value)
    for text in set_options:
        key, value = parse_override(text)
        set_dotted(content, key, value)
    if set_options:
        where = f"{where} with --set"
    return validate(Experiment, content, where)


def preset_names() -> list[str]:
    """Names of the experiments that ship with the package."""
    folder = resources.files("cxr_ray") / "presets"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def full_metric_key(name: str) -> str:
    """``macro_f1`` to ``val/macro_f1``; a key that already names its split stays."""
    return name if name.startswith("val/") else f"val/{name}"


def lower_is_better(metric: str) -> bool:
    """Whether a metric key counts a loss."""
    return metric.endswith("/loss")


def check_metric(metric: str, classes: Sequence[str], where: str) -> None:
    """Raise `ConfigError` unless `metric` is a validation metric of a dataset with these classes."""
    name = full_metric_key(metric).removeprefix("val/")
    allowed = [*_PLAIN_METRICS, *(f"{kind}/{label}" for kind in _CLASS_METRICS for label in classes)]
    if name not in allowed:
        raise ConfigError(
            f"'{metric}' is not a validation metric{did_you_mean(name, allowed)}; allowed are "
            f"{', '.join(_PLAIN_METRICS)}, and {', '.join(_CLASS_METRICS)} with /<class> behind "
            f"({', '.join(classes)})",
            where=where,
        )


def _no_such_class(name: str, classes: Sequence[str], where: str) -> ConfigError:
    return ConfigError(
        f"'{name}' is not a class of the dataset{did_you_mean(name, classes)}; it has {', '.join(classes)}",
        where=where,
        next_step="Name one of these, or leave the key out",
    )


def _read(source: str | Path) -> tuple[dict[str, Any], str]:
    path = Path(source)
    if path.suffix in (".yaml", ".yml"):
        content = read_yaml(path)
        content.setdefault("name", path.stem)
        return content, str(path)
    presets = preset_names()
    if str(source) not in presets:
        raise ConfigError(
            f"'{source}' is neither a preset{did_you_mean(str(source), presets)} nor a YAML file; "
            f"presets are {', '.join(presets)}",
        )
    file = resources.files("cxr_ray") / "presets" / f"{source}.yaml"
    with resources.as_file(file) as preset:
        return read_yaml(preset), f"preset {source}"
