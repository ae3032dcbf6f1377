"""From a pile of chest radiographs to a reviewed, explained, deployed classifier, on Ray.

Every command of the command line is one function here; `load_bundle` and what it returns need no Ray.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Imported on first use: torch and Ray take seconds that `import cxr_ray` should not cost.
_EXPORTS = {
    "CxrError": "cxr_ray.errors",
    "audit": "cxr_ray.evaluation.audit",
    "deploy_locally": "cxr_ray.serving.launch",
    "evaluate": "cxr_ray.evaluation.evaluate",
    "explain_files": "cxr_ray.evaluation.explain",
    "fetch_set": "cxr_ray.data.fetch",
    "import_dataset": "cxr_ray.data.importers",
    "load_bundle": "cxr_ray.bundle",
    "load_experiment": "cxr_ray.experiment",
    "make_phantoms": "cxr_ray.data.phantom_dataset",
    "open_dataset": "cxr_ray.data.store",
    "promote": "cxr_ray.leaderboard.promote",
    "push_dataset": "cxr_ray.data.push",
    "read_leaderboard": "cxr_ray.leaderboard.rows",
    "resplit_dataset": "cxr_ray.data.splitting",
    "train": "cxr_ray.training.launch",
    "tune": "cxr_ray.tuning.run",
}

if TYPE_CHECKING:
    # Type checkers and editors do not run `__getattr__`.
    from cxr_ray.bundle import load_bundle as load_bundle
    from cxr_ray.data.fetch import fetch_set as fetch_set
    from cxr_ray.data.importers import import_dataset as import_dataset
    from cxr_ray.data.phantom_dataset import make_phantoms as make_phantoms
    from cxr_ray.data.push import push_dataset as push_dataset
    from cxr_ray.data.splitting import resplit_dataset as resplit_dataset
    from cxr_ray.data.store import open_dataset as open_dataset
    from cxr_ray.errors import CxrError as CxrError
    from cxr_ray.evaluation.audit import audit as audit
    from cxr_ray.evaluation.evaluate import evaluate as evaluate
    from cxr_ray.evaluation.explain import explain_files as explain_files
    from cxr_ray.experiment import load_experiment as load_experiment
    from cxr_ray.leaderboard.promote import promote as promote
    from cxr_ray.leaderboard.rows import read_leaderboard as read_leaderboard
    from cxr_ray.serving.launch import deploy_locally as deploy_locally
    from cxr_ray.training.launch import train as train
    from cxr_ray.tuning.run import tune as tune


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'cxr_ray' has no attribute '{name}'")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
