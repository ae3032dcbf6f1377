"""Checkpoints: written whole or not at all, checked before use, the last two and the best kept.

The loop owns its checkpoints instead of handing them to Ray Train or Tune: so one rule of validity, keeping
and resuming holds under every launcher, and a torn file falls back to the checkpoint before it.
"""

from __future__ import annotations

import hashlib
import io
import re
from typing import Any

import torch

from cxr_ray.paths import Location

STATE_FILE = "state.pt"
SUMS_FILE = "SHA256SUMS"
KEEP_LAST = 2
_NAME = re.compile(r"checkpoint_(\d{6})")


def checkpoint_epochs(run: Location) -> list[int]:
    """Epochs that have a checkpoint folder, ascending, valid or not."""
    return sorted(int(match[1]) for name in run.children() if (match := _NAME.fullmatch(name)))


def save_checkpoint(run: Location, epoch: int, state: dict[str, Any]) -> None:
    """Write ``checkpoint_<epoch>``; it counts once its checksums, written last, are there.

    Args:
        run: The run's folder.
        epoch: Counted from 1.
        state: Tensors, numbers, texts and containers of them; nothing that needs unpickling.
    """
    sink = io.BytesIO()
    torch.save(state, sink)
    content = sink.getvalue()
    folder = run.child(f"checkpoint_{epoch:06d}")
    folder.delete_dir()
    folder.make_dir()
    folder.child(STATE_FILE).write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    folder.child(SUMS_FILE).write_bytes(f"{digest}  {STATE_FILE}\n".encode())


def load_checkpoint(run: Location, epoch: int) -> dict[str, Any] | None:
    """The state of one checkpoint, on the CPU; None if it is not there, torn or changed."""
    folder = run.child(f"checkpoint_{epoch:06d}")
    try:
        digest = folder.child(SUMS_FILE).read_bytes().decode().split()[0]
        content = folder.child(STATE_FILE).read_bytes()
    except (OSError, IndexError, UnicodeDecodeError):
        return None
    if hashlib.sha256(content).hexdigest() != digest:
        return None
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def newest_checkpoint(run: Location) -> tuple[int, dict[str, Any] | None, list[int]]:
    """The newest checkpoint that verifies.

    Returns:
        Its epoch (0 without one), its state, and the epochs of newer ones that did not verify.
    """
    skipped = []
    for epoch in reversed(checkpoint_epochs(run)):
        state = load_checkpoint(run, epoch)
        if state is not None:
            return epoch, state, skipped
        skipped.append(epoch)
    return 0, None, skipped


def prune_checkpoints(run: Location, best_epoch: int) -> None:
    """Delete all but the last two checkpoints and the best."""
    epochs = checkpoint_epochs(run)
    for epoch in epochs[:-KEEP_LAST]:
        if epoch != best_epoch:
            run.child(f"checkpoint_{epoch:06d}").delete_dir()
