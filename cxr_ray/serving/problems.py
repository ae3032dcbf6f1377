"""Every error of the application in one shape: RFC 9457 problem details with a stable code.

What Ray Serve's proxy answers in its place (429 when too much waits, 408 when it takes too long) is plain text.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from cxr_ray.errors import DecodeError
from cxr_ray.serving.schemas import ProblemDetails

# Bytes that are not a film this server reads are an unsupported media type; a film of the right kind that
# cannot be used is content that cannot be processed; what is too big is too big, in bytes or in pixels.
_DECODE_STATUS = {
    "empty": 422,
    "not_an_image": 415,
    "too_many_pixels": 413,
    "truncated": 422,
    "unsupported": 415,
}


class Problem(Exception):
    """An answer other than the one asked for.

    Args:
        status: HTTP status.
        code: Stable word for programs.
        detail: One sentence for people: what is wrong, what is allowed, what to do.
        headers: Further response headers.
    """

    def __init__(self, status: int, code: str, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.headers = dict(headers or {})

    def response(self) -> Response:
        body = ProblemDetails(
            title=HTTPStatus(self.status).phrase, status=self.status, detail=self.detail, code=self.code
        )
        return JSONResponse(body.model_dump(), self.status, self.headers, media_type="application/problem+json")


def problem_of(error: DecodeError) -> Problem:
    """The problem a film that cannot be decoded makes."""
    return Problem(_DECODE_STATUS.get(error.code, 422), error.code, f"The file {error}.")


def install_handlers(app: FastAPI) -> None:
    """Let every error that leaves `app` do so as problem details."""
    app.add_exception_handler(Problem, _problem)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _invalid_parameter)
    app.add_exception_handler(ClientDisconnect, _gone)
    app.add_exception_handler(Exception, _unexpected)


def _problem(_request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return error.response()


def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    status = HTTPStatus(error.status_code)
    detail = {
        404: f"There is nothing at {request.url.path}; /openapi.json lists what there is.",
        405: f"{request.url.path} does not answer {request.method}; it answers {_allowed(error)}.",
    }.get(error.status_code, str(error.detail))
    return Problem(status.value, status.name.lower(), detail, error.headers).response()


def _allowed(error: HTTPException) -> str:
    return (error.headers or {}).get("Allow", "other methods")


def _invalid_parameter(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    name = str(first["loc"][-1])
    detail = f"The parameter '{name}' is not allowed to be {first.get('input')!r}: {first['msg']}."
    return Problem(422, "invalid_parameter", detail).response()


def _gone(_request: Request, _error: Exception) -> Response:
    # Nobody reads this answer; without a handler every broken upload would be logged as a server error.
    return Problem(400, "disconnected", "The client closed the connection before the upload was complete.").response()


def _unexpected(_request: Request, _error: Exception) -> Response:
    return Problem(500, "internal_error", "The server failed on this request; its log holds the reason.").response()
