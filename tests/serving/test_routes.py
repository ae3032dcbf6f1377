"""The HTTP interface without Ray: who is let in, how much is read, what a defect looks like from outside."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from cxr_ray.bundle import Bundle
from cxr_ray.serving.access import Gate
from cxr_ray.serving.predictor import Answer, Predictor, Question
from cxr_ray.serving.routes import create_app

LIMIT = 1_000_000


@pytest.fixture(scope="module")
def predictor(bundle: Bundle) -> Iterator[Predictor]:
    predictor = Predictor(bundle, torch_threads=1, decoders=1, max_pixels=1_000_000)
    yield predictor
    predictor.close()


def application(predictor: Predictor, *keys: str) -> FastAPI:
    async def ask(question: Question) -> Answer:
        return (await predictor.answer([question]))[0]

    return create_app(predictor, ask, Gate(keys), max_upload_bytes=LIMIT)


def send(app: FastAPI, method: str, path: str, *, address: str = "127.0.0.1", **request: Any) -> httpx.Response:
    async def run() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False, client=(address, 1234))
        async with httpx.AsyncClient(transport=transport, base_url="http://cxr") as client:
            return await client.request(method, path, **request)

    return asyncio.run(run())


def test_without_a_key_only_health_is_told(predictor: Predictor, films: dict[str, bytes]) -> None:
    app = application(predictor, "first", "second")
    assert send(app, "GET", "/healthz").status_code == 200
    for method, path in (("GET", "/v1/model"), ("POST", "/v1/predict"), ("POST", "/v1/explain?class=flu")):
        response = send(app, method, path, files={"file": films["PNG"]} if method == "POST" else None)
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
        assert response.json()["code"] == "unauthorized"


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer third"},
        {"Authorization": "Bearer"},
        {"Authorization": "Basic first"},
        {"Authorization": "first"},
        {"X-API-Key": ""},
        {"X-API-Key": "first,second"},
        {"X-API-Key": b"\xff\xfe"},
    ],
)
def test_a_wrong_key_is_refused(predictor: Predictor, headers: dict[str, Any]) -> None:
    assert send(application(predictor, "first", "second"), "GET", "/v1/model", headers=headers).status_code == 401


@pytest.mark.parametrize(
    "headers", [{"Authorization": "Bearer second"}, {"authorization": "bearer first"}, {"X-API-Key": "second"}]
)
def test_any_of_the_keys_opens_from_anywhere(
    predictor: Predictor, films: dict[str, bytes], headers: dict[str, str]
) -> None:
    app = application(predictor, "first", "second")
    response = send(app, "POST", "/v1/predict", files={"file": films["PNG"]}, headers=headers, address="203.0.113.7")
    assert response.status_code == 200


@pytest.mark.parametrize(
    ("address", "status"),
    [("127.0.0.1", 200), ("::1", 200), ("::ffff:127.0.0.1", 200), ("203.0.113.7", 403), ("10.0.0.1", 403), ("?", 403)],
)
def test_without_keys_only_this_machine_is_answered(predictor: Predictor, address: str, status: int) -> None:
    assert send(application(predictor), "GET", "/v1/model", address=address).status_code == status


def test_reading_stops_at_the_limit(predictor: Predictor) -> None:
    given = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal given
        while True:
            given += 100_000
            yield bytes(100_000)

    response = send(application(predictor), "POST", "/v1/predict", content=endless())
    assert response.status_code == 413
    assert given <= LIMIT + 200_000


def test_a_declared_length_over_the_limit_is_refused_unread(predictor: Predictor) -> None:
    async def untouched() -> AsyncIterator[bytes]:
        raise AssertionError("the body was read")
        yield b""

    headers = {"content-length": "9" * 30}
    response = send(application(predictor), "POST", "/v1/predict", content=untouched(), headers=headers)
    assert response.status_code == 413


def test_a_film_with_too_many_pixels_is_refused(predictor: Predictor, films: dict[str, bytes]) -> None:
    small = Predictor(predictor.bundle, torch_threads=1, decoders=1, max_pixels=1000)
    response = send(application(small), "POST", "/v1/predict", files={"file": films["PNG"]})
    small.close()
    assert (response.status_code, response.json()["code"]) == (413, "too_many_pixels")
    assert "1,000" in response.json()["detail"]


def test_a_defect_is_a_problem_that_tells_nothing_inside(predictor: Predictor, films: dict[str, bytes]) -> None:
    async def broken(_question: Question) -> Answer:
        raise RuntimeError("secret")

    app = create_app(predictor, broken, Gate([]), max_upload_bytes=LIMIT)
    response = send(app, "POST", "/v1/predict", files={"file": films["PNG"]})
    assert (response.status_code, response.json()["code"]) == (500, "internal_error")
    assert "secret" not in response.text


def test_file_names_reach_no_log(
    predictor: Predictor, films: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for content in (films["PNG"], b"junk", b""):
        send(application(predictor), "POST", "/v1/predict", files={"file": ("doe_john_1950.png", content)})
    assert "doe_john" not in caplog.text


def test_the_description_lists_every_route_and_what_to_send(predictor: Predictor) -> None:
    description = send(application(predictor), "GET", "/openapi.json").json()
    assert set(description["paths"]) == {"/healthz", "/v1/model", "/v1/predict", "/v1/explain"}
    body = description["paths"]["/v1/predict"]["post"]["requestBody"]["content"]
    assert "file" in body["multipart/form-data"]["schema"]["properties"]


def test_the_description_tells_the_media_type_of_problems_and_where_keys_go(predictor: Predictor) -> None:
    description = send(application(predictor, "key"), "GET", "/openapi.json").json()
    for path in ("/v1/model", "/v1/predict", "/v1/explain"):
        (operation,) = description["paths"][path].values()
        assert list(operation["responses"]["401"]["content"]) == ["application/problem+json"]
        assert list(operation["responses"]["429"]["content"]) == ["text/plain"]
        schemes = [description["components"]["securitySchemes"][name] for way in operation["security"] for name in way]
        assert {(scheme["type"], scheme.get("name")) for scheme in schemes} == {("http", None), ("apiKey", "X-API-Key")}
    refused = send(application(predictor, "key"), "GET", "/v1/model")
    assert refused.headers["content-type"] == "application/problem+json"
    assert "security" not in send(application(predictor), "GET", "/openapi.json").text


@pytest.mark.parametrize(
    ("path", "detail"),
    [
        (
            "/v1/predict?explian=true",
            "no parameter 'explian' here (did you mean 'explain'?)",
        ),
        ("/v1/predict?explain=true&opacity=0.2", "no parameter 'opacity' here; allowed are explain, class"),
        ("/v1/explain?class=covd", "no class 'covd' (did you mean 'covid'?)"),
    ],
)
def test_a_misspelt_parameter_is_named_instead_of_ignored(
    predictor: Predictor, films: dict[str, bytes], path: str, detail: str
) -> None:
    response = send(application(predictor), "POST", path, files={"file": films["PNG"]})
    assert response.status_code == 422
    assert detail in response.json()["detail"]


def test_a_request_without_a_film_is_told_how_to_send_one(predictor: Predictor) -> None:
    app = application(predictor)
    for headers in ({}, {"Content-Type": "application/x-www-form-urlencoded"}):
        detail = send(app, "POST", "/v1/predict", headers=headers).json()["detail"]
        assert "-F file=@film.png" in detail
        assert "--data-binary @film.png" in detail


def test_a_wrong_method_is_told_the_right_one_and_probes_may_ask_for_the_head_alone(predictor: Predictor) -> None:
    app = application(predictor)
    assert send(app, "GET", "/v1/predict").json()["detail"] == "/v1/predict does not answer GET; it answers POST."
    head = send(app, "HEAD", "/healthz")
    assert (head.status_code, head.content) == (200, b"")
