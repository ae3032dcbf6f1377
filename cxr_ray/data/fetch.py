"""Fetching public sets: what needs no login is downloaded and unpacked, for the rest the steps are told."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pooch
import requests
from filelock import FileLock, Timeout

from cxr_ray.data.download import ResumingDownload
from cxr_ray.data.listing import SetFacts
from cxr_ray.data.readers import set_facts
from cxr_ray.data.shards import file_sha256
from cxr_ray.data.unpack import unpack_zip
from cxr_ray.errors import ConfigError, DataError, did_you_mean
from cxr_ray.paths import absolute_path, write_atomically
from cxr_ray.progress import progress


@dataclass(frozen=True)
class RemoteFile:
    """A file of a public set; all of them are ZIP archives, ``.npz`` among them.

    Attributes:
        name: Of the file here.
        url: Where it is, without a login.
        checksum: ``md5:...`` or ``sha256:...`` as its page gives it, None where that is not known.
    """

    name: str
    url: str
    checksum: str | None = None

    @property
    def is_to_unpack(self) -> bool:
        return self.name.endswith(".zip")


def dataverse_files(server: str, doi: str) -> list[RemoteFile]:
    """The ``.npz`` files of a dataset on a Dataverse server, with the checksums that the server keeps.

    Native API of Dataverse: https://guides.dataverse.org/en/latest/api/native-api.html, "Get JSON Representation of
    a Dataset"; https://guides.dataverse.org/en/latest/api/dataaccess.html, "Basic File Access".

    Raises:
        DataError: The server does not answer, or lists no such files.
    """
    url = f"{server}/api/datasets/:persistentId/?persistentId={doi}"
    try:
        answer = requests.get(url, timeout=60)
        answer.raise_for_status()
        listed = [file["dataFile"] for file in answer.json()["data"]["latestVersion"]["files"]]
        files = [
            RemoteFile(file["filename"], f"{server}/api/access/datafile/{file['id']}", f"md5:{file['md5']}")
            for file in listed
            if file["filename"].lower().endswith(".npz") and "/" not in file["filename"]
        ]
    except (requests.RequestException, ValueError, KeyError, TypeError) as error:
        raise DataError(f"does not list the files of {doi} ({error})", where=server) from error
    if not files:
        raise DataError(f"lists no .npz files for {doi}", where=server)
    return sorted(files, key=lambda file: file.name)


def _one(name: str, url: str) -> Callable[[], list[RemoteFile]]:
    return lambda: [RemoteFile(name, url)]


_CAME_FIRST = "that came first"
_OPENI = "https://openi.nlm.nih.gov/imgs/collections"
# The files of each set that can be had without a login.
DOWNLOADS: dict[str, Callable[[], list[RemoteFile]]] = {
    "basu": partial(dataverse_files, "https://dataverse.harvard.edu", "doi:10.7910/DVN/WNQ3GI"),
    "kermany": _one(
        "ChestXRay2017.zip",
        "https://data.mendeley.com/public-files/datasets/rscbjbr9sj/files/"
        "f12eaf6d-6023-432f-acc9-80c9d7393433/file_downloaded",
    ),
    "montgomery": _one("NLM-MontgomeryCXRSet.zip", f"{_OPENI}/NLM-MontgomeryCXRSet.zip"),
    "shenzhen": _one("ChinaSet_AllFiles.zip", f"{_OPENI}/ChinaSet_AllFiles.zip"),
}
_KAGGLE = (
    "Make an account on https://www.kaggle.com and put its API token where the kaggle program looks for it",
    "pip install kaggle",
)
# The steps to the other sets; {out} is the folder.
STEPS: dict[str, tuple[str, ...]] = {
    "radiography": (*_KAGGLE, "kaggle datasets download tawsifurrahman/covid19-radiography-database --unzip -p {out}"),
    "tb": (*_KAGGLE, "kaggle datasets download tawsifurrahman/tuberculosis-tb-chest-xray-dataset --unzip -p {out}"),
    "rsna": (
        *_KAGGLE,
        "Accept the rules on the page above: without that the download is refused",
        "kaggle competitions download rsna-pneumonia-detection-challenge -p {out}",
        "unzip {out}/rsna-pneumonia-detection-challenge.zip -d {out}",
    ),
    "cohen": ("git clone --depth 1 https://github.com/ieee8023/covid-chestxray-dataset {out}",),
}
SETS = (*DOWNLOADS, *STEPS)


def fetch_set(name: str, out: str | Path | None = None, *, quiet: bool = False) -> list[str]:
    """Fetch a public set into a folder, or tell how to.

    Interrupted, the same call goes on where it stopped. The sha256 of every file that came is kept beside it in
    ``<file>.sha256`` and compared by later calls. Archives are unpacked beside themselves.

    Args:
        name: One of `SETS`.
        out: The folder; by default one of the set's name in the current folder.
        quiet: No progress display.

    Returns:
        What to tell the user: about the set, the steps where it cannot be fetched by a program, and what is next.

    Raises:
        ConfigError: There is no such set.
        DataError: A file cannot be had, is not the one it should be, or the disk has too little room.
    """
    if name not in SETS:
        raise ConfigError(
            f"there is no set '{name}'{did_you_mean(name, SETS)}; there are {', '.join(SETS)}", where="NAME"
        )
    facts, folder = set_facts(name), absolute_path(out or name)
    about = [facts.title, f"page: {facts.page}", f"licence: {facts.licence}"]
    if name in STEPS:
        lines = [*about, "It takes a login or a program of its own, so by hand:"]
        steps = [*(step.format(out=folder) for step in STEPS[name]), _import_command(folder, facts)]
        lines += [f"  {number}. {step}" for number, step in enumerate(steps, start=1)]
    else:
        lines = [*about, *_fetch(name, folder, facts, quiet), f"next: {_import_command(folder, facts)}"]
    return [*lines, "before a number from it is believed:", *(f"  - {defect}" for defect in facts.defects)]


def _import_command(folder: Path, facts: SetFacts) -> str:
    return f"cxr-ray data import {folder} DATASET --format {facts.name}"


def _fetch(name: str, folder: Path, facts: SetFacts, quiet: bool) -> list[str]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".fetch.lock", timeout=0):
            return [line for file in DOWNLOADS[name]() for line in _fetch_file(file, folder, quiet)]
    except Timeout as error:
        raise DataError(
            "another process is fetching into this folder", where=folder, next_step="Wait for it, or give another --out"
        ) from error
    except DataError as error:
        by_hand = f"The set can be had by hand from {facts.page}"
        next_step = f"{error.next_step}. {by_hand}" if error.next_step else by_hand
        raise DataError(error.problem, where=error.where, next_step=next_step) from error
    except OSError as error:
        raise DataError(
            f"cannot be written ({error.strerror or error})",
            where=error.filename or folder,
            next_step="Check that the place can be written to and has room; the same command goes on from there",
        ) from error


def _fetch_file(file: RemoteFile, folder: Path, quiet: bool) -> list[str]:
    target, unpacked = folder / file.name, folder / Path(file.name).stem
    record = folder / f"{file.name}.sha256"
    recorded = record.read_text().split()[0] if record.is_file() else None
    if recorded and file.is_to_unpack and unpacked.is_dir() and not target.exists():
        return [f"{file.name} was unpacked to {unpacked} before, and is not there any more to be compared"]
    if not recorded and file.is_to_unpack and unpacked.is_dir():
        raise DataError(
            f"was unpacked from an archive that is not on record any more, so {target.name} may be another",
            where=unpacked,
            next_step="Remove or rename this folder and run the same command again",
        )
    with progress(f"Fetching {file.name}", quiet=quiet) as line:
        download = ResumingDownload(target, line, copies=2 if file.is_to_unpack else 1)
        known = f"sha256:{recorded}" if recorded else file.checksum
        _retrieve(file, target, known, _CAME_FIRST if recorded else "that its page describes", download)
    if not zipfile.is_zipfile(target):
        start = target.read_bytes()[:40] if target.stat().st_size < 1_000_000 else b""
        target.unlink()
        raise DataError(f"is not the archive it should be, and starts with {start!r}", where=file.url)
    lines = []
    if not recorded:
        recorded = file_sha256(target)
        write_atomically(record, f"{recorded}  {file.name}\n".encode())
        if file.checksum is None:
            lines.append(
                f"no checksum of {file.name} is known here, so what came was not compared with what its authors put "
                f"there: its sha256 is {recorded}, kept in {record.name} and compared from now on"
            )
    if file.is_to_unpack:
        with progress(f"Unpacking {file.name}", quiet=quiet) as line:
            unpack_zip(target, unpacked, line)
    return [*lines, f"{file.name} is whole (sha256 {recorded[:12]}...)"]


def _retrieve(file: RemoteFile, target: Path, known: str | None, which: str, download: ResumingDownload) -> None:
    pooch.get_logger().setLevel("WARNING")  # it tells of each download and hash, which is shown here already
    try:
        # Its type of a downloader gives the arguments other names than the ones it is called by.
        pooch.retrieve(file.url, known, target.name, target.parent, downloader=download)  # type: ignore[arg-type]
    except ValueError as error:
        # How pooch tells that the checksums differ.
        download.forget()
        raise DataError(
            f"is not the file {which}: its checksum is not {known}",
            where=file.url,
            next_step="Try again; if it stays so, ask its authors"
            + (f", and remove {target.name}.sha256 to accept it" if which == _CAME_FIRST else ""),
        ) from error
    download.forget()
