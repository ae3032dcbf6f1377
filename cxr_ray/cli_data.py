"""The ``data`` commands: make datasets, audit them, move them."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

data_app = typer.Typer(name="data", help="Make datasets, audit them, move them.", no_args_is_help=True)

_PARALLEL_FROM_BYTES = 200_000_000  # less is decoded before Ray has started
_PARALLEL_FROM_FILMS = 20_000  # fewer are compared before Ray has started

Address = Annotated[str | None, typer.Option(help="A running Ray cluster: auto or host:6379.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress display.")]
Split = Annotated[str | None, typer.Option(help="random, given or source-holdout; default: given where there is one.")]
Ratios = Annotated[str | None, typer.Option(help="train/val/calibration/test; default 65/10/10/15.")]
HoldOut = Annotated[list[str] | None, typer.Option("--hold-out", help="A source that only the test split holds.")]


@data_app.command("import")
def import_command(
    src: Annotated[str, typer.Argument(help="A folder, local or a URI: class folders, or any folder with a CSV.")],
    out: Annotated[str, typer.Argument(help="The dataset folder to write.")],
    format_: Annotated[str | None, typer.Option("--format", help="A public set's layout; see data fetch.")] = None,
    metadata: Annotated[
        str | None, typer.Option(help="CSV naming path, label and optionally source, patient_id, split ...")
    ] = None,
    size: Annotated[int, typer.Option(help="Edge of the stored squares, pixels.")] = 224,
    fit: Annotated[str, typer.Option(help="How a film becomes a square: squash, pad or crop.")] = "squash",
    split: Split = None,
    ratios: Ratios = None,
    hold_out: HoldOut = None,
    seed: Annotated[int, typer.Option(help="Of the random split.")] = 0,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="Import although more than 5 % of the files are unreadable.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a finished dataset.")] = False,
    address: Address = None,
    quiet: Quiet = False,
) -> None:
    """Import radiographs: decode and resize once, find duplicates and flaws, split by patient, write a dataset."""
    from cxr_ray.data.importers import import_dataset

    dataset = import_dataset(
        src,
        out,
        format=format_,
        metadata=metadata,
        size=size,
        fit=fit,  # type: ignore[arg-type] - checked by the function, with its own message
        split=split,
        ratios=ratios,
        hold_out=hold_out or [],
        seed=seed,
        keep_going=keep_going,
        overwrite=overwrite,
        map=_import_mapper(src, address),
        quiet=quiet,
    )
    _print_dataset(dataset)


@data_app.command("fetch")
def fetch_command(
    name: Annotated[str, typer.Argument(help="basu, kermany, montgomery, shenzhen, radiography, tb, rsna or cohen.")],
    out: Annotated[str | None, typer.Option(help="The folder to fetch into; default: one of the set's name.")] = None,
    quiet: Quiet = False,
) -> None:
    """Download a public set, or tell the steps to it where it needs a login."""
    from cxr_ray.data.fetch import fetch_set

    for line in fetch_set(name, out, quiet=quiet):
        say(line)


@data_app.command("resplit")
def resplit_command(
    data: Annotated[str, typer.Argument(help="Dataset folder, local path or URI.")],
    out: Annotated[str, typer.Argument(help="The dataset folder to write; pixels are shared, not copied.")],
    split: Split = None,
    ratios: Ratios = None,
    hold_out: HoldOut = None,
    seed: Annotated[int, typer.Option(help="Of the random split.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a finished dataset.")] = False,
) -> None:
    """Make a dataset of the same films under another split."""
    from cxr_ray.data.splitting import resplit_dataset

    dataset = resplit_dataset(
        data, out, split=split, ratios=ratios, hold_out=hold_out or [], seed=seed, overwrite=overwrite
    )
    _print_dataset(dataset)


@data_app.command("audit")
def audit_command(
    data: Annotated[str, typer.Argument(help="Dataset folder, local path or URI.")],
    out: Annotated[str, typer.Option(help="The report folder to write.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a former report.")] = False,
    address: Address = None,
    quiet: Quiet = False,
) -> None:
    """Audit a dataset: leakage, duplicates, confounding of source and label, quality."""
    from cxr_ray.data.store import open_dataset
    from cxr_ray.evaluation.audit import PAGE_FILE, audit
    from cxr_ray.paths import is_uri, locate

    dataset = open_dataset(data)
    many = dataset.manifest.num_rows >= _PARALLEL_FROM_FILMS
    report = audit(dataset, out, overwrite=overwrite, map=_mapper(address, many=many), quiet=quiet)
    for finding in report.findings:
        say(f"- {finding}")
    if not report.findings:
        say("nothing was found that would make numbers from this dataset untrustworthy")
    say(f"report: {locate(out).child(PAGE_FILE) if is_uri(out) else Path(out) / PAGE_FILE}")


@data_app.command("push")
def push_command(
    data: Annotated[str, typer.Argument(help="Dataset folder, local path or URI.")],
    uri: Annotated[str, typer.Argument(help="Where to: s3://, gs://, a shared folder ...")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace another dataset there.")] = False,
    quiet: Quiet = False,
) -> None:
    """Copy a dataset to storage that a whole cluster reads."""
    from cxr_ray.data.push import push_dataset

    say(f"dataset: {push_dataset(data, uri, overwrite=overwrite, quiet=quiet)}")


@data_app.command("phantom")
def phantom_command(
    out: Annotated[str, typer.Argument(help="The dataset folder to write.")],
    images: Annotated[int, typer.Option(help="How many films, five classes in turn.")] = 600,
    size: Annotated[int, typer.Option(help="Edge of the films, pixels.")] = 224,
    seed: Annotated[int, typer.Option(help="The same seed gives the same people and findings.")] = 0,
    sources: Annotated[int, typer.Option(help="How many hospitals, 1 to 5, each with a look of its own.")] = 1,
    confounding: Annotated[
        float, typer.Option(help="How much the class tells the hospital, from 0 (nothing) to 1 (all).")
    ] = 0.0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a finished dataset.")] = False,
    quiet: Quiet = False,
) -> None:
    """Draw synthetic frontal films with findings whose place is known."""
    from cxr_ray.data.phantom_dataset import make_phantoms

    dataset = make_phantoms(
        out,
        images=images,
        size=size,
        seed=seed,
        sources=sources,
        confounding=confounding,
        overwrite=overwrite,
        quiet=quiet,
    )
    _print_dataset(dataset)


def say(text: str) -> None:
    """Print a line as it is."""
    Console().print(text, highlight=False, markup=False, soft_wrap=True)


def _import_mapper(src: str, address: str | None) -> Any:
    from cxr_ray.paths import locate

    location = locate(src)
    return _mapper(address, many=location.is_dir() and _is_much(location), path=src)


def _is_much(location: Any) -> bool:
    sizes = itertools.accumulate(entry.size for entry in location.walk())
    return any(size >= _PARALLEL_FROM_BYTES for size in sizes)


def _mapper(address: str | None, *, many: bool, path: str | None = None) -> Any:
    """Ray's map for much to do, or on a cluster; the built-in one where Ray would take longer to start."""
    from cxr_ray import cluster

    if not many and address is None:
        return map
    cluster.connect(address)
    if path is not None:
        cluster.check_readable(path, "folder")
    return cluster.parallel_map


