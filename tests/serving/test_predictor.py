"""The model thread and the pool around it, without HTTP and without Ray."""

from __future__ import annotations

import asyncio
import io
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cxr_ray.bundle import Bundle, load_bundle
from cxr_ray.errors import DecodeError
from cxr_ray.serving.predictor import Predictor, Question


@pytest.fixture(scope="module")
def predictor(bundle: Bundle) -> Iterator[Predictor]:
    predictor = Predictor(bundle, torch_threads=1, decoders=2, max_pixels=1_000_000)
    predictor.warm_up()
    yield predictor
    predictor.close()


@pytest.fixture(scope="module")
def prepared(predictor: Predictor, pixels: np.ndarray) -> list[np.ndarray]:
    return [predictor.bundle.prepare(np.roll(pixels, 9 * shift, axis=1)) for shift in range(6)]


def test_a_mixed_batch_is_answered_in_order_as_each_alone(predictor: Predictor, prepared: list[np.ndarray]) -> None:
    questions = [
        Question(film, explain=i % 2 == 0, class_name="covid" if i == 4 else None) for i, film in enumerate(prepared)
    ]
    answers = asyncio.run(predictor.answer(questions))
    for question, answer in zip(questions, answers, strict=True):
        alone = predictor.bundle.predict_prepared(question.film[None])[0]
        assert answer.prediction.probabilities == pytest.approx(alone.probabilities, abs=1e-5)
        assert (answer.explanation is not None) == question.explain
        if answer.explanation is not None:
            assert answer.explanation.class_name == (question.class_name or answer.prediction.label)
            assert np.array_equal(answer.explanation.film, question.film)


def test_a_picture_is_drawn_at_the_networks_size(predictor: Predictor, prepared: list[np.ndarray]) -> None:
    async def draw(opacity: float) -> np.ndarray:
        answer = (await predictor.answer([Question(prepared[0], explain=True)]))[0]
        assert answer.explanation is not None
        return np.asarray(Image.open(io.BytesIO(await predictor.draw(answer.explanation, opacity))))

    assert np.array_equal(asyncio.run(draw(0.0)), np.stack([prepared[0]] * 3, axis=2))
    assert asyncio.run(draw(1.0)).shape == (*prepared[0].shape, 3)


def test_what_is_no_film_raises_before_it_reaches_the_model(predictor: Predictor) -> None:
    with pytest.raises(DecodeError):
        asyncio.run(predictor.in_pool(predictor.prepare, b"not a film"))


def test_one_thread_with_its_own_torch_threads_makes_every_call_and_the_loop_stays_free(
    bundle_path: Path, prepared: list[np.ndarray]
) -> None:
    bundle = load_bundle(bundle_path)
    calls: list[tuple[str, int, int]] = []

    def take_time(_module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        calls.append((threading.current_thread().name, torch.get_num_threads(), len(inputs[0])))
        time.sleep(0.1)

    bundle.network.blocks.register_forward_pre_hook(take_time)
    predictor = Predictor(bundle, torch_threads=2, decoders=1, max_pixels=1)
    ticks = 0

    async def watch() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.005)
            ticks += 1

    async def ask() -> None:
        watcher = asyncio.create_task(watch())
        questions = [Question(prepared[0]), Question(prepared[1], explain=True)]
        await asyncio.gather(*(predictor.answer(questions * n) for n in (1, 2, 3)))
        watcher.cancel()

    asyncio.run(ask())
    predictor.close()
    assert calls == [("model_0", 2, 2), ("model_0", 2, 4), ("model_0", 2, 6)]
    assert ticks > 10  # of about 60 in the 0.3 s of the model; none if it blocked the loop


def test_the_check_waits_for_the_model_thread(predictor: Predictor) -> None:
    asyncio.run(asyncio.wait_for(predictor.check(), 5))


def test_a_model_that_fails_shows_when_it_is_warmed_up(bundle_path: Path) -> None:
    bundle = load_bundle(bundle_path)
    bundle.network.classifier = torch.nn.Linear(3, len(bundle.classes))  # fits no feature map
    predictor = Predictor(bundle, torch_threads=1, decoders=1, max_pixels=1)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        predictor.warm_up()
    predictor.close()
