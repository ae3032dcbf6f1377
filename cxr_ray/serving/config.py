"""What `serve_config.yaml` may say about this application, and how its values are found and checked."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from cxr_ray.bundle import SUMS_FILE
from cxr_ray.config import validate
from cxr_ray.errors import ConfigError
from cxr_ray.paths import is_uri, locate

ROOT_VARIABLE = "CXR_ROOT"


class ServeArguments(BaseModel):
    """The application's ``args``.

    Attributes:
        bundle: Folder or URI of the bundle; a relative folder lies below ``CXR_ROOT``, or else below the
            directory Ray was started in.
        insecure: Start even without API keys, and then answer only clients on this machine. Where keys are
            set they are demanded all the same.
        max_upload_mb: Largest request body in megabytes (10^6 bytes).
        max_megapixels: Largest film, judged by its header before a pixel is decoded.
        max_batch_size: Films in one forward pass, at most the deployment's ``max_ongoing_requests``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    bundle: str = Field(min_length=1)
    insecure: bool = False
    max_upload_mb: float = Field(default=20, gt=0, allow_inf_nan=False)
    # The largest detectors make about 20 megapixels. A hostile film of 40 costs up to 0.7 GB to decode.
    max_megapixels: float = Field(default=40, gt=0, allow_inf_nan=False)
    max_batch_size: int = Field(default=16, ge=1)

    @property
    def max_upload_bytes(self) -> int:
        return int(self.max_upload_mb * 1_000_000)

    @property
    def max_pixels(self) -> int:
        return int(self.max_megapixels * 1_000_000)


def read_arguments(args: Mapping[str, Any], where: str = "serve_config.yaml, args") -> ServeArguments:
    """Check an application's ``args`` and find its bundle.

    Args:
        args: As written; values may be texts, as ``serve run cxr_ray.serving.app:build bundle=...`` gives.
        where: Named in errors.

    Returns:
        The arguments, with the bundle's path made absolute, so that a replica in another directory finds it.

    Raises:
        ConfigError: Naming the key: unknown, missing, not allowed, or no bundle at its path.
    """
    arguments = validate(ServeArguments, args, where)
    return arguments.model_copy(update={"bundle": _find_bundle(arguments.bundle, f"{where}, key bundle")})


def _find_bundle(written: str, where: str) -> str:
    path = written
    looked_below = ""
    if not is_uri(written) and not Path(written).expanduser().is_absolute():
        root = os.environ.get(ROOT_VARIABLE)
        base = Path(root).expanduser().absolute() if root else Path.cwd()
        origin = ROOT_VARIABLE if root else "the directory Ray was started in"
        path = str(base / written)
        looked_below = f" (relative paths lie below {base}, which is {origin})"
    location = locate(path)
    if not location.child(SUMS_FILE).exists():
        raise ConfigError(
            f"there is no bundle at {location}{looked_below}",
            where=where,
            next_step="Make one with: make demo, or: cxr-ray promote RUN --out BUNDLE; "
            "an absolute path or a URI always works",
        )
    return location.uri
