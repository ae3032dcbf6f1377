"""From a request to the bytes of one film: limits, and the form it may come in."""

from __future__ import annotations

from dataclasses import dataclass, field

from fastapi import Request
from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from cxr_ray.serving.problems import Problem

FILE_FIELD = "file"
_FORM = b"multipart/form-data"
_RAW = (b"application/octet-stream", b"application/dicom")
_MAX_PARTS = 20  # a film comes in a form with one part; thousands of tiny ones only burn time
_HOW = (
    f"Send it as a multipart form with the field '{FILE_FIELD}': curl -F {FILE_FIELD}=@film.png URL; or by itself: "
    "curl -H 'Content-Type: application/octet-stream' --data-binary @film.png URL"
)

# Described by hand, because the body is read by hand: what FastAPI's own form parsing would do is spool films
# to the disk, where patients' pictures have no business.
UPLOAD_DESCRIPTION = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": [FILE_FIELD],
                    "properties": {
                        FILE_FIELD: {
                            "type": "string",
                            "format": "binary",
                            "description": "One film: PNG, JPEG, WebP, TIFF, BMP, GIF or DICOM",
                        }
                    },
                }
            },
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            "application/dicom": {"schema": {"type": "string", "format": "binary"}},
            "image/*": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}


async def read_body(request: Request, limit: int) -> bytes:
    """The whole body, never holding more than `limit` bytes of it.

    The bytes are counted as they come: a Content-Length may be missing or wrong. Ray Serve's default proxy
    buffers a body before it passes it on, so this protects the replica, not the proxy; put a limit into what
    stands before Serve too (with HAProxy ingress, bodies come here directly).

    Args:
        request: With its body unread.
        limit: Bytes.

    Raises:
        Problem: 413 for a larger body, at once if Content-Length admits it.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > limit:
        raise _too_large(limit)
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise _too_large(limit)
        chunks.append(chunk)
    return b"".join(chunks)


def extract_file(body: bytes, content_type: str | None) -> bytes:
    """The film in a request's body: the field ``file`` of a multipart form, or the body itself.

    Pure computation, made to run off the event loop.

    Args:
        body: The whole body.
        content_type: Its Content-Type header; None counts as raw bytes.

    Raises:
        Problem: 415 for other content types, 400 for a damaged form, 422 for a form without the field or
            with several, and for an empty file.
    """
    kind, options = parse_options_header(content_type)
    if kind == _FORM:
        content = _from_form(body, options.get(b"boundary", b""))
    elif not kind or kind in _RAW or kind.startswith(b"image/"):
        content = body
        if not body:
            raise Problem(422, "empty", f"The request has no film in it (0 bytes). {_HOW}")
    else:
        name = kind.decode("latin-1")[:80]
        raise Problem(415, "unsupported_media_type", f"A film cannot come as '{name}'. {_HOW}")
    if not content:
        raise Problem(422, "empty", "The file is empty (0 bytes).")
    return content


@dataclass
class _Form:
    """Collects the parts named ``file`` as the parser meets them; other parts are only named."""

    names: list[str] = field(default_factory=list)
    files: list[list[bytes]] = field(default_factory=list)
    whole: bool = False
    _header: bytes = b""
    _value: bytes = b""
    _disposition: bytes = b""
    _inside_file: bool = False

    def on_part_begin(self) -> None:
        self._disposition = b""
        self._inside_file = False
        if len(self.names) >= _MAX_PARTS:
            raise Problem(400, "malformed_form", f"The form has more than {_MAX_PARTS} parts. {_HOW}")

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def on_header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header = self._value = b""

    def on_headers_finished(self) -> None:
        name = parse_options_header(self._disposition)[1].get(b"name", b"").decode("utf-8", "replace")
        self.names.append(name)
        self._inside_file = name == FILE_FIELD
        if self._inside_file:
            self.files.append([])

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._inside_file:
            self.files[-1].append(data[start:end])

    def on_end(self) -> None:
        self.whole = True


def _from_form(body: bytes, boundary: bytes) -> bytes:
    if not boundary:
        raise Problem(400, "malformed_form", f"The form's Content-Type names no boundary. {_HOW}")
    form = _Form()
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": form.on_part_begin,
                "on_header_field": form.on_header_field,
                "on_header_value": form.on_header_value,
                "on_header_end": form.on_header_end,
                "on_headers_finished": form.on_headers_finished,
                "on_part_data": form.on_part_data,
                "on_end": form.on_end,
            },
        )
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise Problem(400, "malformed_form", f"The form is damaged. {_HOW}") from error
    if not form.whole:
        raise Problem(400, "malformed_form", f"The form ends before its last boundary. {_HOW}")
    if not form.files:
        names = ", ".join(repr(name[:40]) for name in form.names[:5]) or "no fields"
        raise Problem(422, "missing_file", f"The form has no field '{FILE_FIELD}'; it has {names}. {_HOW}")
    if len(form.files) > 1:
        raise Problem(422, "several_files", f"The form has {len(form.files)} files; send one film a request.")
    return b"".join(form.files[0])


def _too_large(limit: int) -> Problem:
    return Problem(413, "too_large", f"The request is larger than the {limit / 1_000_000:g} MB allowed.")
