"""Serve a bundle from this machine: what `cxr-ray serve` does."""

from __future__ import annotations

import ipaddress
import logging
import os
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from typing import Any

from cxr_ray.bundle import load_bundle
from cxr_ray.errors import ClusterError, ConfigError
from cxr_ray.serving.access import KEYS_VARIABLE, keys_from

APP_NAME = "cxr"
_READY_WITHIN_S = 120.0
_LOGGING = {"log_level": "WARNING", "enable_access_log": False}


class LocalService:
    """A running service; `stop` ends it, and so does leaving a ``with`` block.

    Attributes:
        url: Where it answers, ``http://host:port``.
    """

    def __init__(self, url: str, *, owns_ray: bool) -> None:
        self.url = url
        self._owns_ray = owns_ray

    def stop(self) -> None:
        """Answer what is under way, then shut Serve down, and Ray with it where serving started it."""
        import ray
        from ray import serve
        from ray.serve import context

        if not ray.is_initialized():
            return
        if self._owns_ray:
            # serve.shutdown() would do the same, slower, and leave a warning of the raylet's on the screen. But it
            # also forgets its client, which Serve otherwise takes for one of the next local Ray (both are job 1).
            if APP_NAME in serve.status().applications:
                serve.delete(APP_NAME)
            context._set_global_client(None)
            ray.shutdown()
        else:
            serve.shutdown()

    def __enter__(self) -> LocalService:
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()


def deploy_locally(
    bundle: str | os.PathLike[str],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    blocking: bool = True,
    **arguments: Any,
) -> LocalService | None:
    """Serve a bundle over HTTP with Ray Serve, on this machine.

    Args:
        bundle: Folder or URI.
        host: Address to listen on; one that other machines reach needs API keys in ``CXR_API_KEYS``.
        port: Free TCP port.
        blocking: Print the address, serve until Ctrl-C, and return None. Otherwise return once it answers.
        **arguments: Further `ServeArguments`, such as ``max_upload_mb``.

    Returns:
        Without `blocking`, the running service.

    Raises:
        BundleError: There is no bundle, or it is damaged; found before Ray starts.
        ConfigError: No keys for an address others reach, or an argument that is not allowed.
        ClusterError: The port is taken, Serve runs already, or the service does not come up.
    """
    location = os.fspath(bundle)
    identity = load_bundle(location).id
    has_keys = bool(keys_from(os.environ))
    if not has_keys and not _is_loopback(host):
        raise ConfigError(
            f"'{host}' can be reached from other machines, and the server does not open to them without API keys",
            where="--host",
            next_step=f"Set {KEYS_VARIABLE} to one or more keys, separated by commas, or use 127.0.0.1",
        )
    _check_port(host, port)
    if blocking:
        print("starting Ray Serve", flush=True)  # noqa: T201 - takes some ten seconds
    service = _start(location, host, port, {**arguments, "insecure": not has_keys})
    if not blocking:
        return service
    print(_welcome(service.url, identity, has_keys), flush=True)  # noqa: T201 - what the command is for
    try:
        _wait_for_signal()
    finally:
        print("stopping", flush=True)  # noqa: T201
        service.stop()
    return None


def _start(bundle: str, host: str, port: int, arguments: dict[str, Any]) -> LocalService:
    from cxr_ray.cluster import connect, prepare_environment

    prepare_environment()  # Ray reads some of it when it is imported
    import ray

    owns_ray = not ray.is_initialized()
    connect()
    from ray import serve

    from cxr_ray.serving.app import application

    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # it tells of every step on the driver's screen
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    service = LocalService(url, owns_ray=owns_ray)
    if serve.status().proxies:
        raise ClusterError(
            "Ray Serve runs on this cluster already, with its own address and port",
            next_step="Add the bundle to its configuration with serve deploy, or end it with: serve shutdown",
        )
    try:
        serve.start(
            proxy_location="HeadOnly",
            http_options={"host": host, "port": port, "request_timeout_s": 60},
            logging_config=_LOGGING,
        )
        serve.run(
            application({**arguments, "bundle": bundle}), name=APP_NAME, route_prefix="/", logging_config=_LOGGING
        )
        _wait_until_ready(url)
    except RuntimeError as error:
        reason = _why_it_failed() or str(error)
        service.stop()
        raise ClusterError(f"the application does not start ({reason})", where=url) from error
    except BaseException:
        service.stop()
        raise
    return service


def _why_it_failed() -> str | None:
    """The last line of the traceback that Serve keeps of a replica that does not start."""
    from ray import serve

    application = serve.status().applications.get(APP_NAME)
    messages = [deployment.message.strip() for deployment in application.deployments.values()] if application else []
    return next((message.splitlines()[-1] for message in messages if message), None)


def _check_port(host: str, port: int) -> None:
    if not 0 < port < 65536:
        raise ClusterError(f"{port} is no port", where="--port", next_step="Choose one from 1 to 65535")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As the server itself does: a port whose last connections are closing is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ClusterError(
                f"cannot listen there ({error.strerror or error})",
                where=f"{host}:{port}",
                next_step=f"Choose another port, such as --port {port + 1 if port < 65535 else 8000}",
            ) from error


def _wait_until_ready(url: str) -> None:
    deadline = time.monotonic() + _READY_WITHIN_S
    while True:
        try:
            with urllib.request.urlopen(f"{url}/healthz", timeout=5):
                return
        except (urllib.error.URLError, OSError) as error:
            if time.monotonic() > deadline:
                problem = f"does not answer within {_READY_WITHIN_S:.0f} s ({error})"
                raise ClusterError(problem, where=url, next_step="See /tmp/ray/session_latest/logs/serve") from error
            time.sleep(0.2)


def _wait_for_signal() -> None:
    # Ray's own handler answers SIGTERM, which containers and service managers stop processes with, by aborting.
    arrived = threading.Event()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, lambda *_: arrived.set())
    try:
        arrived.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _welcome(url: str, identity: str, has_keys: bool) -> str:
    key = " -H 'X-API-Key: KEY'" if has_keys else ""
    return (
        f"serving bundle {identity[:16]} at {url} (Ctrl-C stops)\n"
        f"  curl{key} -F file=@film.png {url}/v1/predict\n"
        f"  curl{key} -F file=@film.png {url}/v1/explain -o heatmap.png"
    )
