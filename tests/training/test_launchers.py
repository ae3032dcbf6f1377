"""Ray Train around the loop: the same metrics for one and two workers, and errors that survive the way back."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError

from cxr_ray.data.store import DatasetReference, open_dataset
from cxr_ray.errors import ClusterError, ConfigError, DataError, RunError
from cxr_ray.training.checkpoints import newest_checkpoint
from cxr_ray.training.launch import train, train_worker
from cxr_ray.training.loop import network_of

pytestmark = pytest.mark.usefixtures("local_ray")

FAST = ["training.image_size=64", "training.batch_size=13", "training.precision=fp32", "training.epochs=2"]
# Batch statistics of a worker's half differ from those of the whole; without them nothing else may differ.
SAME_STEP = ["network.dropout=0", "optimization.learning_rate=1e-12"]


def run(phantoms, storage, name, workers, *options):
    return train(
        "tiny",
        phantoms,
        workers=workers,
        set_options=[*FAST, *options],
        storage=storage,
        name=name,
        cpus_per_worker=1,
        quiet=True,
    )


@pytest.fixture(scope="module")
def two_workers(phantoms, tmp_path_factory):
    """A run of two workers, its storage addressed by a URI with an option."""
    return run(phantoms, f"file://{tmp_path_factory.mktemp('runs')}?an=option", "two", 2)


def test_two_workers_write_one_run(two_workers):
    assert two_workers.folder.location.uri.endswith("/two?an=option")
    assert {path.name for path in two_workers.folder.location.local.parent.iterdir()} == {"two"}
    assert two_workers.status.state == "finished"
    assert [row["epoch"] for row in two_workers.folder.history()] == [1, 2]
    assert two_workers.folder.predictions().num_rows == 10


def test_metrics_of_two_workers_are_those_of_the_whole_split(two_workers):
    """The same weights, evaluated here alone, give exactly what two workers with uneven shards reported."""
    from cxr_ray.metrics.classification import classification_metrics

    info = two_workers.folder.info()
    epoch, state, _ = newest_checkpoint(two_workers.folder.location)
    assert state is not None
    network = network_of(state, info.experiment, len(info.dataset.classes))
    dataset = open_dataset(info.dataset.uri)
    rows = dataset.rows("val")
    assert len(rows) % 2 == 1 or len(dataset.rows("train")) % 2 == 1
    images = torch.from_numpy(np.stack([dataset.pixels[row] for row in rows]))[:, None].float() / 127.5 - 1
    with torch.inference_mode():
        logits = network(images)
    labels = torch.from_numpy(dataset.labels[rows])
    metrics = classification_metrics(logits, labels, dataset.classes, precision_floor=0.9)
    reported = two_workers.folder.history()[epoch - 1]
    for key, value in metrics.items():
        if key == "loss":
            assert reported["val/loss"] == pytest.approx(value, abs=1e-5)
        else:
            assert reported[f"val/{key}"] == value, key


def test_one_and_two_workers_report_the_same_training_loss_on_the_same_weights(phantoms, tmp_path):
    """At a learning rate of nothing, two workers' halves must add up to one worker's whole batches."""
    one = run(phantoms, tmp_path, "one", 0, *SAME_STEP, "training.epochs=1")
    two = run(phantoms, tmp_path, "two", 2, *SAME_STEP, "training.epochs=1")
    # Only batch normalisation, which sees half of every batch, may tell them apart.
    assert two.best["train/loss"] == pytest.approx(one.best["train/loss"], rel=0.1)


def test_an_error_in_a_worker_comes_back_as_one_sentence(phantoms, tmp_path):
    with pytest.raises(RunError, match=r"training loss became (nan|inf).*Lower optimization\.learning_rate") as raised:
        run(phantoms, tmp_path, "wild", 1, "optimization.learning_rate=1e30", "optimization.clip_norm=1e30")
    assert "Traceback" not in str(raised.value)
    assert (tmp_path / "wild" / "status.json").read_text().count("failed") == 1


def start_workers(run, phantoms, storage, changes):
    """Two workers on a run, as `train` starts them; the second is given `changes`, as if on another node."""

    def worker(job):
        import ray.train

        return train_worker(job | (changes if ray.train.get_context().get_world_rank() == 1 else {}))

    trainer = TorchTrainer(
        worker,
        train_loop_config={"folder": str(run), "dataset": phantoms.reference, "threads": 1},
        scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(name="workers", storage_path=str(storage)),
    )
    return trainer.fit().return_value


def test_a_dataset_that_one_worker_lacks_ends_them_all_with_its_sentence(two_workers, phantoms, tmp_path):
    run = two_workers.folder.location.local
    error = start_workers(run, phantoms, tmp_path, {"dataset": DatasetReference("/not/on/this/node")})
    assert isinstance(error, DataError)
    assert "/not/on/this/node: there is no such dataset" in str(error)


def test_workers_that_do_not_see_the_same_checkpoint_do_not_train_on(two_workers, phantoms, tmp_path):
    run = Path(shutil.copytree(two_workers.folder.location.local, tmp_path / "run"))
    late = Path(shutil.copytree(run, tmp_path / "late"))
    shutil.rmtree(late / "checkpoint_000002")
    with pytest.raises(TrainingFailedError, match="checkpoint 2 cannot be read on every node"):
        start_workers(run, phantoms, tmp_path, {"folder": str(late)})


def test_a_batch_too_small_for_the_workers_is_refused_before_ray_is_asked(phantoms, tmp_path):
    with pytest.raises(ConfigError, match=r"a batch of 2 images over 2 worker\(s\) leaves 1 each"):
        run(phantoms, tmp_path, "small", 2, "training.batch_size=2")
    assert not (tmp_path / "small").exists()


def test_more_workers_than_the_cluster_holds_are_refused_with_the_arithmetic(phantoms, tmp_path):
    with pytest.raises(ClusterError, match=r"9 worker\(s\) x 1 CPU = 9 CPU, but the cluster has 4"):
        run(phantoms, tmp_path, "many", 9, "training.batch_size=32")
    with pytest.raises(ClusterError, match=r"1 worker\(s\) x 1 GPU = 1 GPU, but the cluster has 0"):
        train("tiny", phantoms, workers=1, gpu=True, set_options=FAST, storage=tmp_path, quiet=True)
    assert not any(tmp_path.iterdir())
