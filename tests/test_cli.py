"""The command line is a frozen surface, and its errors are one sentence and exit code 2."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml
from PIL import Image
from typer.testing import CliRunner

from cxr_ray.cli import app

SURFACE = Path(__file__).with_name("cli_surface.txt")


def surface() -> str:
    """Every command with its arguments, options and defaults, one a line."""
    lines = []

    def walk(command, name: str) -> None:
        for sub, inner in getattr(command, "commands", {}).items():
            walk(inner, f"{name} {sub}")
        if not getattr(command, "commands", {}):
            for parameter in sorted(command.params, key=lambda parameter: parameter.name or ""):
                spelling = " ".join(parameter.opts) if parameter.param_type_name == "option" else parameter.name.upper()
                default = "needed" if parameter.required else parameter.default
                lines.append(f"{name}: {spelling} [{default}]")

    walk(typer.main.get_command(app), "cxr-ray")
    return "\n".join(lines) + "\n"


def test_commands_options_and_defaults_are_those_decided_on():
    assert surface() == SURFACE.read_text(), "a change of the surface is a decision: update tests/cli_surface.txt"


@pytest.mark.parametrize(
    "command",
    ["train", "tune", "leaderboard", "promote", "evaluate", "explain", "serve"]
    + [f"data {name}" for name in ("import", "fetch", "resplit", "audit", "push", "phantom")],
)
def test_every_command_explains_itself(command):
    result = CliRunner().invoke(app, [*command.split(), "--help"])
    assert result.exit_code == 0
    assert "Usage:" in result.output


def run(*arguments: str | Path) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "cxr_ray", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "Traceback" not in done.stdout + done.stderr
    return done.returncode, done.stdout + done.stderr


def films(folder: Path, labels: tuple[str, ...] = ("normal", "covid"), per_class: int = 30) -> Path:
    for label in labels:
        (folder / label).mkdir(parents=True)
        for number in range(per_class):
            Image.new("L", (64, 64), number * 3 + len(label)).save(folder / label / f"{number}.png")
    return folder


def test_a_misspelt_key_in_a_space_is_named(tmp_path, phantoms):
    space = tmp_path / "space.yaml"
    space.write_text(yaml.safe_dump({"base": "tiny", "parameters": {"loss.labl_smoothing": {"uniform": [0, 0.1]}}}))
    code, output = run("tune", space, "--data", phantoms.root)
    assert code == 2
    assert f"{space}, key parameters.loss.labl_smoothing" in output
    assert "did you mean 'label_smoothing'" in output


def test_a_label_that_stands_nowhere_else_is_named(tmp_path):
    folder = films(tmp_path / "films")
    rows = ["path,label"] + [f"{file.parent.name}/{file.name},{file.parent.name}" for file in folder.rglob("*.png")]
    rows[-1] = rows[-1].rsplit(",", 1)[0] + ",covld"
    (folder / "labels.csv").write_text("\n".join(rows))
    code, output = run("data", "import", folder, tmp_path / "out", "--metadata", folder / "labels.csv")
    assert code == 2
    assert "label 'covld' stands on 1 image(s) only" in output
    assert "did you mean 'covid'" in output


def test_addresses_are_not_taken_for_local_folders_to_import_into(tmp_path):
    for arguments in (("import", films(tmp_path / "films"), "s3://bucket/out"), ("phantom", "gs://bucket/out")):
        code, output = run("data", *arguments)
        assert code == 2
        assert f"{arguments[-1]}: is an address" in output


def test_explain_tells_every_films_label_and_what_it_left_out(tmp_path, untrained_bundle):
    folder = films(tmp_path / "films", per_class=6)
    (folder / "normal" / "IM0001").write_bytes(b"a film by another name")
    code, output = run("explain", untrained_bundle, folder, "--class", "covid", "--out", tmp_path / "out", "--quiet")
    assert code == 0
    assert len([line for line in output.splitlines() if ".png: " in line and ", picture " in line]) == 10
    assert "and 2 more, listed in explanations.json" in output
    assert "left out: 1 file(s) that are not images by name" in output


def test_a_place_that_cannot_be_written_is_named():
    code, output = run("data", "phantom", "/proc/nowhere", "--images", "40", "--size", "64", "--quiet")
    assert code == 2
    assert "/proc: no folder can be made here" in output


def test_a_missing_dataset_is_named_with_what_to_do(tmp_path):
    code, output = run("train", "tiny", "--data", tmp_path / "nowhere")
    assert code == 2
    assert f"{tmp_path / 'nowhere'}: there is no such dataset. Make one with: cxr-ray data import" in output


def test_a_corrupted_bundle_is_named(tmp_path, untrained_bundle, phantoms):
    bundle = Path(shutil.copytree(untrained_bundle, tmp_path / "bundle"))
    weights = bytearray((bundle / "model.safetensors").read_bytes())
    weights[5000] ^= 1
    (bundle / "model.safetensors").write_bytes(weights)
    code, output = run("evaluate", bundle, "--data", phantoms.root, "--out", tmp_path / "report")
    assert code == 2
    assert "'model.safetensors' is corrupted" in output
    assert not (tmp_path / "report").exists()
    assert not (phantoms.root / "looks.jsonl").exists()


def test_a_truncated_film_is_listed_by_the_import_which_goes_on(tmp_path):
    folder = films(tmp_path / "films")
    bad = folder / "covid" / "5.png"
    bad.write_bytes(bad.read_bytes()[:60])
    code, output = run("data", "import", folder, tmp_path / "out")
    assert code == 0
    assert "unreadable: 1 of 60" in output
    assert "covid/5.png is truncated" in output


def test_unknown_commands_and_options_are_answered_in_a_line():
    code, output = run("trian")
    assert (code, output.count("\n")) == (2, 1)
    assert "Did you mean 'train'" in output
    code, output = run("train", "tiny", "--data", "x", "--wrokers", "2")
    assert code == 2
    assert "--workers" in output
