"""The command line: parse, call one function, print."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from cxr_ray.cluster import prepare_environment
from cxr_ray.errors import CxrError

app = typer.Typer(
    name="cxr-ray",
    help="From a pile of chest radiographs to a reviewed, explained, deployed classifier, on Ray.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
data_app = typer.Typer(
    name="data", help="Make datasets: import radiographs, or draw synthetic ones.", no_args_is_help=True
)
_INTERRUPTED = 130
_LISTED_AT_MOST = 10
_PARALLEL_FROM_BYTES = 200_000_000  # less is decoded before Ray has started

Data = Annotated[str, typer.Option("--data", help="Dataset folder, local path or URI.")]
Storage = Annotated[str, typer.Option(help="Folder or URI that runs go to.")]
Name = Annotated[str | None, typer.Option(help="The run's name; default: a readable, unique one.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the named run, or the newest unfinished one.")]
Address = Annotated[str | None, typer.Option(help="A running Ray cluster: auto or host:6379.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress display.")]


@data_app.command("import")
def import_command(
    src: Annotated[str, typer.Argument(help="A folder of class folders, or any folder with a CSV.")],
    out: Annotated[str, typer.Argument(help="The dataset folder to write.")],
    metadata: Annotated[
        str | None, typer.Option(help="CSV naming path, label and optionally source, patient_id, split ...")
    ] = None,
    size: Annotated[int, typer.Option(help="Edge of the stored squares, pixels.")] = 224,
    fit: Annotated[str, typer.Option(help="How a film becomes a square: squash, pad or crop.")] = "squash",
    seed: Annotated[int, typer.Option(help="Of the random split.")] = 0,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="Import although more than 5 % of the files are unreadable.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a finished dataset.")] = False,
    quiet: Quiet = False,
) -> None:
    """Import radiographs: decode and resize once, split by patient, write a dataset folder."""
    from cxr_ray.data.importers import import_dataset

    dataset = import_dataset(
        src,
        out,
        metadata=metadata,
        size=size,
        fit=fit,  # type: ignore[arg-type] - checked by the function, with its own message
        seed=seed,
        keep_going=keep_going,
        overwrite=overwrite,
        map=_mapper(src),
        quiet=quiet,
    )
    _print_dataset(dataset)


@data_app.command("phantom")
def phantom_command(
    out: Annotated[str, typer.Argument(help="The dataset folder to write.")],
    images: Annotated[int, typer.Option(help="How many films, five classes in turn.")] = 600,
    size: Annotated[int, typer.Option(help="Edge of the films, pixels.")] = 224,
    seed: Annotated[int, typer.Option(help="The same seed gives the same films.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a finished dataset.")] = False,
    quiet: Quiet = False,
) -> None:
    """Draw synthetic frontal films with findings whose place is known."""
    from cxr_ray.data.phantom_dataset import make_phantoms

    _print_dataset(make_phantoms(out, images=images, size=size, seed=seed, overwrite=overwrite, quiet=quiet))


@app.command("train")
def train_command(
    experiment: Annotated[str, typer.Argument(help="A preset (tiny, reference) or a YAML file.")],
    data: Data,
    workers: Annotated[int, typer.Option(help="Data-parallel workers; 0 trains here, without Ray.")] = 1,
    gpu: Annotated[bool, typer.Option("--gpu", help="One GPU a worker.")] = False,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Change the experiment: a.b=c, repeatable.")] = None,
    storage: Storage = "runs",
    name: Name = None,
    resume: Resume = False,
    address: Address = None,
    cpus_per_worker: Annotated[int | None, typer.Option(help="CPUs reserved for each worker.")] = None,
    quiet: Quiet = False,
) -> None:
    """Train one experiment, data-parallel under Ray Train."""
    from cxr_ray.training.launch import train

    result = train(
        experiment,
        data,
        workers=workers,
        gpu=gpu,
        set_options=set_ or [],
        storage=storage,
        name=name,
        resume=resume,
        address=address,
        cpus_per_worker=cpus_per_worker,
        quiet=quiet,
    )
    info = result.folder.info()
    metric = info.experiment.training.metric
    _say(f"{result.status.state}: {result.status.reason}")
    _say(f"best {metric} {result.best[metric]:.4f} at epoch {result.best['epoch']}")
    _say(f"run: {result.folder}")
    _say(f"next: cxr-ray promote {result.folder} --out BUNDLE")


@app.command("tune")
def tune_command(
    space: Annotated[Path, typer.Argument(help="A YAML space, such as tune_spaces/smoke.yaml.")],
    data: Data,
    trials: Annotated[int | None, typer.Option(help="How many configurations, instead of the file's.")] = None,
    storage: Storage = "runs",
    name: Name = None,
    resume: Resume = False,
    address: Address = None,
    quiet: Quiet = False,
) -> None:
    """Search a space with Ray Tune and Optuna."""
    from cxr_ray.tuning.run import tune

    result = tune(space, data, trials=trials, storage=storage, name=name, resume=resume, address=address, quiet=quiet)
    _say(f"{result.trials} trials, {result.failed} failed")
    _say(f"run: {result.location}")
    _say(f"next: cxr-ray leaderboard {result.location}")


@app.command("leaderboard")
def leaderboard_command(
    run: Annotated[str, typer.Argument(help="A run folder, local path or URI.")],
    sort: Annotated[str | None, typer.Option(help="A validation metric; default: the run's own.")] = None,
    html: Annotated[str | None, typer.Option(help="Also write a page here.")] = None,
) -> None:
    """Show the trials of a run, best first; needs no cluster, and works while the run goes on."""
    from cxr_ray.leaderboard.render import render_terminal, write_html
    from cxr_ray.leaderboard.rows import read_leaderboard

    board = read_leaderboard(run, sort=sort)
    render_terminal(board, Console())
    if html is not None:
        write_html(board, html)
        _say(f"page: {html}")


@app.command("promote")
def promote_command(
    run: Annotated[str, typer.Argument(help="A training or tuning run.")],
    out: Annotated[str, typer.Option(help="The bundle folder to write; it must not exist.")],
    trial: Annotated[str | None, typer.Option(help="A trial's id; default: the best.")] = None,
) -> None:
    """Make a run's best epoch a bundle: calibrated, documented, checksummed."""
    from cxr_ray.leaderboard.promote import promote

    bundle = promote(run, trial=trial, out=out)
    validation = bundle.info.validation["metrics"]
    for warning in bundle.info.warnings:
        _say(f"warning: {warning}")
    _say(f"bundle {bundle.id[:12]}: {out}  (validation macro-F1 {validation['val/macro_f1']:.4f})")
    _say(f"next: cxr-ray evaluate {out} --data DATASET --split test --out REPORT")


