"""Put a dataset where a whole cluster can read it."""

from __future__ import annotations

import json
from pathlib import Path

from cxr_ray.cache import PIECE
from cxr_ray.data.shards import file_sha256
from cxr_ray.data.store import DATASET_FILE, LOOKS_FILE, MANIFEST_FILE, Dataset, DatasetInfo, open_dataset
from cxr_ray.errors import DataError
from cxr_ray.paths import Location, locate
from cxr_ray.progress import ProgressLine, progress

_PLAN_FILE = "push.json"  # there while a push is under way: what it is about to put there
_REPORT_FILES = ("import_report.json",)
_MEGABYTE = 1e6


def push_dataset(
    data: str | Path | Dataset, uri: str | Path, *, overwrite: bool = False, quiet: bool = False
) -> Location:
    """Copy a dataset to another place; `dataset.json` goes last, so that half of one is never read as a whole.

    Interrupted, it is completed by the same call: files that are there in full are not sent again.

    Args:
        data: The dataset, local or a URI.
        uri: The folder to write: ``s3://``, ``gs://``, a shared file system, a local path.
        overwrite: Replace another dataset there. Looks at the test split that are on record there stay.
        quiet: No progress display.

    Returns:
        Where it lies now.

    Raises:
        DataError: The dataset is damaged here, another one lies there, or the storage refuses.
    """
    dataset = data if isinstance(data, Dataset) else open_dataset(data)
    target = locate(uri)
    _check_whole(dataset)
    try:
        if not _is_there(dataset, target, overwrite):
            _send(dataset, target, quiet)
        _merge_looks(dataset, target)
    except OSError as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise DataError(
            f"the dataset cannot be written here ({reason})",
            where=target,
            next_step="Check the address, the credentials and the network, and run the same command again: it goes on",
        ) from error
    return target


def _check_whole(dataset: Dataset) -> None:
    for shard in dataset.info.pixel_files:
        if file_sha256(dataset.root / shard.file) != shard.sha256:
            raise DataError(
                f"pixel file {shard.file} does not match its sha256",
                where=dataset.uri,
                next_step="The dataset is damaged: import it again",
            )


def _is_there(dataset: Dataset, target: Location, overwrite: bool) -> bool:
    """Whether just this dataset lies there, whole; what else does is refused, or, with `overwrite`, replaced."""
    described, plan = target.child(DATASET_FILE), _plan(dataset.info)
    if described.exists():
        try:
            there = DatasetInfo.model_validate(described.read_json())
        except ValueError:
            there = None
        if there is not None and _plan(there) == plan:
            if all(_size(target.child(name)) == (dataset.root / name).stat().st_size for name in plan):
                return True
            # Files went missing or were cut short: the others need not be sent again.
            target.child(_PLAN_FILE).write_bytes(_encoded(plan))
            target.filesystem.delete_file(described.path)
            return False
        if not overwrite:
            raise DataError(
                "another dataset lies here",
                where=target,
                next_step="Give --overwrite to replace it, or choose another address",
            )
    elif target.is_dir():
        names = set(target.children())
        if names and _PLAN_FILE not in names and not names <= {LOOKS_FILE}:
            raise DataError(
                f"holds {min(names)!r}, and no dataset", where=target, next_step="Choose a new or an empty folder"
            )
    return False


def _plan(info: DatasetInfo) -> dict[str, str]:
    return {MANIFEST_FILE: info.manifest_sha256} | {shard.file: shard.sha256 for shard in info.pixel_files}


def _send(dataset: Dataset, target: Location, quiet: bool) -> None:
    plan = _plan(dataset.info)
    marked = target.child(_PLAN_FILE)
    target.make_dir()
    # Files of another dataset can have the right names and sizes; only those that this plan put there count.
    described = target.child(DATASET_FILE)
    going_on = marked.exists() and marked.read_bytes() == _encoded(plan) and not described.exists()
    if not going_on:
        # In this order: whatever happens in between, the same call goes on.
        marked.write_bytes(_encoded(plan))
        if described.exists():
            target.filesystem.delete_file(described.path)
    files = [*plan, *(name for name in _REPORT_FILES if (dataset.root / name).is_file())]
    sizes = {name: (dataset.root / name).stat().st_size for name in files}
    total = round(sum(sizes.values()) / _MEGABYTE, 1)
    with progress(f"Sending {dataset.info.name}, MB", total, quiet=quiet) as line:
        for name, size in sizes.items():
            if going_on and name in plan and _size(target.child(name)) == size:
                line.advance(size / _MEGABYTE)
            else:
                _send_file(dataset.root / name, target.child(name), line)
    described.write_bytes((dataset.info.model_dump_json(indent=2) + "\n").encode())
    target.filesystem.delete_file(marked.path)


def _send_file(source: Path, target: Location, line: ProgressLine) -> None:
    # On a file system a half-written file is visible; in an object store a name appears when the object is whole.
    path = f"{target.path}.partial" if target.is_local else target.path
    with source.open("rb") as stream, target.filesystem.open_output_stream(path) as sink:
        while piece := stream.read(PIECE):
            sink.write(piece)
            line.advance(len(piece) / _MEGABYTE)
    if path != target.path:
        target.filesystem.move(path, target.path)


def _size(location: Location) -> int | None:
    return location.filesystem.get_file_info(location.path).size


def _merge_looks(dataset: Dataset, target: Location) -> None:
    """Looks at the test split travel with the dataset: a copy must not be a way to forget them."""
    source = locate(dataset.uri).child(LOOKS_FILE)
    if not source.exists():
        return
    there = target.child(LOOKS_FILE)
    known = there.read_bytes().splitlines() if there.exists() else []
    lines = list(dict.fromkeys([*known, *source.read_bytes().splitlines()]))
    if lines != known:
        there.write_bytes(b"".join(line + b"\n" for line in lines))


def _encoded(plan: dict[str, str]) -> bytes:
    return (json.dumps(plan, indent=2) + "\n").encode()