def _print_dataset(dataset: Any) -> None:
    info = dataset.info
    total = sum(sum(counts.values()) for counts in info.counts.values())
    say(f"{total} images, {len(info.classes)} classes, {len(info.sources)} source(s): {dataset.root}")
    for split, counts in info.counts.items():
        say(f"  {split:<12}" + "  ".join(f"{name} {count}" for name, count in counts.items()))
    report = dataset.root / "import_report.json"
    if report.exists():
        content = json.loads(report.read_text())
        for note in content["notes"]:
            say(f"note: {note}")
        if content["set_aside"]:
            first = content["set_aside"][0]
            say(f"set aside: {len(content['set_aside'])}, such as {first['path']}, which {first['reason']}")
        if content["duplicates"]["groups"]:
            found = content["duplicates"]
            say(f"duplicates: {found['groups']} films occur more than once, {found['images']} images in all")
        if content["quality_flags"]:
            flags = (f"{count} {flag}" for flag, count in content["quality_flags"].items())
            say(f"quality flags: {', '.join(flags)}")
        if content["unreadable"]:
            say(f"unreadable: {len(content['unreadable'])} of {content['files']}, listed in {report}")
            for bad in content["unreadable"][:5]:
                say(f"  {bad['path']} {bad['reason']}")
    for warning in info.warnings:
        say(f"warning: {warning}")