@app.command("evaluate")
def evaluate_command(
    bundle: Annotated[str, typer.Argument(help="A bundle folder, local path or URI.")],
    data: Data,
    out: Annotated[str, typer.Option(help="The report folder to write.")],
    split: Annotated[str, typer.Option(help="train, val, calibration or test; opening test is recorded.")] = "test",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a former report.")] = False,
    quiet: Quiet = False,
) -> None:
    """Measure a bundle on a split: metrics, confusion matrix, curves, mistakes with heatmaps."""
    from cxr_ray.evaluation.evaluate import evaluate

    report = evaluate(bundle, data, split=split, out=out, overwrite=overwrite, quiet=quiet)
    for warning in report.warnings:
        _say(f"warning: {warning}")
    _say(f"{split}, n = {report.n}: macro-F1 {report.metric('macro_f1'):.4f}, accuracy {report.metric('accuracy'):.4f}")
    _say(f"report: {report.page}")


@app.command("explain")
def explain_command(
    bundle: Annotated[str, typer.Argument(help="A bundle folder, local path or URI.")],
    images: Annotated[list[Path], typer.Argument(help="Image files or folders of them.")],
    out: Annotated[str, typer.Option(help="The folder to write overlays to.")],
    class_name: Annotated[str | None, typer.Option("--class", help="Explain this class only.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace former heatmaps.")] = False,
    quiet: Quiet = False,
) -> None:
    """Draw Grad-CAM heatmaps over films."""
    from cxr_ray.evaluation.explain import explain_files

    done = explain_files(bundle, images, out, class_name=class_name, overwrite=overwrite, quiet=quiet)
    for film in done.films[:_LISTED_AT_MOST]:
        _say(f"{film.image}: {film.predicted} {film.probabilities[film.predicted]:.3f}, picture {film.picture}")
    if len(done.films) > _LISTED_AT_MOST:
        _say(f"and {len(done.films) - _LISTED_AT_MOST} more, listed in explanations.json")
    if done.left_out:
        _say(f"left out: {done.left_out} file(s) that are not images by name")
    _say(f"heatmaps: {out}")


