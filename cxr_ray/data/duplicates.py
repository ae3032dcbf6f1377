"""Near duplicates: films that show one exposure twice, re-encoded, resized, re-windowed or slightly cropped."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from typing import IO, NamedTuple

import numpy as np

from cxr_ray.data.duplicate_candidates import (
    BEST,
    THUMBNAIL,
    all_pairs,
    best_rank,
    candidate_pairs,
    learn_features,
    sample_rows,
    thumbnail,
)
from cxr_ray.data.duplicate_confirmation import CONFIRMED, confirm
from cxr_ray.data.mapping import Mapper
from cxr_ray.data.shards import PixelStore
from cxr_ray.errors import DataError
from cxr_ray.progress import ProgressLine

# Of pixels handed out at a time. Ray frees what has been used once a second or when it is a hundred pieces, so larger
# ones pile up.
_BLOCK_BYTES = 1 << 20
_FEATURES_AT_ONCE = 2048
_PAIRS_AT_ONCE = 64
_BYTES = THUMBNAIL**2  # of one thumbnail


class NearDuplicate(NamedTuple):
    """Two films that show the same.

    Attributes:
        first: Row number; the smaller one.
        second: Row number.
        correlation: Of their detail after alignment, 0.93 to 1, rounded to 4 digits.
    """

    first: int
    second: int
    correlation: float


def find_near_duplicates(
    store: PixelStore, *, map: Mapper = map, progress: ProgressLine | None = None
) -> list[NearDuplicate]:
    """Find films that show the same exposure, although their files and pixels differ.

    Copies that were re-encoded, resized, re-windowed (gamma, contrast, brightness, some clipping), cropped by up to
    5 % a side, or all of these, are found; mirrored copies and ones rotated by more than a few degrees are not.
    Candidates come from `duplicate_candidates`; a pair counts if the correlation of its detail, aligned, is 0.93 or
    more (`duplicate_confirmation`). Blank films show nothing and are duplicates of none.

    A group of k films that show the same gives k - 1 pairs, enough to connect it (`duplicate_groups`), not all of
    them. Groups may chain: consecutive bedside films of one patient can come out as one although they are different
    exposures. For splitting that only keeps together what should be.

    The films are read once, in blocks, and 4 KB of each lie in a temporary file meanwhile, so memory stays flat. The
    answer depends on the films and their order alone, not on `map`.

    Args:
        store: The films, uint8 squares made by any fit; letter-boxes are cut off before films are compared.
        map: Runs heavy steps in parallel, in order (`cxr_ray.cluster.parallel_map`); blocks travel with it, so
            workers need not see the dataset's folder.
        progress: A display whose total is the number of films.

    Returns:
        Pairs in order of their row numbers.

    Raises:
        DataError: The disk of temporary files is full.
    """
    with _spool(len(store)) as spool:
        rows, pairs = _distinct_films(store, map, spool, progress)
        if len(rows) > 1:
            candidates = _candidates(spool, rows, map)
            pairs += _confirmed(spool, rows[candidates], map, progress)
    return sorted(pairs)


@contextlib.contextmanager
def _spool(films: int) -> Iterator[IO[bytes]]:
    try:
        with tempfile.TemporaryFile() as spool:
            yield spool
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DataError(
            f"the disk of temporary files is too full: the search for duplicates needs {films * _BYTES / 1e6:.1f} MB",
            where=tempfile.gettempdir(),
            next_step="Make room there, or name another folder in TMPDIR",
        ) from error


def duplicate_groups(count: int, pairs: Iterable[tuple[int, int] | NearDuplicate]) -> np.ndarray:
    """Number the groups of films that pairs of duplicates connect.

    Args:
        count: How many films there are.
        pairs: Row numbers of two films each, and possibly more that does not matter here.

    Returns:
        int64, (count,): the smallest row number of each film's group; its own where it has no duplicate.
    """
    groups = _Groups()
    for pair in pairs:
        groups.join(pair[0], pair[1])
    return np.array([groups.of(row) for row in range(count)], np.int64)


class _Groups:
    """Films connected so far; a group goes by its smallest row number."""

    def __init__(self) -> None:
        self._parent: dict[int, int] = {}

    def of(self, row: int) -> int:
        while (parent := self._parent.get(row, row)) != row:
            self._parent[row] = self._parent.get(parent, parent)
            row = parent
        return row

    def join(self, first: int, second: int) -> bool:
        """Connect two films; False where they were connected already."""
        one, other = sorted((self.of(first), self.of(second)))
        self._parent[other] = one
        return one != other


def _distinct_films(
    store: PixelStore, run: Mapper, spool: IO[bytes], progress: ProgressLine | None
) -> tuple[np.ndarray, list[NearDuplicate]]:
    """Write all thumbnails; return the rows (int64) to compare, and pairs of films whose thumbnails are identical."""
    size = len(store[0]) if len(store) else 1
    blocks = (block for _, block in store.blocks(max(1, _BLOCK_BYTES // size**2)))
    digests = np.empty(len(store), "V16")
    seen = np.zeros(len(store), bool)  # films that show something
    row = 0
    for thumbnails in run(_thumbnails, blocks):
        spool.write(thumbnails.tobytes())
        for film in thumbnails:
            digests[row] = hashlib.blake2b(film.tobytes(), digest_size=16).digest()
            seen[row] = film.any()
            row += 1
        if progress is not None:
            progress.update(row)
    spool.flush()
    rows = np.flatnonzero(seen)
    _, where, film_of = np.unique(digests[rows], return_index=True, return_inverse=True)
    firsts = rows[where][film_of]
    copies = np.column_stack([firsts, rows])[firsts != rows]
    return np.sort(rows[where]), [NearDuplicate(first, copy, 1.0) for first, copy in copies.tolist()]


def _thumbnails(block: np.ndarray) -> np.ndarray:
    return np.stack([thumbnail(film) for film in block])


def _read(spool: IO[bytes], rows: np.ndarray) -> np.ndarray:
    """uint8, (len(rows), 64, 64)."""
    content = b"".join(os.pread(spool.fileno(), _BYTES, int(row) * _BYTES) for row in rows)
    return np.frombuffer(content, np.uint8).reshape(-1, THUMBNAIL, THUMBNAIL)


def _candidates(spool: IO[bytes], rows: np.ndarray, run: Mapper) -> np.ndarray:
    """int64, (pairs, 2): positions in `rows`, most promising first."""
    pairs = all_pairs(len(rows))
    if pairs is not None:
        return pairs
    learnt = learn_features(_read(spool, sample_rows(rows)), run)
    features = np.empty((len(rows), learnt.weights.shape[1]), np.float32)
    for start in range(0, len(rows), _FEATURES_AT_ONCE):
        part = slice(start, start + _FEATURES_AT_ONCE)
        features[part] = learnt.of(_read(spool, rows[part]))
    return candidate_pairs(features, learnt.similar)


def _confirmed(
    spool: IO[bytes], candidates: np.ndarray, run: Mapper, progress: ProgressLine | None
) -> list[NearDuplicate]:
    """The candidates that show the same, without those that only close a circle.

    In rounds, each film's most promising pairs first: what one round connects, the next need not compare, so that a
    thousand copies of a film cost some thousand comparisons, not a million.
    """
    ranks = best_rank(candidates)
    groups = _Groups()
    pairs: list[NearDuplicate] = []
    done = 0
    for limit in (1 << power for power in range(BEST.bit_length())):
        chosen = candidates[(ranks >= limit // 2) & (ranks < limit)]
        open_pairs = np.array([groups.of(first) != groups.of(second) for first, second in chosen.tolist()], bool)
        chosen = chosen[open_pairs]
        found: list[NearDuplicate] = []
        for start, correlations in zip(_starts(chosen), run(confirm, _pair_blocks(spool, chosen)), strict=True):
            block = chosen[start : start + _PAIRS_AT_ONCE].tolist()
            for (first, second), correlation in zip(block, correlations.tolist(), strict=True):
                if correlation >= CONFIRMED:
                    found.append(NearDuplicate(min(first, second), max(first, second), correlation))
            done += len(block)
            if progress is not None:
                progress.advance(0, f"{done} pairs compared")
        found.sort(key=lambda pair: (-pair.correlation, pair))
        pairs += [pair for pair in found if groups.join(pair.first, pair.second)]
    return pairs


def _starts(pairs: np.ndarray) -> range:
    return range(0, len(pairs), _PAIRS_AT_ONCE)


def _pair_blocks(spool: IO[bytes], pairs: np.ndarray) -> Iterator[np.ndarray]:
    for start in _starts(pairs):
        block = pairs[start : start + _PAIRS_AT_ONCE]
        yield np.stack([_read(spool, block[:, 0]), _read(spool, block[:, 1])])
