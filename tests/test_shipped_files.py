"""What ships runs: presets, README's and docs' commands, and nothing that must not be in the repository."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import typer

from cxr_ray.cli import app
from cxr_ray.experiment import load_experiment, preset_names

DOCUMENTS = [Path("README.md"), *sorted(Path("docs").glob("*.md"))]


def commands() -> list[tuple[str, str]]:
    """Every ``cxr-ray ...`` line of an indented block in the documents."""
    found = []
    for document in DOCUMENTS:
        text = document.read_text().replace("\\\n", " ")
        for line in re.findall(r"^ {4,}\$? ?(cxr-ray .+)$", text, re.MULTILINE):
            found.append((document.name, line.split(" #")[0].strip()))
    return found


@pytest.mark.parametrize(("document", "line"), commands(), ids=lambda value: value)
def test_every_command_in_the_documents_exists_with_its_options(document, line):
    words = shlex.split(line)[1:]
    command = typer.main.get_command(app)
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]  # pyright: ignore[reportAttributeAccessIssue]
    context = command.make_context("cxr-ray", words, resilient_parsing=False)
    assert not context.args, f"{document}: {line}"


def test_the_documents_show_commands():
    assert len(commands()) >= 10


@pytest.mark.parametrize("name", ["tiny", "reference"])
def test_every_preset_is_an_experiment_of_its_own_name(name):
    assert load_experiment(name).name == name
    assert name in preset_names()


def test_the_top_level_holds_what_was_asked_for():
    needed = (
        "pyproject.toml cxr_ray tune_spaces tests cluster.yaml serve_config.yaml README.md Makefile constraints.txt "
        "LICENSE docs/ARCHITECTURE.md .gitignore .ci/run"
    )
    assert not [name for name in needed.split() if not Path(name).exists()]


def test_pictures_that_the_readme_shows_are_there():
    for target in re.findall(r"!\[[^]]*\]\(([^)]+)\)", Path("README.md").read_text()):
        assert Path(target).is_file(), target
    for target in re.findall(r"\]\((docs/[^)#]+)\)", Path("README.md").read_text()):
        assert Path(target).is_file(), target


def test_no_tracked_file_names_a_registry_or_is_large():
    listed = subprocess.run(["git", "ls-files", "-z"], capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    hosts = re.compile(r"py" + r"pi\.org|python" + r"hosted|npm" + r"js|download\." + r"pytorch", re.IGNORECASE)
    for name in filter(None, listed.stdout.split("\0")):
        content = Path(name).read_bytes()
        assert len(content) < 1_000_000, name
        assert not hosts.search(content.decode("utf-8", "ignore")), name
