"""The main job from start to end on synthetic films: ``make demo``, or ``python -m cxr_ray.demo FOLDER``.

Each step is the public function behind the command it prints, so the commands can be typed again one by one.
"""

from __future__ import annotations

import json
import shutil
import socket
import sys
import time
import urllib.request
from pathlib import Path

from rich.console import Console
from rich.rule import Rule

from cxr_ray.cluster import disconnect, prepare_environment
from cxr_ray.errors import CxrError, DataError

IMAGES = 600
TRIALS = 4
_MARK = ".cxr_ray_demo"


def run_demo(folder: Path, space: Path) -> Path:
    """Import, tune, review, promote, evaluate, explain and serve, in `folder`.

    Args:
        folder: Where everything goes; a former demo there is replaced.
        space: The tuning space to search.

    Returns:
        The evaluation report's page.

    Raises:
        DataError: `folder` holds something else than a former demo.
    """
    from cxr_ray.bundle import load_bundle
    from cxr_ray.data.importers import import_dataset
    from cxr_ray.data.phantom_dataset import write_phantom_films
    from cxr_ray.evaluation.evaluate import evaluate
    from cxr_ray.evaluation.explain import explain_files
    from cxr_ray.leaderboard.promote import promote
    from cxr_ray.leaderboard.render import render_terminal, write_html
    from cxr_ray.leaderboard.rows import read_leaderboard
    from cxr_ray.tuning.run import tune

    _empty(folder)
    films, dataset, run = folder / "films", folder / "dataset", folder / "runs" / "demo"
    bundle, report = folder / "bundle", folder / "report"

    step("Synthetic radiographs, as a hospital might export them", None)
    write_phantom_films(films, images=IMAGES)

    step("Import: decode, resize, split by patient", f"cxr-ray data import {films} {dataset}")
    import_dataset(films, dataset)

    step(
        f"Tune: {TRIALS} trials with Ray Tune and Optuna",
        f"cxr-ray tune {space} --data {dataset} --trials {TRIALS} --storage {run.parent} --name {run.name}",
    )
    tune(space, dataset, trials=TRIALS, storage=run.parent, name=run.name)
    disconnect()  # Serve starts a Ray of its own, and ends it without complaints from this one

    step("Review", f"cxr-ray leaderboard {run} --html {folder / 'leaderboard.html'}")
    board = read_leaderboard(run)
    render_terminal(board, console)
    write_html(board, folder / "leaderboard.html")

    step("Promote the winner", f"cxr-ray promote {run} --out {bundle}")
    promote(run, out=bundle)
    loaded = load_bundle(bundle)
    console.print(f"bundle {loaded.id[:12]}: {bundle}", highlight=False)

    step("Evaluate on test", f"cxr-ray evaluate {bundle} --data {dataset} --split test --out {report}")
    measured = evaluate(bundle, dataset, split="test", out=report)
    console.print(
        f"test, n = {measured.n}: macro-F1 {measured.metric('macro_f1'):.3f}, "
        f"recall of covid {measured.metric('recall/covid'):.3f}",
        highlight=False,
    )

    film = sorted((films / "covid").glob("*.png"))[0]
    step("Explain a film", f"cxr-ray explain {bundle} {film} --out {folder / 'heatmaps'}")
    explain_files(bundle, [film], folder / "heatmaps")

    _serve_one(bundle, film)
    page = report / "index.html"
    console.print(Rule())
    console.print(f"The report:      {page}", highlight=False)
    console.print(f"The leaderboard: {folder / 'leaderboard.html'}", highlight=False)
    return page


def _serve_one(bundle: Path, film: Path) -> None:
    from cxr_ray.serving.launch import deploy_locally

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    step("Serve it, and send it one film", f"cxr-ray serve {bundle} --port {port}")
    service = deploy_locally(bundle, port=port, blocking=False)
    assert service is not None  # only the blocking call returns nothing
    with service:
        command = f"$ curl -F file=@{film} {service.url}/v1/predict"
        console.print(command, style="bold", highlight=False, soft_wrap=True)
        request = urllib.request.Request(
            f"{service.url}/v1/predict", data=film.read_bytes(), headers={"Content-Type": "image/png"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            console.print_json(json.dumps(json.load(answer)))


def step(title: str, command: str | None) -> None:
    """Announce a step and the command that does the same."""
    console.print(Rule(f"[{time.monotonic() - _STARTED:.0f} s] {title}", align="left"))
    if command is not None:
        console.print(f"$ {command}", style="bold", highlight=False, soft_wrap=True)


def _empty(folder: Path) -> None:
    if folder.exists() and any(folder.iterdir()) and not (folder / _MARK).exists():
        raise DataError("is not empty and holds no former demo", where=folder, next_step="Name another folder")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / _MARK).touch()


def main() -> None:
    """``python -m cxr_ray.demo FOLDER [SPACE]``."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "demo")
    space = Path(sys.argv[2] if len(sys.argv) > 2 else "tune_spaces/smoke.yaml")
    try:
        run_demo(folder, space)
    except CxrError as error:
        console.print(f"cxr-ray: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
        sys.exit(error.exit_code)
    finally:
        disconnect()


console = Console()
_STARTED = time.monotonic()

if __name__ == "__main__":
    prepare_environment()
    main()
