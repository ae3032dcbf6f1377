"""The arrows of the design: who may import whom, and where Ray may enter."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path("cxr_ray")
# From the ground up; a layer imports only what stands before it. Layers in one tuple do not know each other.
LAYERS: list[tuple[str, ...]] = [
    ("errors",),
    ("paths", "progress", "config", "html"),
    ("cache",),
    ("data",),
    ("model",),
    ("metrics",),
    ("explanation",),
    ("bundle",),
    ("cluster",),
    ("experiment",),
    ("serving", "training"),
    ("tuning",),
    ("leaderboard", "evaluation"),
    ("cli_data",),
    ("cli", "demo"),
    ("__main__",),
]
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
# The doors of Ray; `cluster` is behind them all.
RAY_ALLOWED = ("cluster.py", "training/launch.py", "tuning/", "serving/app.py", "serving/launch.py")
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def layer_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            if node.module == "cxr_ray":
                yield from (f"cxr_ray.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_a_module_imports_only_from_layers_below_its_own(path):
    own = layer_of(path)
    for name in imports(path):
        if name.startswith("cxr_ray."):
            other = name.split(".")[1]
            assert other == own or RANK[other] < RANK[own], f"{path} imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_ray_enters_only_through_its_doors(path):
    relative = path.relative_to(PACKAGE).as_posix()
    if not relative.startswith(RAY_ALLOWED):
        assert not [name for name in imports(path) if name.split(".")[0] == "ray"], path


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_no_module_is_longer_than_four_hundred_lines(path):
    assert len(path.read_text().splitlines()) <= 400


def test_albumentations_lives_in_one_module():
    users = [str(path) for path in MODULES if any(name.startswith("albu") for name in imports(path))]
    assert users == ["cxr_ray/data/augment.py"]
