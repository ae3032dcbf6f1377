"""As much of a spreadsheet (``.xlsx``) as metadata sheets need: the first sheet's cells as text."""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from collections.abc import Iterator
from xml.etree import ElementTree

from cxr_ray.data.readers.common import Row, plain
from cxr_ray.errors import DataError
from cxr_ray.paths import Location

_LARGEST = 200_000_000  # bytes of XML; a sheet of 100,000 rows has about 20 MB
_BROKEN = (
    *(zipfile.BadZipFile, zlib.error, RuntimeError, EOFError),  # damaged, encrypted, cut short
    *(ElementTree.ParseError, KeyError, ValueError, IndexError),
)
_SHEET = re.compile(r"xl/worksheets/sheet\d+\.xml")


def workbook_rows(location: Location) -> list[Row]:
    """Rows of the first sheet by column, names as `cxr_ray.data.readers.common.plain` has them.

    Raises:
        DataError: The file is no spreadsheet.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(location.read_bytes())) as book:
            texts = list(_shared_texts(book))
            sheet = min(
                (name for name in book.namelist() if _SHEET.fullmatch(name)), key=lambda name: (len(name), name)
            )
            rows = list(_rows(_parsed(book, sheet), texts))
    except _BROKEN as error:
        raise DataError(f"is not a spreadsheet that can be read ({error})", where=location) from error
    header = [plain(rows[0].get(column, "")) for column in range(max(rows[0], default=-1) + 1)] if rows else []
    return [{name: row.get(column, "") for column, name in enumerate(header) if name} for row in rows[1:]]


def _shared_texts(book: zipfile.ZipFile) -> Iterator[str]:
    if "xl/sharedStrings.xml" in book.namelist():
        for item in _parsed(book, "xl/sharedStrings.xml"):
            yield "".join(part.text or "" for part in item.iter() if _tag(part) == "t")


def _rows(sheet: ElementTree.Element, texts: list[str]) -> Iterator[dict[int, str]]:
    for row in (part for part in sheet.iter() if _tag(part) == "row"):
        cells = {}
        for place, cell in enumerate(part for part in row if _tag(part) == "c"):
            letters = re.match(r"[A-Z]+", cell.get("r", ""))
            column = _column(letters.group()) if letters else place
            content = "".join(part.text or "" for part in cell.iter() if _tag(part) in ("v", "t"))
            cells[column] = texts[int(content)] if cell.get("t") == "s" and content else content
        yield cells


def _parsed(book: zipfile.ZipFile, name: str) -> ElementTree.Element:
    if book.getinfo(name).file_size > _LARGEST:
        raise ValueError(f"{name} is larger than {_LARGEST // 1_000_000} MB")
    content = book.read(name)
    if b"<!DOCTYPE" in content[:1000]:  # spreadsheets have none, and entities can be made to explode
        raise ValueError(f"{name} declares a document type")
    return ElementTree.fromstring(content)


def _column(letters: str) -> int:
    number = 0
    for letter in letters:
        number = number * 26 + ord(letter) - ord("A") + 1
    return number - 1


def _tag(part: ElementTree.Element) -> str:
    return part.tag.rpartition("}")[2]
