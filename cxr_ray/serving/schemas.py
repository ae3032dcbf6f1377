"""What the HTTP interface answers, as typed models; they make the OpenAPI description too."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

INTENDED_USE = "Research use only; not a medical device."


class Health(BaseModel):
    """The model has answered a film since this replica started.

    Attributes:
        status: Always ``ok``; a replica that is not does not answer.
        model: The bundle's id.
    """

    status: str = "ok"
    model: str


class PredictionAnswer(BaseModel):
    """One film's answer.

    Attributes:
        label: The class decided on, by the bundle's operating thresholds.
        probabilities: Calibrated probability of every class; they sum to 1.
        model: The bundle's id (sha256, 64 hex digits).
        explained_class: The class the heatmap is for; only if an explanation was asked for.
        heatmap: The film with the heatmap on top, at the network's input size: a ``data:image/png;base64,``
            URI; only if an explanation was asked for.
    """

    label: str
    probabilities: dict[str, float]
    model: str
    explained_class: str | None = None
    heatmap: str | None = None


class PreprocessingAnswer(BaseModel):
    """How a film becomes the network's input.

    Attributes:
        dataset_size: Edge of the squares the network was trained from, pixels.
        fit: ``squash``, ``pad`` or ``crop``.
        network_size: Edge of the network's input and of heatmaps, pixels.
    """

    dataset_size: int
    fit: str
    network_size: int


class ModelAnswer(BaseModel):
    """What is being served.

    Attributes:
        model: The bundle's id (sha256, 64 hex digits).
        name: The bundle's name.
        created: When it was promoted, ISO 8601.
        classes: In the order of the network's outputs.
        watched_class: The class whose misses cost most.
        validation: Metrics on the validation split.
        dataset: Name and fingerprint of the dataset it was trained on.
        warnings: Sentences every reader should see.
        intended_use: What the answers may be used for.
    """

    model: str
    name: str
    created: str
    classes: list[str]
    watched_class: str
    preprocessing: PreprocessingAnswer
    validation: dict[str, Any]
    dataset: dict[str, Any]
    warnings: list[str]
    intended_use: str = INTENDED_USE


class ProblemDetails(BaseModel):
    """An error after RFC 9457.

    Attributes:
        type: ``about:blank``: the title is the HTTP status's.
        title: The HTTP status in words.
        status: The HTTP status.
        detail: What is wrong, what is allowed, what to do.
        code: Stable word for programs, such as ``truncated``.
    """

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    code: str = Field(examples=["not_an_image", "too_large", "unknown_class"])
