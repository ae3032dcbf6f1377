"""How a dataset takes its place: built beside it and swapped in whole, so that nobody ever reads half of one."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from cxr_ray.data.store import DATASET_FILE, LOOKS_FILE
from cxr_ray.errors import ConfigError, DataError
from cxr_ray.paths import absolute_path

MARKS = ".import"  # an import's notes on the shards it has finished, inside the folder it builds in
MIN_SIZE = 64  # the networks' smallest input
MAX_SIZE = 4096  # the largest detectors; a typing error of a few zeros would fill memory
_OURS = re.compile(
    r"dataset\.json|manifest\.parquet|import_report\.json|looks\.jsonl|\.import|(pixels|masks|lung-masks)-\d{5}\.npy"
)


def claim(out: str | Path, *, overwrite: bool) -> Path:
    """Make sure, before any work is done, that a dataset may be written to a folder.

    Returns:
        The folder, absolute and without links.

    Raises:
        DataError: It is a file, holds a dataset while `overwrite` is False, holds anything else, or cannot be
            replaced by another folder.
    """
    folder = absolute_path(out)
    _finish_swap(folder)
    if not folder.exists():
        return folder
    if not folder.is_dir():
        raise DataError("is a file", where=folder, next_step="Choose a folder that does not exist yet")
    names = sorted(path.name for path in folder.iterdir())
    if DATASET_FILE in names and not overwrite:
        raise DataError(
            "already holds a finished dataset",
            where=folder,
            next_step="Give --overwrite to replace it, or choose another folder",
        )
    if names and DATASET_FILE not in names:
        raise DataError("is not empty and holds no dataset", where=folder, next_step="Choose a new or an empty folder")
    foreign = [name for name in names if not _OURS.fullmatch(name)]
    if foreign:
        raise DataError(
            f"holds {foreign[0]!r}, which is not part of the dataset and would be lost with it",
            where=folder,
            next_step="Move it elsewhere, or choose another folder",
        )
    if folder.is_mount() or Path.cwd().is_relative_to(folder):
        raise DataError(
            "is a mount point or the folder this command runs in, which another folder cannot replace",
            where=folder,
            next_step="Name a new folder inside it",
        )
    return folder


def check_request(size: int, seed: int) -> None:
    """Refuse, before any work is done, what no dataset can have.

    Raises:
        ConfigError: A size that is not 64 to 4096 pixels, or a negative seed.
    """
    if not MIN_SIZE <= size <= MAX_SIZE:
        raise ConfigError(f"size {size} is not allowed; {MIN_SIZE} to {MAX_SIZE} pixels are", where="--size")
    if seed < 0:
        raise ConfigError(f"seed {seed} is negative; 0 or more is allowed", where="--seed")


def make_folder(folder: Path) -> None:
    """Make a folder to build in.

    Raises:
        DataError: It cannot be made.
    """
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise DataError(
            f"no folder can be made here ({error.strerror or error})",
            where=folder.parent,
            next_step="A dataset is built beside the place it takes: choose one inside a folder you can write to",
        ) from error


def swap_in(built: Path, out: Path) -> None:
    """Let a finished dataset take the place of `out`, which `claim` has returned; `built` must lie beside it.

    For an instant between two renames there is neither the old dataset nor the new, never a mixture.
    """
    old = _replaced(out)
    try:
        if out.exists():
            out.rename(old)
            # Looks stay, whatever replaces the dataset. Mostly that is the same films at another size or with a
            # label mended: under another fingerprint the test images are still those that choices have adapted to,
            # and replacing a dataset must not be a way to forget that. Where the films are all new, the record says
            # too much, which is the harmless mistake; a dataset without a past belongs in a folder without one.
            if (old / LOOKS_FILE).is_file():
                shutil.copyfile(old / LOOKS_FILE, built / LOOKS_FILE)
        built.rename(out)
    except BaseException:
        _finish_swap(out)
        raise
    _finish_swap(out)


def _replaced(out: Path) -> Path:
    return out.parent / f".{out.name}.replaced"


def _finish_swap(out: Path) -> None:
    """Drop the dataset that was replaced, or, where a swap was cut short, put it back."""
    old = _replaced(out)
    if out.exists():
        shutil.rmtree(old, ignore_errors=True)
    elif old.exists():
        old.rename(out)
