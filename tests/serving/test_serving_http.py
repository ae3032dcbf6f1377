"""The HTTP interface over real HTTP, against a real Ray Serve application."""

from __future__ import annotations

import base64
import io
import socket
import struct
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from cxr_ray.bundle import Bundle
from cxr_ray.explanation.overlay import png_bytes
from cxr_ray.serving.launch import LocalService

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "DICOM")


def bomb() -> bytes:
    """A PNG of a few bytes that claims 50,000 x 50,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100)))


def check_problem(response: httpx.Response, status: int, code: str, *words: str) -> None:
    """Every error has the same shape, and says what is wrong."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert set(problem) == {"type", "title", "status", "detail", "code"}
    assert (problem["status"], problem["code"]) == (status, code)
    for word in words:
        assert word in problem["detail"]


def check_agrees(answer: dict[str, Any], bundle: Bundle, film: bytes) -> None:
    expected = bundle.predict(film)
    assert answer["label"] == expected.label
    assert answer["model"] == bundle.id
    assert answer["probabilities"] == pytest.approx(expected.probabilities, abs=1e-5)


@pytest.mark.parametrize("form", FORMATS)
def test_an_uploaded_film_is_answered_as_the_bundle_answers_it(
    client: httpx.Client, bundle: Bundle, films: dict[str, bytes], form: str
) -> None:
    response = client.post("/v1/predict", files={"file": films[form]})
    assert response.status_code == 200, response.text
    assert set(response.json()) == {"label", "probabilities", "model"}
    check_agrees(response.json(), bundle, films[form])


def test_a_dicom_film_gives_the_answer_of_the_same_film_as_png(client: httpx.Client, films: dict[str, bytes]) -> None:
    answers = [client.post("/v1/predict", files={"file": films[form]}).json() for form in ("PNG", "DICOM")]
    assert answers[0]["probabilities"] == pytest.approx(answers[1]["probabilities"], abs=0.01)


@pytest.mark.parametrize("content_type", ["image/png", "application/octet-stream", "application/dicom", None])
def test_a_film_may_be_the_body_itself(
    client: httpx.Client, bundle: Bundle, films: dict[str, bytes], content_type: str | None
) -> None:
    headers = {} if content_type is None else {"content-type": content_type}
    response = client.post("/v1/predict", content=films["PNG"], headers=headers)
    check_agrees(response.json(), bundle, films["PNG"])


def test_an_explanation_is_the_overlay_at_the_networks_size(
    client: httpx.Client, bundle: Bundle, films: dict[str, bytes]
) -> None:
    query = {"class": "tuberculosis", "opacity": "0.8"}
    response = client.post("/v1/explain", params=query, files={"file": films["PNG"]})
    assert response.headers["content-type"] == "image/png"
    assert response.headers["x-explained-class"] == "tuberculosis"
    picture = np.asarray(Image.open(io.BytesIO(response.content)))
    size = bundle.info.preprocessing.network_size
    assert (picture.shape, picture.dtype) == ((size, size, 3), np.uint8)
    expected = bundle.explain(films["PNG"], "tuberculosis").overlay(0.8)
    assert np.abs(picture.astype(int) - expected).max() <= 2


def test_an_explanation_without_a_class_is_of_the_predicted_one(
    client: httpx.Client, bundle: Bundle, films: dict[str, bytes]
) -> None:
    response = client.post("/v1/explain", files={"file": films["PNG"]})
    assert response.headers["x-explained-class"] == bundle.predict(films["PNG"]).label


def test_a_prediction_with_explanation_holds_the_heatmap_as_a_data_uri(
    client: httpx.Client, bundle: Bundle, films: dict[str, bytes]
) -> None:
    query = {"explain": "true", "class": "covid"}
    answer = client.post("/v1/predict", params=query, files={"file": films["JPEG"]}).json()
    check_agrees(answer, bundle, films["JPEG"])
    assert answer["explained_class"] == "covid"
    kind, _, content = answer["heatmap"].partition(",")
    assert kind == "data:image/png;base64"
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))
    expected = Image.open(io.BytesIO(png_bytes(bundle.explain(films["JPEG"], "covid").overlay())))
    assert np.abs(picture.astype(int) - np.asarray(expected)).max() <= 2


def test_what_is_served_is_described(client: httpx.Client, bundle: Bundle) -> None:
    answer = client.get("/v1/model").json()
    assert (answer["model"], answer["name"], answer["classes"]) == (bundle.id, "untrained", bundle.classes)
    assert answer["preprocessing"] == {"dataset_size": 128, "fit": "pad", "network_size": 96}
    # JSON has no NaN: a metric that could not be measured is null.
    assert answer["validation"]["metrics"] == {"macro_f1": 0.2, "recall/covid": None}
    assert answer["dataset"] == {"name": "phantoms", "fingerprint": "0123456789abcdef"}
    assert answer["warnings"] == ["untrained"]
    assert "not a medical device" in answer["intended_use"]


def test_a_service_that_answers_is_healthy(client: httpx.Client, bundle: Bundle) -> None:
    response = client.get("/healthz")
    assert (response.status_code, response.json()) == (200, {"status": "ok", "model": bundle.id})


