"""The Ray Serve application: the model inside the HTTP ingress replica, its films answered in batches."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import cv2
import ray
from fastapi import FastAPI
from ray import serve
from ray.serve.config import BackpressureConfig, RequestRouterConfig
from ray.serve.exceptions import RayServeException

from cxr_ray.bundle import load_bundle
from cxr_ray.errors import CxrError
from cxr_ray.serving.access import open_gate
from cxr_ray.serving.config import ServeArguments, read_arguments
from cxr_ray.serving.predictor import Answer, Predictor, Question
from cxr_ray.serving.routes import Ask, create_app

_DECODERS = 2


@serve.deployment(
    name="Classifier",
    # A waiting request holds its film in memory: 32 uploads of 20 MB are the most a replica can be made to keep.
    max_ongoing_requests=32,
    max_queued_requests=64,
    backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1),
    # Where all replicas are full, Ray asks again after 25 to 500 ms, in which replicas run dry: 60 clients got less
    # than half of the answers a second that 30 clients got.
    request_router_config=RequestRouterConfig(
        **{"initial_backoff_s": 0.005, "backoff_multiplier": 1.5, "max_backoff_s": 0.02}  # type: ignore[arg-type]
    ),
    health_check_period_s=10,
    health_check_timeout_s=30,
    ray_actor_options={"num_cpus": 1},
)
@serve.ingress()
class Classifier:
    """One replica: HTTP intake, decoding pool, model thread."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        self._arguments = ServeArguments.model_validate(arguments)
        self._gate = open_gate(insecure=self._arguments.insecure)
        cv2.setNumThreads(1)  # the decoding pool is the parallelism; OpenCV's own threads would fight the model's
        resources = ray.get_runtime_context().get_assigned_resources()
        self._predictor = Predictor(
            load_bundle(self._arguments.bundle, device="cuda" if resources.get("GPU") else "cpu"),
            # One number to turn: the CPUs Ray reserves for the replica are those its forward pass computes on.
            torch_threads=max(1, int(resources.get("CPU", 1))),
            decoders=_DECODERS,
            max_pixels=self._arguments.max_pixels,
        )
        self._predictor.warm_up()

    def __serve_build_asgi_app__(self) -> FastAPI:
        # Ray calls this after the constructor, so the routes close over a model that has answered already.
        arguments = self._arguments
        ask = _batched(self._predictor, arguments.max_batch_size)
        return create_app(self._predictor, ask, self._gate, max_upload_bytes=arguments.max_upload_bytes)

    async def check_health(self) -> None:
        """Ray restarts the replica when this does not return within ``health_check_timeout_s``."""
        await self._predictor.check()


def _batched(predictor: Predictor, max_batch_size: int) -> Ask:
    """Answer questions in batches of those that came while the model was busy.

    Serve closes a batch when its wait is over even while the one before still computes, so that under load
    batches of one queue up (24 clients on 2 cores: 36 films/s and 1.6 a batch with a wait of 5 ms). Questions
    held back until the model is free batch by themselves (58 films/s, 6.7 a batch), and nobody waits for
    company when there is none.
    """
    free = asyncio.Event()
    free.set()

    @serve.batch(max_batch_size=max_batch_size, batch_wait_timeout_s=0)
    async def answer(questions: list[Question]) -> list[Answer]:
        free.clear()
        try:
            return await predictor.answer(questions)
        finally:
            free.set()

    async def ask(question: Question) -> Answer:
        await free.wait()
        return await answer(question)

    return ask


def application(args: Mapping[str, Any]) -> serve.Application:
    """The application, ready for `serve.run`.

    Args:
        args: See `ServeArguments`.

    Raises:
        ConfigError: Naming the key: unknown, missing, not allowed, no bundle; or no API keys and not insecure.
    """
    arguments = read_arguments(args)
    # Also here, not only in the replica: Ray tries a replica's constructor again and again before it gives up.
    open_gate(insecure=arguments.insecure)
    return Classifier.bind(arguments.model_dump())


def build(args: dict[str, Any]) -> serve.Application:
    """What `serve_config.yaml` names: `application`, with its errors made readable in ``serve status``.

    Raises:
        RayServeException: For any error of `application`, in the same words.
    """
    try:
        return application(args)
    except CxrError as error:
        # The one exception Serve reports as it is; others it tries three times and buries in tracebacks.
        raise RayServeException(str(error)) from error
