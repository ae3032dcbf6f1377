"""The model and the threads around it: one thread owns the network, a small pool decodes and draws."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from cxr_ray.bundle import Bundle, Explanation, Prediction
from cxr_ray.explanation.overlay import png_bytes

Result = TypeVar("Result")


@dataclass(frozen=True)
class Question:
    """One film to answer.

    Attributes:
        film: uint8, (S, S), from `Predictor.prepare`.
        explain: Whether a heatmap is wanted.
        class_name: The class to explain, one of the bundle's; None is the predicted one.
    """

    film: np.ndarray
    explain: bool = False
    class_name: str | None = None


@dataclass(frozen=True)
class Answer:
    """The answer to a question; `explanation` where one was asked for."""

    prediction: Prediction
    explanation: Explanation | None = None


class Predictor:
    """Answers films without ever computing on the caller's thread; safe to use from any event loop.

    PyTorch keeps a pool of OpenMP threads for every Python thread that calls it, and these pools spin against
    each other and against the HTTP side. So one thread makes every call into the network.

    Args:
        bundle: Loaded; from here on it belongs to the model thread.
        torch_threads: Cores a forward pass computes on.
        decoders: Threads that decode uploads and draw heatmaps.
        max_pixels: Films with more are refused from their header.
    """

    def __init__(self, bundle: Bundle, *, torch_threads: int, decoders: int, max_pixels: int) -> None:
        self.bundle = bundle
        self._max_pixels = max_pixels
        self._model = ThreadPoolExecutor(1, "model", initializer=torch.set_num_threads, initargs=(torch_threads,))
        self._pool = ThreadPoolExecutor(decoders, "decode")

    def warm_up(self) -> None:
        """Answer and explain a gray film, so that the first client waits for neither lazy set-up nor a defect."""
        size = self.bundle.info.preprocessing.network_size
        film = np.full((size, size), 128, np.uint8)
        self._model.submit(self._answer, [Question(film), Question(film, explain=True)]).result()

    async def in_pool(self, function: Callable[..., Result], *arguments: object) -> Result:
        """Run a piece of CPU work off the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)

    def prepare(self, content: bytes) -> np.ndarray:
        """A film file as the network sees it: uint8, (S, S); to be run `in_pool`.

        Raises:
            DecodeError: Not a film this package reads.
        """
        return self.bundle.prepare(content, max_pixels=self._max_pixels)

    async def answer(self, questions: Sequence[Question]) -> list[Answer]:
        """Answer a batch on the model thread, in order."""
        return await asyncio.get_running_loop().run_in_executor(self._model, self._answer, questions)

    async def draw(self, explanation: Explanation, opacity: float) -> bytes:
        """The PNG of an explanation's overlay, RGB, at the network's input size."""
        return await self.in_pool(lambda: png_bytes(explanation.overlay(opacity)))

    async def check(self) -> None:
        """Return once the model thread answers; a thread that hangs keeps the caller waiting."""
        await asyncio.get_running_loop().run_in_executor(self._model, lambda: None)

    def close(self) -> None:
        """End the threads; work under way is finished, work waiting is dropped."""
        self._model.shutdown(cancel_futures=True)
        self._pool.shutdown(cancel_futures=True)

    def _answer(self, questions: Sequence[Question]) -> list[Answer]:
        # The body of the network, nearly all of the work, runs once for those who want a heatmap and those who do not.
        films = np.stack([question.film for question in questions])
        features = self.bundle.features(films)
        answers = [Answer(prediction) for prediction in self.bundle.predict_features(features)]
        wanted = [i for i, question in enumerate(questions) if question.explain]
        if wanted:
            names = [questions[i].class_name for i in wanted]
            explanations = self.bundle.explain_features(features[wanted], films[wanted], names)
            for i, explanation in zip(wanted, explanations, strict=True):
                answers[i] = Answer(explanation.prediction, explanation)
        return answers
