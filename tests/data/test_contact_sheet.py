"""Contact sheets: every film shown whole, in its place, over its own caption."""

from __future__ import annotations

import numpy as np
import pytest

from cxr_ray.data.contact_sheet import contact_sheet
from cxr_ray.errors import DataError

EDGE = 64
PITCH = EDGE + 6


def plain(level: int, height: int = 96, width: int = 96) -> np.ndarray:
    return np.full((height, width), level, np.uint8)


def cell(sheet: np.ndarray, row: int, column: int, row_height: int) -> np.ndarray:
    top, left = 6 + row * row_height, 6 + column * PITCH
    return sheet[top : top + EDGE, left : left + EDGE]


@pytest.mark.parametrize("count", [1, 7, 200])
def test_any_number_of_films_lies_in_rows_in_the_order_given(count):
    levels = [17 + i for i in range(count)]
    sheet = np.asarray(contact_sheet([plain(level) for level in levels], [""] * count, columns=10, edge=EDGE))
    columns, rows = min(10, count), -(-count // 10)
    assert sheet.shape[1] == columns * PITCH + 6
    row_height = (sheet.shape[0] - 6) // rows
    for i, level in enumerate(levels):
        assert (cell(sheet, i // 10, i % 10, row_height) == level).all()


def test_captions_are_drawn_below_their_own_film_and_differ():
    sheet = np.asarray(contact_sheet([plain(99)] * 3, ["film A", "", "film B"], edge=EDGE))
    captions = [sheet[6 + EDGE :, 6 + i * PITCH : 6 + i * PITCH + EDGE] for i in range(3)]
    assert (captions[0] < 100).sum() > 40
    assert (captions[1] == 255).all()
    assert not np.array_equal(captions[0], captions[2])


def test_a_long_caption_ends_before_the_next_cell_and_a_second_line_makes_room():
    one = contact_sheet([plain(99)] * 2, ["radiography_db / viral pneumonia / 0123456789", ""], edge=EDGE)
    two = contact_sheet([plain(99)] * 2, ["first\nsecond", ""], edge=EDGE)
    assert (np.asarray(one)[6 + EDGE :, 6 + EDGE :] == 255).all()
    assert two.height > one.height
    assert (np.asarray(two)[one.height - 4 :] < 100).any()


def test_a_film_that_is_not_square_is_shown_whole_in_its_proportions():
    film = plain(200, 50, 100)
    film[:, :50] = 10
    shown = cell(np.asarray(contact_sheet([film], [""], edge=EDGE)), 0, 0, 0)
    is_film = shown != 128
    assert is_film[EDGE // 4 : 3 * EDGE // 4].all()
    assert is_film.sum() == EDGE * EDGE // 2
    assert (shown[EDGE // 2, : EDGE // 2 - 4] == 10).all()
    assert (shown[EDGE // 2, EDGE // 2 + 4 :] == 200).all()


@pytest.mark.parametrize(
    ("films", "captions", "problem"),
    [
        ([], [], "at least one film"),
        ([plain(0)], ["a", "b"], r"1 film\(s\) and 2 caption\(s\)"),
        ([plain(0).astype(np.float32)], ["a"], "not float32"),
        ([np.zeros((4, 4, 3), np.uint8)], ["a"], r"shape \(4, 4, 3\)"),
    ],
)
def test_what_cannot_be_shown_is_refused_by_name(films, captions, problem):
    with pytest.raises(DataError, match=problem):
        contact_sheet(films, captions)