def hostile_files(films: dict[str, bytes]) -> dict[str, tuple[bytes, int, str]]:
    """Bytes, status and code of files that are no film."""
    png, dicom = films["PNG"], films["DICOM"]
    return {
        "text": (b"this is not a film", 415, "not_an_image"),
        "zip": (b"PK\x03\x04" + bytes(100), 415, "not_an_image"),
        "empty": (b"", 422, "empty"),
        "truncated PNG": (png[: len(png) // 2], 422, "truncated"),
        "truncated JPEG": (films["JPEG"][:-200], 422, "truncated"),
        "truncated DICOM": (dicom[:-200], 422, "truncated"),
        "DICOM without pixels": (dicom[:400], 415, "unsupported"),
        "bomb": (bomb(), 413, "too_many_pixels"),
        "one pixel": (png_bytes(np.zeros((1, 1), np.uint8)), 415, "unsupported"),
    }


def test_a_file_that_is_no_film_is_refused_with_its_reason(client: httpx.Client, films: dict[str, bytes]) -> None:
    for path in ("/v1/predict", "/v1/explain"):
        for content, status, code in hostile_files(films).values():
            check_problem(client.post(path, files={"file": content}), status, code)


def test_a_form_without_the_field_names_the_field_it_needs(client: httpx.Client, films: dict[str, bytes]) -> None:
    response = client.post("/v1/predict", files={"image": films["PNG"]})
    check_problem(response, 422, "missing_file", "'file'", "'image'")


def test_a_body_that_is_no_form_and_no_film_is_refused(client: httpx.Client) -> None:
    check_problem(client.post("/v1/predict", json={"file": "x"}), 415, "unsupported_media_type", "application/json")
    check_problem(client.post("/v1/predict", data={"file": "x"}), 415, "unsupported_media_type", "curl -F")
    check_problem(client.post("/v1/predict"), 422, "empty")
    damaged = {"content-type": "multipart/form-data; boundary=B"}
    check_problem(client.post("/v1/predict", content=b"--C\r\n\r\n", headers=damaged), 400, "malformed_form")


def test_an_unknown_class_is_answered_with_the_classes_there_are(client: httpx.Client, films: dict[str, bytes]) -> None:
    for path, query in (("/v1/explain", {"class": "flu"}), ("/v1/predict", {"class": "flu", "explain": "1"})):
        response = client.post(path, params=query, files={"file": films["PNG"]})
        check_problem(response, 422, "unknown_class", "'flu'", "normal, covid, tuberculosis")


@pytest.mark.parametrize("query", ["opacity=2", "opacity=-1", "opacity=nan", "opacity=thick"])
def test_an_impossible_opacity_is_refused_by_name(client: httpx.Client, films: dict[str, bytes], query: str) -> None:
    response = client.post(f"/v1/explain?{query}", files={"file": films["PNG"]})
    check_problem(response, 422, "invalid_parameter", "'opacity'")


def test_a_class_without_an_explanation_is_refused_rather_than_ignored(
    client: httpx.Client, films: dict[str, bytes]
) -> None:
    response = client.post("/v1/predict?class=covid", files={"file": films["PNG"]})
    check_problem(response, 422, "invalid_parameter", "explain=true")


def test_unknown_paths_and_methods_are_problems_too(client: httpx.Client) -> None:
    check_problem(client.get("/v2/predict"), 404, "not_found", "/v2/predict")
    check_problem(client.get("/v1/predict"), 405, "method_not_allowed", "GET")


def test_a_body_over_the_limit_is_refused_with_and_without_a_length(client: httpx.Client) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(30):
            yield bytes(100_000)

    check_problem(client.post("/v1/predict", files={"file": bytes(2_000_001)}), 413, "too_large", "2 MB")
    check_problem(client.post("/v1/predict", content=chunks()), 413, "too_large", "2 MB")


@pytest.mark.parametrize("length", [5_000_000_000, 40], ids=["more than it is", "less than it is"])
def test_a_content_length_that_lies_is_refused(service: LocalService, length: int) -> None:
    host, port = service.url.removeprefix("http://").split(":")
    body = b'--B\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\nnot a film\r\n--B--\r\n'
    head = (
        f"POST /v1/predict HTTP/1.1\r\nHost: {host}\r\nContent-Type: multipart/form-data; boundary=B\r\n"
        f"Content-Length: {length}\r\nConnection: close\r\n\r\n"
    )
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(head.encode() + body)
        status = connection.recv(4096).split(b"\r\n", 1)[0]
    assert status.split()[1] in (b"413", b"400")


def test_after_hostile_requests_a_good_film_is_still_answered(
    client: httpx.Client, bundle: Bundle, films: dict[str, bytes]
) -> None:
    hostile = [content for content, _, _ in hostile_files(films).values()]
    for _ in range(2):
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda content: client.post("/v1/predict", files={"file": content}), hostile))
        assert all(400 <= answer.status_code < 500 for answer in answers)
    check_agrees(client.post("/v1/predict", files={"file": films["PNG"]}).json(), bundle, films["PNG"])


def test_films_asked_at_once_get_the_answers_they_get_alone(
    client: httpx.Client, bundle: Bundle, pixels: np.ndarray
) -> None:
    different = [png_bytes(np.roll(pixels, 9 * shift, axis=shift % 2)) for shift in range(16)]
    with ThreadPoolExecutor(16) as pool:
        answers = list(
            pool.map(
                lambda job: client.post(f"/v1/predict?explain={job[0] % 3 == 0}", files={"file": job[1]}),
                enumerate(different),
            )
        )
    assert [answer.status_code for answer in answers] == [200] * 16
    for answer, film in zip(answers, different, strict=True):
        check_agrees(answer.json(), bundle, film)
