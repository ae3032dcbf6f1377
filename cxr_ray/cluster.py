"""The only door to a Ray cluster: start or join one, look at what it has, map work over it."""

from __future__ import annotations

import functools
import os
import re
import sys
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import yaml

from cxr_ray.errors import ClusterError, ConfigError, CxrError
from cxr_ray.paths import locate

Item = TypeVar("Item")
Result = TypeVar("Result")

# Settings that Ray and OpenMP read once, when a process starts; a value the user has set stays.
ENVIRONMENT = {
    # Ray turns token authentication on for clusters it starts, but its clients default to off.
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Without these, workers change their directory and print every line twice.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    # State on disk at most this old when the driver is killed; also how fresh the live view can be.
    "TUNE_GLOBAL_CHECKPOINT_S": "5",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    # A trial that failed before its first epoch ends without a score; that is no reason to end the run.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    # The old reporter is the one that verbose=0 silences.
    "RAY_AIR_NEW_OUTPUT": "0",
    # PyTorch's threads wait asleep: spinning ones take the cores from Ray's processes and from other trials.
    "OMP_WAIT_POLICY": "passive",
    "NO_ALBUMENTATIONS_UPDATE": "1",
}
AUTOSCALER_FILE = "~/ray_bootstrap_config.yaml"
_PROBE_TIMEOUT_S = 60
_OUT_OF_MEMORY = re.compile(r"killed due to the node running low on memory.*?was (\S+ used / \S+ limit)", re.DOTALL)
_QUIET: dict[str, Any] = {"logging_level": "WARNING", "log_to_driver": False}
# Whether `connect` started the Ray this process is connected to: that one never grows.
_STARTED_HERE = False


def prepare_environment() -> None:
    """Put `ENVIRONMENT` in place; does nothing once Ray is imported, which has read it by then."""
    if "ray" in sys.modules:
        return
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def connect(
    address: str | None = None,
    *,
    cpus: int | None = None,
    resources: dict[str, float] | None = None,
    dashboard: bool = False,
) -> None:
    """Start a local Ray, or join a running one; does nothing if this process is already connected.

    Args:
        address: ``auto``, ``host:6379`` or ``ray://...``; None starts Ray on this machine.
        cpus: CPUs of a local Ray; None for all.
        resources: Custom resources of a local Ray.
        dashboard: Start the dashboard of a local Ray, which Serve's and Jobs' REST interfaces live in.

    Raises:
        ClusterError: The address does not answer or refuses the token, or Ray cannot start here.
    """
    global _STARTED_HERE  # noqa: PLW0603 - one process is connected to one Ray
    prepare_environment()
    import ray

    if ray.is_initialized():
        return
    _STARTED_HERE = address is None
    try:
        if address is None:
            ray.init(
                # Without it Ray joins whatever RAY_ADDRESS names or was started on this machine last.
                address="local",
                num_cpus=cpus,
                resources=resources,
                include_dashboard=dashboard,
                dashboard_host="127.0.0.1",
                **_QUIET,
            )
        else:
            ray.init(address=address, **_QUIET)
    except Exception as error:
        # Ray raises ConnectionError, RuntimeError, AuthenticationError, ValueError for the same thing.
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if address is None:
            raise ClusterError(
                f"Ray cannot be started on this machine ({reason})",
                next_step="Check the free memory, and the room in /tmp and /dev/shm",
            ) from error
        raise ClusterError(
            f"no Ray cluster can be joined here ({reason})",
            where=address,
            next_step="Check the address with 'ray status --address ...', and that RAY_AUTH_TOKEN or "
            "RAY_AUTH_TOKEN_PATH holds the cluster's token (RAY_AUTH_MODE=disabled for a cluster without one)",
        ) from error
    if _STARTED_HERE:
        _protect_token()


def disconnect() -> None:
    """Leave the cluster; a Ray that `connect` started ends."""
    import ray

    ray.shutdown()


def available(resource: str) -> float:
    """How much of a resource (``CPU``, ``GPU`` ...) the whole cluster has, in use or not."""
    import ray

    return float(ray.cluster_resources().get(resource, 0.0))


def check_fits(workers: int, per_worker: dict[str, float], *, what: str = "worker", where: object = None) -> None:
    """Refuse what the cluster can never hold, before anything waits for it.

    Args:
        workers: How many at a time.
        per_worker: What each reserves, by Ray's names.
        what: What they are called, for the message.
        where: What asks for them, for the message.

    Raises:
        ClusterError: With the arithmetic.
    """
    for resource, amount in per_worker.items():
        have = could_have(resource)
        if workers * amount > have + 1e-9:
            raise ClusterError(
                f"{workers} {what}(s) x {amount:g} {resource} = {workers * amount:g} {resource}, "
                f"but the cluster has {have:g} at most",
                where=where,
                next_step=f"Ask for fewer {what}s or less for each, or add nodes",
            )
    if (hold := could_hold(per_worker)) < workers:
        each = " and ".join(f"{amount:g} {resource}" for resource, amount in per_worker.items())
        nodes = max(_layouts(), key=lambda nodes: _hold(nodes, per_worker))
        sizes = Counter(" and ".join(f"{node.get(name, 0):g} {name}" for name in per_worker) for node in nodes)
        those = ", ".join(f"{count} with {size}" for size, count in sizes.items())
        raise ClusterError(
            f"{workers} {what}(s) of {each} do not fit: each lies on one node, and the nodes ({those}) hold {hold}",
            where=where,
            next_step=f"Ask for fewer {what}s or less for each, or add larger nodes",
        )


