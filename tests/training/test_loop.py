"""The training loop in this process: evidence, resuming, stopping; the launchers have their own suite."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from cxr_ray.errors import ConfigError, DataError, RunError
from cxr_ray.experiment import load_experiment
from cxr_ray.metrics.classification import classification_metrics
from cxr_ray.paths import locate
from cxr_ray.training.checkpoints import checkpoint_epochs, load_checkpoint, newest_checkpoint
from cxr_ray.training.launch import train
from cxr_ray.training.loop import network_of
from cxr_ray.training.run_folder import table_logits

FAST = ["training.image_size=64", "training.batch_size=16", "training.precision=fp32", "optimization.warmup_epochs=0.5"]


def run(phantoms, tmp_path, *options, name: str | None = "run", **keywords):
    return train(
        "tiny", phantoms, workers=0, set_options=[*FAST, *options], storage=tmp_path, name=name, quiet=True, **keywords
    )


@pytest.fixture(scope="module")
def finished(phantoms, tmp_path_factory):
    return run(phantoms, tmp_path_factory.mktemp("runs"), "training.epochs=4")


def test_history_has_one_row_an_epoch_with_the_contracts_keys(finished, phantoms):
    history = finished.folder.history()
    assert [row["epoch"] for row in history] == [1, 2, 3, 4]
    expected = {"train/loss", "val/loss", "val/macro_f1", "val/accuracy", "images_per_s", "learning_rate", "best"}
    expected |= {f"val/{kind}/{name}" for kind in ("recall", "recall_at_precision") for name in phantoms.classes}
    assert expected <= set(history[0])


def test_the_score_is_the_running_best(finished):
    values = [row["val/macro_f1"] for row in finished.folder.history()]
    assert [row["score"] for row in finished.folder.history()] == [max(values[: i + 1]) for i in range(4)]


def test_the_last_two_checkpoints_and_the_best_are_kept(finished):
    kept = set(checkpoint_epochs(finished.folder.location))
    assert kept == {3, 4, finished.best["epoch"]}


def test_predictions_are_the_best_epochs_on_val_and_calibration(finished, phantoms):
    table = finished.folder.predictions()
    assert table.schema.metadata[b"epoch"] == str(finished.best["epoch"]).encode()
    ids = dict(zip(phantoms.column("image_id"), phantoms.column("split"), strict=True))
    assert [ids[i] for i in table.column("image_id").to_pylist()] == table.column("split").to_pylist()
    assert set(table.column("split").to_pylist()) == {"val", "calibration"}
    val = np.array(table.column("split").to_pylist()) == "val"
    logits = torch.from_numpy(table_logits(table)[val])
    labels = torch.from_numpy(phantoms.labels[phantoms.rows("val")])
    metrics = classification_metrics(logits, labels, phantoms.classes, precision_floor=0.9)
    assert metrics["macro_f1"] == pytest.approx(finished.best["val/macro_f1"])
    assert metrics["loss"] == pytest.approx(finished.best["val/loss"])


def test_the_best_checkpoint_reproduces_the_predictions(finished, phantoms):
    state = load_checkpoint(finished.folder.location, finished.best["epoch"])
    assert state is not None
    network = network_of(state, finished.folder.info().experiment, len(phantoms.classes))
    rows = phantoms.rows("val")
    images = torch.from_numpy(np.stack([phantoms.pixels[row] for row in rows]))[:, None].float() / 127.5 - 1
    with torch.inference_mode():
        logits = network(images)
    stored = table_logits(finished.folder.predictions())[: len(rows)]
    np.testing.assert_allclose(logits.numpy(), stored, atol=1e-4)


def test_feature_statistics_are_the_class_means_of_training_features(finished, phantoms):
    from safetensors.numpy import load

    stats = load(finished.folder.location.child("feature_stats.safetensors").read_bytes())
    assert stats["class_means"].shape == (5, 256)
    assert stats["counts"].tolist() == [phantoms.info.counts["train"][name] for name in phantoms.classes]
    assert np.linalg.eigvalsh(stats["covariance"]).min() > -1e-4


def test_no_image_of_the_test_split_is_touched(finished, phantoms):
    ids = np.array(phantoms.column("image_id"))
    used = set(finished.folder.predictions().column("image_id").to_pylist())
    assert not used & set(ids[phantoms.rows("test")])


def test_a_run_continued_equals_one_that_was_never_interrupted(finished, phantoms, tmp_path, monkeypatch):
    from cxr_ray.training import loop

    class Stop(Exception):
        pass

    original = loop._Loop._save

    def stop_after_second(self, is_best):
        original(self, is_best)
        if self.progress.epoch == 2:
            raise Stop("killed")

    monkeypatch.setattr(loop._Loop, "_save", stop_after_second)
    with pytest.raises(RunError, match="killed"):
        run(phantoms, tmp_path, "training.epochs=4")
    monkeypatch.undo()
    resumed = run(phantoms, tmp_path, "training.epochs=4", resume=True)
    ours, theirs = ([dict(row) for row in result.folder.history()] for result in (resumed, finished))
    for row in (*ours, *theirs):
        for key in ("seconds", "images_per_s", "data_wait_share"):
            row.pop(key)
    assert ours == theirs
    one, other = (newest_checkpoint(result.folder.location)[1] for result in (resumed, finished))
    assert one is not None and other is not None
    for name, tensor in one["network"].items():
        assert torch.equal(tensor, other["network"][name]), name


def test_a_torn_checkpoint_is_skipped_for_the_one_before(finished, phantoms, tmp_path):
    import shutil

    shutil.copytree(finished.folder.location.local, tmp_path / "run")
    folder = locate(tmp_path / "run")
    state = folder.child("checkpoint_000004", "state.pt")
    state.write_bytes(state.read_bytes()[:-100])
    epoch, content, skipped = newest_checkpoint(folder)
    assert (epoch, skipped) == (3, [4])
    assert content is not None


def test_resuming_without_a_name_finds_the_newest_unfinished_run(phantoms, tmp_path):
    first = run(phantoms, tmp_path, "training.epochs=1", name="done")
    with pytest.raises(RunError, match=r"no unfinished run of experiment 'tiny'.*: done \(finished\)"):
        run(phantoms, tmp_path, "training.epochs=1", name=None, resume=True)
    status = first.folder.status()
    assert status is not None
    first.folder.write_status(status.model_copy(update={"state": "interrupted"}))
    again = run(phantoms, tmp_path, "training.epochs=1", name=None, resume=True)
    assert again.folder.location.name == "done"


def test_a_name_in_use_is_refused_without_resume_and_other_settings_with_it(finished, phantoms):
    storage = finished.folder.location.local.parent
    with pytest.raises(RunError, match="a run of this name exists"):
        run(phantoms, storage, "training.epochs=4")
    with pytest.raises(RunError, match=r"other settings: training\.epochs: 4 -> 9"):
        run(phantoms, storage, "training.epochs=9", resume=True)
    with pytest.raises(RunError, match="no run of this name to resume"):
        run(phantoms, storage, "training.epochs=4", name="nobody", resume=True)


def test_resuming_a_finished_run_changes_nothing(finished, phantoms):
    before = finished.folder.location.child("history.jsonl").read_bytes()
    again = run(phantoms, finished.folder.location.local.parent, "training.epochs=4", resume=True)
    assert again.status.state == "finished"
    assert finished.folder.location.child("history.jsonl").read_bytes() == before


def test_training_stops_when_the_metric_no_longer_improves(phantoms, tmp_path):
    result = run(phantoms, tmp_path, "training.epochs=9", "training.patience=1", "optimization.learning_rate=1e-12")
    assert result.status.state == "stopped"
    assert "no better val/macro_f1" in result.status.reason
    assert len(result.folder.history()) == result.best["epoch"] + 1


def test_a_loss_is_minimised_where_it_is_the_metric(phantoms, tmp_path):
    result = run(phantoms, tmp_path, "training.epochs=3", "training.metric=loss")
    losses = [row["val/loss"] for row in result.folder.history()]
    assert result.best["val/loss"] == min(losses) == result.folder.history()[-1]["score"]


def test_a_loss_that_is_no_number_stops_the_run_and_says_what_to_do(phantoms, tmp_path):
    with pytest.raises(RunError, match=r"training loss became (nan|inf).*Lower optimization\.learning_rate"):
        run(phantoms, tmp_path, "optimization.learning_rate=1e30", "optimization.clip_norm=1e30")
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["state"] == "failed"


def test_experiments_that_do_not_fit_the_dataset_are_refused_before_anything_is_written(phantoms, tmp_path):
    with pytest.raises(
        ConfigError, match=r"training\.image_size: the experiment asks for 128 px, the dataset holds 64"
    ):
        train("tiny", phantoms, workers=0, set_options=["training.image_size=128"], storage=tmp_path / "runs")
    with pytest.raises(ConfigError, match="'flu' is not a class"):
        run(phantoms, tmp_path / "runs", "watched_class=flu")
    with pytest.raises(DataError, match="no such dataset"):
        train("tiny", tmp_path / "nowhere", workers=0, storage=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_the_network_learns_the_films_it_trains_on(phantoms, tmp_path):
    plain = ("augment.exposure=0", "augment.geometry=0", "network.dropout=0", "loss.label_smoothing=0")
    result = run(phantoms, tmp_path, "training.epochs=14", "training.patience=null", *plain)
    history = result.folder.history()
    assert history[-1]["train/loss"] < 0.5 * history[0]["train/loss"]


def test_the_experiment_written_into_the_run_is_the_one_that_ran(finished):
    info = finished.folder.info()
    assert info.experiment == load_experiment("tiny", set_options=[*FAST, "training.epochs=4"])
    assert info.experiment_fingerprint == info.experiment.fingerprint
    assert info.versions["torch"] == torch.__version__.split("+")[0]
