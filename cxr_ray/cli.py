"""The command line: parse, call one function, print."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cxr_ray.cli_data import Address, Quiet, data_app, say
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
_INTERRUPTED = 130
_LISTED_AT_MOST = 10

Data = Annotated[str, typer.Option("--data", help="Dataset folder, local path or URI.")]
Storage = Annotated[str, typer.Option(help="Folder or URI that runs go to.")]
Name = Annotated[str | None, typer.Option(help="The run's name; default: a readable, unique one.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the named run, or the newest unfinished one.")]
ExcludeFlags = Annotated[str | None, typer.Option(help="Leave out films with these quality flags: tinted,blurred.")]
AllowLeakage = Annotated[
    bool, typer.Option("--allow-leakage", help="Go on although a patient or film lies in two splits.")
]


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
    exclude_flags: ExcludeFlags = None,
    allow_leakage: AllowLeakage = False,
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
        exclude_flags=_flags(exclude_flags),
        allow_leakage=allow_leakage,
        quiet=quiet,
    )
    info = result.folder.info()
    metric = info.experiment.training.metric
    say(f"{result.status.state}: {result.status.reason}")
    say(f"best {metric} {result.best[metric]:.4f} at epoch {result.best['epoch']}")
    say(f"run: {result.folder}")
    say(f"next: cxr-ray promote {result.folder} --out BUNDLE")


@app.command("tune")
def tune_command(
    space: Annotated[Path, typer.Argument(help="A YAML space, such as tune_spaces/smoke.yaml.")],
    data: Data,
    trials: Annotated[int | None, typer.Option(help="How many configurations, instead of the file's.")] = None,
    storage: Storage = "runs",
    name: Name = None,
    resume: Resume = False,
    address: Address = None,
    exclude_flags: ExcludeFlags = None,
    allow_leakage: AllowLeakage = False,
    quiet: Quiet = False,
) -> None:
    """Search a space with Ray Tune and Optuna."""
    from cxr_ray.tuning.run import tune

    result = tune(
        space,
        data,
        trials=trials,
        storage=storage,
        name=name,
        resume=resume,
        address=address,
        exclude_flags=_flags(exclude_flags),
        allow_leakage=allow_leakage,
        quiet=quiet,
    )
    say(f"{result.trials} trials, {result.failed} failed")
    say(f"run: {result.location}")
    say(f"next: cxr-ray leaderboard {result.location}")


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
        say(f"page: {html}")


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
        say(f"warning: {warning}")
    say(f"bundle {bundle.id[:12]}: {out}  (validation macro-F1 {validation['val/macro_f1']:.4f})")
    say(f"next: cxr-ray evaluate {out} --data DATASET --split test --out REPORT")


@app.command("evaluate")
def evaluate_command(
    bundle: Annotated[str, typer.Argument(help="A bundle folder, local path or URI.")],
    data: Data,
    out: Annotated[str, typer.Option(help="The report folder to write.")],
    split: Annotated[str, typer.Option(help="train, val, calibration or test; opening test is recorded.")] = "test",
    exclude_flags: ExcludeFlags = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a former report.")] = False,
    quiet: Quiet = False,
) -> None:
    """Measure a bundle on a split: metrics, confusion matrix, curves, mistakes with heatmaps."""
    from cxr_ray.evaluation.evaluate import evaluate

    report = evaluate(
        bundle, data, split=split, out=out, exclude_flags=_flags(exclude_flags), overwrite=overwrite, quiet=quiet
    )
    for warning in report.warnings:
        say(f"warning: {warning}")
    say(f"{split}, n = {report.n}: macro-F1 {report.metric('macro_f1'):.4f}, accuracy {report.metric('accuracy'):.4f}")
    say(f"report: {report.page}")


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
        say(f"{film.image}: {film.predicted} {film.probabilities[film.predicted]:.3f}, picture {film.picture}")
    if len(done.films) > _LISTED_AT_MOST:
        say(f"and {len(done.films) - _LISTED_AT_MOST} more, listed in explanations.json")
    if done.left_out:
        say(f"left out: {done.left_out} file(s) that are not images by name")
    say(f"heatmaps: {out}")


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


def _flags(text: str | None) -> list[str]:
    return [flag.strip() for flag in text.split(",") if flag.strip()] if text else []