def check_readable(path: str, what: str) -> None:
    """On a cluster of several nodes, check that every node can read a path that is no remote storage.

    Raises:
        ClusterError: Naming the nodes that cannot.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = [node for node in ray.nodes() if node["Alive"]]
    location = locate(path)
    if len(nodes) < 2 or not location.is_local:
        return
    probe = ray.remote(num_cpus=0)(_exists)
    answers = {
        node["NodeManagerAddress"]: probe.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(location.path)
        for node in nodes
    }
    missing = [name for name, answer in answers.items() if not _says_yes(answer)]
    if missing:
        raise ClusterError(
            f"{what} {path} cannot be read on {len(missing)} of {len(nodes)} nodes ({', '.join(missing[:3])})",
            next_step="Put it on storage that every node sees (a shared file system, s3://, gs:// ...) "
            "and give that path",
        )


def parallel_map(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """`map` over the cluster's CPUs, results in order, at most a few in flight so that memory stays flat.

    Raises:
        CxrError: What the function raised, or that its process died.
    """
    remote = _remote(function)
    in_flight: deque[Any] = deque()
    limit = max(2, 2 * int(available("CPU")))
    for item in items:
        in_flight.append(remote.remote(item))
        if len(in_flight) >= limit:
            yield _result(in_flight.popleft())
    while in_flight:
        yield _result(in_flight.popleft())


@functools.lru_cache(maxsize=32)
def _remote(function: Callable[[Any], Any]) -> Any:
    """A remote function; kept, because each new one is sent to the cluster and fetched by its workers again."""
    import ray

    return ray.remote(num_cpus=1)(function)


def reason_of(error: object) -> str:
    """Why something on the cluster failed, in one line: Ray puts the worker's own words behind the traces."""
    text = str(error)
    if killed := _OUT_OF_MEMORY.search(text):
        return f"Ray killed workers because their node ran out of memory ({killed[1]})"
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__


def find_cxr_error(error: BaseException) -> CxrError | None:
    """The `CxrError` that a worker raised, out of the wrappers Ray puts around it; None if there is none."""
    seen: set[int] = set()
    pending: list[BaseException] = [error]
    while pending:
        current = pending.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        if isinstance(current, CxrError) and type(current).__module__.startswith("cxr_ray."):
            return current
        failures = getattr(current, "worker_failures", None)
        inner = list(failures.values()) if isinstance(failures, dict) else []
        for other in (*inner, getattr(current, "cause", None), current.__cause__, current.__context__):
            if isinstance(other, BaseException):
                pending.append(other)
    return None


def unique_name(prefix: str) -> str:
    """A readable name that no other run has: ``tiny-1123-2014-3f9a``."""
    from datetime import datetime

    return f"{prefix}-{datetime.now().astimezone():%m%d-%H%M}-{uuid.uuid4().hex[:4]}"


def check_name(name: str | None) -> None:
    """Refuse a run's name that would not be one folder in its storage.

    Raises:
        ConfigError: Saying what a name may hold.
    """
    if name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise ConfigError(
            f"'{name}' is not a name: up to 100 letters, digits, '.', '_' and '-', the first a letter or digit",
            where="--name",
        )


def could_have(resource: str) -> float:
    """How much of a resource the cluster has, or may grow to where this process runs on an autoscaling head."""
    return max(sum(float(node.get(resource, 0)) for node in nodes) for nodes in _layouts())


def could_hold(per_worker: dict[str, float]) -> int:
    """How many workers the cluster's nodes hold, or those it may grow to; a worker lies on one node."""
    return max(_hold(nodes, per_worker) for nodes in _layouts())


def _hold(nodes: list[dict[str, float]], per_worker: dict[str, float]) -> int:
    asked = [(resource, amount) for resource, amount in per_worker.items() if amount]
    return sum(int(min(node.get(resource, 0) / amount for resource, amount in asked) + 1e-9) for node in nodes)


def _layouts() -> list[list[dict[str, float]]]:
    """The resources of the nodes there are, and of those there may be.

    Ray tells nobody how far its autoscaler may go, but `ray up` leaves the cluster's description on the head,
    where drivers run. A node described without resources (Ray then asks the cloud) counts as empty.
    """
    import ray

    present = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    description = Path(AUTOSCALER_FILE).expanduser()
    if _STARTED_HERE or not description.is_file():
        return [present]
    config = yaml.safe_load(description.read_text())
    head, most = config.get("head_node_type"), config.get("max_workers", 0)
    possible = []
    for name, node in config.get("available_node_types", {}).items():
        count = 1 if name == head else min(most, node.get("max_workers", most))
        possible += [node.get("resources", {})] * count
    return [present, possible]


def _exists(path: str) -> bool:
    return Path(path).exists()


def _says_yes(answer: Any) -> bool:
    import ray
    from ray.exceptions import RayError

    try:
        return ray.get(answer, timeout=_PROBE_TIMEOUT_S)
    except RayError:  # no answer in time, or the node is gone
        return False


def _result(reference: Any) -> Any:
    import ray
    from ray.exceptions import RayError

    try:
        return ray.get(reference)
    except RayError as error:
        raise find_cxr_error(error) or ClusterError(f"a task on the cluster failed: {reason_of(error)}") from error


def _protect_token() -> None:
    # Ray writes the token readable for everyone on the machine.
    token = Path("~/.ray/auth_token").expanduser()
    if token.is_file():
        token.chmod(0o600)