@app.command("serve")
def serve_command(
    bundle: Annotated[str, typer.Argument(help="A bundle folder, local path or URI.")],
    host: Annotated[str, typer.Option(help="Any other than this machine itself needs CXR_API_KEYS.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port of the HTTP interface.")] = 8000,
) -> None:
    """Serve a bundle over HTTP with Ray Serve until interrupted."""
    from cxr_ray.serving.launch import deploy_locally

    deploy_locally(bundle, host=host, port=port)


app.add_typer(data_app)


def main() -> None:
    """Entry point of ``cxr-ray``: errors become one sentence and exit code 2, never a traceback."""
    prepare_environment()
    try:
        # typer turns Ctrl-C and --help into a returned exit code.
        code = app(standalone_mode=False)
    except CxrError as error:
        _fail(str(error), error.exit_code)
    except OSError as error:
        # Folders that cannot be written, disks that are full, storage that does not answer.
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{error.strerror or error}. Check that the place exists, is writable and has room", 2)
    except Exception as error:
        if not _is_usage_error(error):
            raise
        _fail(error.format_message(), 2)  # type: ignore[attr-defined]
    else:
        if code == _INTERRUPTED:
            resumable = sys.argv[1:2] in (["train"], ["tune"])
            hint = "; the same command with --resume goes on with the run" if resumable else ""
            _fail(f"interrupted{hint}", _INTERRUPTED)
        sys.exit(code or 0)


def _is_usage_error(error: Exception) -> bool:
    # typer vendors click, so its exceptions are known by what they can do.
    return hasattr(error, "format_message")


def _fail(message: str, code: int) -> None:
    Console(stderr=True).print(f"cxr-ray: {message}", style="red", highlight=False, markup=False, soft_wrap=True)
    sys.exit(code)


def _say(text: str) -> None:
    Console().print(text, highlight=False, markup=False, soft_wrap=True)


def _mapper(src: str) -> Any:
    """Ray's map for much to decode; None, the built-in one, where Ray would take longer to start."""
    from cxr_ray import cluster

    files = (path for path in Path(src).expanduser().rglob("*") if path.is_file())
    if sum(path.stat().st_size for path in files) < _PARALLEL_FROM_BYTES:
        return None
    cluster.connect()
    return cluster.parallel_map


def _print_dataset(dataset: Any) -> None:
    info = dataset.info
    total = sum(sum(counts.values()) for counts in info.counts.values())
    _say(f"{total} images, {len(info.classes)} classes, {len(info.sources)} source(s): {dataset.root}")
    for split, counts in info.counts.items():
        _say(f"  {split:<12}" + "  ".join(f"{name} {count}" for name, count in counts.items()))
    report = dataset.root / "import_report.json"
    if report.exists():
        import json

        content = json.loads(report.read_text())
        for note in content["notes"]:
            _say(f"note: {note}")
        if content["unreadable"]:
            _say(f"unreadable: {len(content['unreadable'])} of {content['files']}, listed in {report}")
            for bad in content["unreadable"][:5]:
                _say(f"  {bad['path']} {bad['reason']}")
    for warning in info.warnings:
        _say(f"warning: {warning}")
