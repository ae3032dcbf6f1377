"""The HTTP interface, as a FastAPI application that knows nothing of Ray."""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable
from typing import Annotated, Any
from urllib.parse import quote

import numpy as np
from fastapi import APIRouter, Depends, FastAPI, Query, Request, Security
from fastapi.security import APIKeyHeader, HTTPBearer
from starlette.responses import Response

import cxr_ray
from cxr_ray.bundle import Bundle, Explanation, Prediction
from cxr_ray.errors import BundleError, DecodeError, did_you_mean
from cxr_ray.serving.access import Gate
from cxr_ray.serving.intake import UPLOAD_DESCRIPTION, extract_file, read_body
from cxr_ray.serving.predictor import Answer, Predictor, Question
from cxr_ray.serving.problems import Problem, install_handlers, problem_of
from cxr_ray.serving.schemas import Health, ModelAnswer, PredictionAnswer, PreprocessingAnswer, ProblemDetails

DEFAULT_OPACITY = 0.45
Ask = Callable[[Question], Awaitable[Answer]]
ClassName = Annotated[
    str | None, Query(alias="class", description="The class to explain; by default the predicted one")
]
Opacity = Annotated[
    float, Query(ge=0, le=1, allow_inf_nan=False, description="Of the hottest place of the heatmap, 0 to 1")
]


def _problems(texts: dict[int, str]) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": ProblemDetails, "description": text} for status, text in texts.items()}


_REFUSED = _problems(
    {
        401: "No valid API key",
        403: "The server has no API keys and answers its own machine only",
        500: "The server failed on this request",
    }
) | {
    408: {"description": "Too slow an answer; from Ray Serve", "content": {"text/plain": {}}},
    429: {"description": "Too many requests wait; Retry-After tells when to come again", "content": {"text/plain": {}}},
}
_PROBLEMS = _problems(
    {
        400: "The form is damaged",
        413: "Too many bytes or too many pixels",
        415: "Not a film",
        422: "Truncated or empty film, missing field, unknown class or parameter",
    }
)


class _App(FastAPI):
    """FastAPI, its description telling the media type that problems really have."""

    def openapi(self) -> dict[str, Any]:
        schema = super().openapi()
        for operations in schema["paths"].values():
            for operation in operations.values():
                for status, response in operation["responses"].items():
                    content = response.get("content", {})
                    if int(status) >= 400 and "application/json" in content:
                        content["application/problem+json"] = content.pop("application/json")
        return schema


def create_app(predictor: Predictor, ask: Ask, gate: Gate, *, max_upload_bytes: int) -> FastAPI:
    """The application.

    Args:
        predictor: Warmed up: an application that answers at all answers ``/healthz`` with 200.
        ask: Answers one question; batches where it can.
        gate: Judges every request below ``/v1``.
        max_upload_bytes: Largest request body.
    """
    bundle = predictor.bundle
    # Without the interactive pages: they load scripts from a public CDN into a page that holds an API key.
    app = _App(title="cxr_ray", version=cxr_ray.__version__, docs_url=None, redoc_url=None)
    install_handlers(app)
    # The gate itself judges keys; these two only tell the description of the interface where keys go.
    schemes = [Security(HTTPBearer(auto_error=False)), Security(APIKeyHeader(name="X-API-Key", auto_error=False))]
    dependencies = [Depends(gate.check), Depends(_know_parameters), *(schemes if gate.needs_key else [])]
    v1 = APIRouter(prefix="/v1", dependencies=dependencies, responses=_REFUSED)

    async def film_of(request: Request) -> np.ndarray:
        body = await read_body(request, max_upload_bytes)
        content_type = request.headers.get("content-type")
        try:
            return await predictor.in_pool(lambda: predictor.prepare(extract_file(body, content_type)))
        except DecodeError as error:
            raise problem_of(error) from error

    async def explain_film(request: Request, class_name: str | None) -> Explanation:
        if class_name is not None:
            _check_class(bundle, class_name)
        answer = await ask(Question(await film_of(request), explain=True, class_name=class_name))
        assert answer.explanation is not None
        return answer.explanation

    @app.head("/healthz", include_in_schema=False)
    @app.get("/healthz")
    async def healthz() -> Health:
        """Whether this replica's model answers."""
        return Health(model=bundle.id)

    @v1.get("/model")
    async def model() -> ModelAnswer:
        """What is being served."""
        return describe(bundle)

    @v1.post("/predict", responses=_PROBLEMS, openapi_extra=UPLOAD_DESCRIPTION, response_model_exclude_none=True)
    async def predict(request: Request, explain: bool = False, class_name: ClassName = None) -> PredictionAnswer:
        """Classify one film; with ``explain=true`` also show where the evidence lies."""
        if explain:
            explanation = await explain_film(request, class_name)
            png = await predictor.draw(explanation, DEFAULT_OPACITY)
            heatmap = f"data:image/png;base64,{base64.b64encode(png).decode()}"
            return _prediction_answer(explanation.prediction, explanation.class_name, heatmap)
        if class_name is not None:
            raise Problem(422, "invalid_parameter", "'class' chooses what to explain; add explain=true.")
        answer = await ask(Question(await film_of(request)))
        return _prediction_answer(answer.prediction)

    @v1.post(
        "/explain",
        responses={**_PROBLEMS, 200: {"content": {"image/png": {}}, "description": "The film under its heatmap"}},
        openapi_extra=UPLOAD_DESCRIPTION,
        response_class=Response,
    )
    async def explain(request: Request, class_name: ClassName = None, opacity: Opacity = DEFAULT_OPACITY) -> Response:
        """The film with the heatmap of one class on top, at the network's input size."""
        explanation = await explain_film(request, class_name)
        png = await predictor.draw(explanation, opacity)
        # Which class a picture explains is not to be seen in it; headers are ASCII, class names need not be.
        headers = {"X-Explained-Class": quote(explanation.class_name), "X-Model": explanation.prediction.model}
        return Response(png, media_type="image/png", headers=headers)

    app.include_router(v1)
    return app


def describe(bundle: Bundle) -> ModelAnswer:
    """The answer to "what is being served?"."""
    info = bundle.info
    dataset = info.provenance.get("dataset") or {}
    return ModelAnswer(
        model=bundle.id,
        name=info.name,
        created=info.created,
        classes=info.classes,
        watched_class=info.watched_class,
        preprocessing=PreprocessingAnswer(**info.preprocessing.model_dump()),
        validation=info.validation,
        dataset={key: dataset.get(key) for key in ("name", "fingerprint")},
        warnings=info.warnings,
    )


def _prediction_answer(
    prediction: Prediction, explained_class: str | None = None, heatmap: str | None = None
) -> PredictionAnswer:
    return PredictionAnswer(
        label=prediction.label,
        probabilities=prediction.probabilities,
        model=prediction.model,
        explained_class=explained_class,
        heatmap=heatmap,
    )


async def _know_parameters(request: Request) -> None:
    """Refuse parameters that mean nothing here: one that is misspelt would otherwise be as good as left out."""
    allowed = [parameter.alias for parameter in request.scope["route"].dependant.query_params]
    for name in request.query_params:
        if name not in allowed:
            known = f"allowed are {', '.join(allowed)}" if allowed else "none are allowed"
            hint = did_you_mean(name, allowed)
            raise Problem(422, "unknown_parameter", f"There is no parameter '{name}' here{hint}; {known}.")


def _check_class(bundle: Bundle, name: str) -> None:
    try:
        bundle.class_index(name)
    except BundleError as error:
        raise Problem(422, "unknown_class", f"{error}.") from error
