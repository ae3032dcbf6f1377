"""Taking a film out of a request's body, however the body is made."""

from __future__ import annotations

import random

import pytest

from cxr_ray.serving.intake import extract_file
from cxr_ray.serving.problems import Problem

FORM = "multipart/form-data; boundary=B"


def form(*parts: tuple[str, bytes], end: bytes = b"--B--\r\n") -> bytes:
    made = [b"--B\r\nContent-Disposition: " + head.encode() + b"\r\n\r\n" + data + b"\r\n" for head, data in parts]
    return b"".join(made) + end


def problem_of(body: bytes, content_type: str | None = FORM) -> tuple[int, str]:
    with pytest.raises(Problem) as caught:
        extract_file(body, content_type)
    return caught.value.status, caught.value.code


@pytest.mark.parametrize("content", [b"x", bytes(300_000), b"\r\n-- B", b"\r\n--BB\r\n" * 9, b"\r" * 99, b"--B--"])
def test_the_file_comes_out_as_it_went_in(content: bytes) -> None:
    assert extract_file(form(('form-data; name="file"; filename="a.png"', content)), FORM) == content


def test_other_fields_and_a_missing_file_name_do_not_matter() -> None:
    body = form(('form-data; name="note"', b"hello"), ('form-data; name="file"', b"film"), ("form-data", b"nameless"))
    assert extract_file(body, FORM) == b"film"


def test_a_quoted_boundary_and_upper_case_are_understood() -> None:
    body = form(('form-data; name="file"', b"film"))
    assert extract_file(body, 'Multipart/Form-Data; boundary="B"') == b"film"


def test_a_form_cut_short_is_malformed_and_never_a_shorter_film() -> None:
    whole = form(('form-data; name="file"; filename="a.png"', b"0123456789"))
    for length in range(len(whole) - len(b"--\r\n")):
        assert problem_of(whole[:length]) == (400, "malformed_form")


def test_forms_without_a_film_are_refused_with_their_reason() -> None:
    assert problem_of(form(('form-data; name="image"', b"film"))) == (422, "missing_file")
    assert problem_of(form()) in [(422, "missing_file"), (400, "malformed_form")]
    assert problem_of(form(*[('form-data; name="file"', b"film")] * 2)) == (422, "several_files")
    assert problem_of(form(*[('form-data; name="a"', b"")] * 1000)) == (400, "malformed_form")
    assert problem_of(form(('form-data; name="file"', b""))) == (422, "empty")
    assert problem_of(form(), "multipart/form-data") == (400, "malformed_form")


@pytest.mark.parametrize("content_type", ["text/plain", "application/json", "multipart/mixed; boundary=B", "x"])
def test_other_content_types_are_refused(content_type: str) -> None:
    assert problem_of(b"film", content_type) == (415, "unsupported_media_type")


def test_random_damage_gives_a_film_or_a_problem_and_nothing_else() -> None:
    rng = random.Random(0)
    whole = form(('form-data; name="file"; filename="a.png"', bytes(range(256))))
    for _ in range(2000):
        damaged = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(len(damaged))] = rng.choice(b"\r\n-B:; \x00\xff")
        try:
            extract_file(bytes(damaged), FORM)
        except Problem as problem:
            assert 400 <= problem.status < 500
