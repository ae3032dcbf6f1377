"""From a run to a bundle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from cxr_ray.bundle import Bundle, load_bundle
from cxr_ray.data.store import Dataset
from cxr_ray.errors import BundleError, RunError
from cxr_ray.leaderboard.evidence import read_predictions
from cxr_ray.leaderboard.promote import promote
from cxr_ray.leaderboard.rows import read_leaderboard
from cxr_ray.paths import locate
from cxr_ray.training.run_folder import PREDICTIONS_FILE, RunFolder, best_row, table_logits

Copy = Callable[..., Path]


@pytest.fixture(scope="module")
def bundle(training_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return promote(training_run, out=tmp_path_factory.mktemp("bundles") / "plain")


def predictions_of(run: Path) -> Any:
    folder = RunFolder(locate(run))
    best = best_row(folder.history())
    assert best is not None
    return read_predictions(folder, best["epoch"], folder.info().dataset.classes)


def rewrite_predictions(run: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    file = run / PREDICTIONS_FILE
    pq.write_table(change(pq.read_table(file)), file)


def test_the_bundle_gives_the_logits_of_training_from_the_original_files(
    bundle: Bundle, training_run: Path, dataset: Dataset, films: Path
) -> None:
    table = RunFolder(locate(training_run)).predictions()
    by_id = dict(zip(table.column("image_id").to_pylist(), table_logits(table), strict=True))
    rows = dataset.rows("val")
    paths = dataset.manifest.column("path").take(rows).to_pylist()
    ids = dataset.manifest.column("image_id").take(rows).to_pylist()
    prepared = np.stack([bundle.prepare(films / path) for path in paths])
    expected = np.stack([by_id[image_id] for image_id in ids])
    np.testing.assert_allclose(bundle.logits(prepared), expected, atol=1e-4)


def test_the_bundle_decides_by_its_largest_logit(bundle: Bundle, training_run: Path) -> None:
    logits = predictions_of(training_run).logits
    assert len(set(logits.argmax(axis=1))) == 3
    decided = bundle.decide(bundle.info.calibration.probabilities(torch.from_numpy(logits)))
    assert decided.tolist() == logits.argmax(axis=1).tolist()
    assert bundle.info.calibration.bias != [0.0, 0.0, 0.0]


def test_probabilities_average_to_the_class_rates_they_were_fitted_on(bundle: Bundle, training_run: Path) -> None:
    predictions = predictions_of(training_run)
    half = predictions.calibration_half()
    assert bundle.info.calibration.images == half.sum()
    probabilities = bundle.info.calibration.probabilities(torch.from_numpy(predictions.logits[half]))
    rates = np.bincount(predictions.labels[half], minlength=3) / half.sum()
    plain = torch.from_numpy(predictions.logits[half]).softmax(dim=1).mean(dim=0).numpy()
    calibrated = probabilities.mean(dim=0).numpy()
    # The fit's pull to the identity, worth an image, leaves a few hundredths on these 48.
    np.testing.assert_allclose(calibrated, rates, atol=0.08)
    assert np.abs(calibrated - rates).max() < np.abs(plain - rates).max()


def test_the_other_half_of_the_calibration_split_shares_no_patient_with_the_fitted_one(training_run: Path) -> None:
    predictions = predictions_of(training_run)
    half = predictions.calibration_half()
    other = (predictions.split == "calibration") & ~half
    groups = predictions.groups
    assert half.any()
    assert other.any()
    assert not set(groups[half]) & set(groups[other])
    assert set(predictions.split[half]) == {"calibration"}


def test_validation_metrics_are_the_histories_with_counts_and_confusion(bundle: Bundle, training_run: Path) -> None:
    best = best_row(RunFolder(locate(training_run)).history())
    assert best is not None
    validation = bundle.info.validation
    for key, value in validation["metrics"].items():
        assert value == pytest.approx(best[key], abs=1e-6)
    assert validation["images"] == 30
    assert validation["images_by_class"] == {"normal": 10, "covid": 10, "tuberculosis": 10}
    confusion = np.array(validation["confusion"])
    assert confusion.sum(axis=1).tolist() == [10, 10, 10]
    assert np.trace(confusion) / 30 == pytest.approx(best["val/accuracy"])


def test_the_bundle_says_where_it_comes_from(bundle: Bundle, training_run: Path) -> None:
    info = RunFolder(locate(training_run)).info()
    provenance = bundle.info.provenance
    assert (provenance["run"], provenance["trial"], provenance["epochs"]) == ("plain", None, 4)
    assert provenance["experiment"] == info.experiment.model_dump(mode="json")
    assert provenance["experiment_fingerprint"] == info.experiment.fingerprint
    assert provenance["dataset"]["fingerprint"] == info.dataset.fingerprint
    assert provenance["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert bundle.info.preprocessing.model_dump() == {"dataset_size": 96, "fit": "squash", "network_size": 64}
    assert bundle.history() == RunFolder(locate(training_run)).history()
    assert bundle.info.warnings == []


def test_the_model_card_states_data_scores_limits_and_use(bundle: Bundle) -> None:
    card = (bundle.root / "README.md").read_text()
    macro = bundle.info.validation["metrics"]["val/macro_f1"]
    for text in (
        "# plain",
        "Not a medical device",
        "| `covid` | 24 | 10 | 32 | 2 |",
        f"| mean over classes | 30 | {bundle.info.validation['metrics']['val/macro_recall']:.3f}",
        f"{macro:.3f} |",
        f"The temperature is {bundle.info.calibration.temperature:.3f}",
        "look better than they are",
        "cxr-ray evaluate BUNDLE",
    ):
        assert text in card
    assert bundle.id == hashlib.sha256((bundle.root / "SHA256SUMS").read_bytes()).hexdigest()


def test_the_best_trial_of_a_tuning_run_is_promoted(tuning_run: Path, tmp_path: Path) -> None:
    best = read_leaderboard(tuning_run).rows[0]
    bundle = promote(tuning_run, out=tmp_path / "bundle")
    assert bundle.info.provenance["trial"] == best.trial
    assert bundle.info.provenance["parameters"] == best.parameters
    assert bundle.info.provenance["compared_trials"] == 2
    assert bundle.info.name == f"search-{best.trial}"
    assert load_bundle(tmp_path / "bundle").id == bundle.id


def test_the_trial_asked_for_is_promoted_under_the_name_given(tuning_run: Path, tmp_path: Path) -> None:
    other = read_leaderboard(tuning_run).rows[1]
    bundle = promote(tuning_run, trial=other.trial, name="second", out=tmp_path / "bundle")
    assert bundle.info.provenance["trial"] == other.trial
    assert bundle.info.name == "second"


def test_an_unknown_trial_is_refused_with_those_there_are(tuning_run: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"there is no trial 'aaaa0009'.*aaaa0001.*aaaa0003"):
        promote(tuning_run, trial="aaaa0009", out=tmp_path / "bundle")


def test_a_trial_without_a_finished_epoch_is_refused(tuning_run: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"aaaa0003 has no finished epoch: it is failed, the training loss became"):
        promote(tuning_run, trial="aaaa0003", out=tmp_path / "bundle")


def test_a_run_without_a_finished_epoch_is_refused(training_run: Path, copied: Copy, tmp_path: Path) -> None:
    run = copied(training_run)
    (run / "history.jsonl").unlink()
    with pytest.raises(RunError, match="has no finished epoch to promote"):
        promote(run, out=tmp_path / "bundle")


def test_a_bundle_that_exists_stays_as_it_is(bundle: Bundle, training_run: Path) -> None:
    with pytest.raises(BundleError, match="already exists"):
        promote(training_run, out=bundle.root)
    assert load_bundle(bundle.root).id == bundle.id


def test_a_torn_or_missing_checkpoint_is_named_and_nothing_written(
    training_run: Path, copied: Copy, tmp_path: Path
) -> None:
    run = copied(training_run, checkpoints=True)
    epoch = read_leaderboard(run).rows[0].best_epoch
    state = run / f"checkpoint_{epoch:06d}" / "state.pt"
    state.write_bytes(state.read_bytes()[:-1])
    with pytest.raises(RunError, match=rf"checkpoint_{epoch:06d}: is torn or changed"):
        promote(run, out=tmp_path / "bundle")
    state.unlink()
    (state.parent / "SHA256SUMS").unlink()
    state.parent.rmdir()
    with pytest.raises(RunError, match=rf"checkpoint_{epoch:06d}: is missing"):
        promote(run, out=tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_missing_or_torn_predictions_are_refused(training_run: Path, copied: Copy, tmp_path: Path) -> None:
    run = copied(training_run)
    file = run / PREDICTIONS_FILE
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(RunError, match=r"predictions\.parquet is damaged"):
        promote(run, out=tmp_path / "bundle")
    file.unlink()
    with pytest.raises(RunError, match=r"predictions\.parquet is missing\. Restore it"):
        promote(run, out=tmp_path / "bundle")


def test_predictions_of_another_epoch_are_refused(training_run: Path, copied: Copy, tmp_path: Path) -> None:
    run = copied(training_run)
    rewrite_predictions(run, lambda table: table.replace_schema_metadata({"epoch": "7"}))
    with pytest.raises(RunError, match=r"evidence and history disagree: predictions.parquet is of epoch 7"):
        promote(run, out=tmp_path / "bundle")


@pytest.mark.parametrize("column", ["label", "logit_1", "duplicate_group"])
def test_predictions_without_a_column_are_refused(
    training_run: Path, copied: Copy, tmp_path: Path, column: str
) -> None:
    run = copied(training_run)
    rewrite_predictions(run, lambda table: table.drop_columns([column]))
    with pytest.raises(RunError, match=r"predictions.parquet"):
        promote(run, out=tmp_path / "bundle")


def test_a_history_that_claims_more_than_the_predictions_show_is_refused(
    training_run: Path, copied: Copy, tmp_path: Path
) -> None:
    run = copied(training_run)
    rows = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    for row in rows:
        row["val/recall/covid"] = 0.99
    (run / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(RunError, match=r"evidence and history disagree: the history says val/recall/covid 0.99"):
        promote(run, out=tmp_path / "bundle")


def test_predictions_that_the_checkpoint_did_not_make_are_refused(
    training_run: Path, copied: Copy, tmp_path: Path
) -> None:
    def shift_calibration(table: pa.Table) -> pa.Table:
        on_calibration = np.array(table.column("split").to_pylist()) == "calibration"
        logits = table.column("logit_0").to_numpy() + on_calibration.astype(np.float32)
        return table.set_column(table.column_names.index("logit_0"), "logit_0", pa.array(logits))

    run = copied(training_run, checkpoints=True)
    rewrite_predictions(run, shift_calibration)
    with pytest.raises(RunError, match="the predictions are not those of checkpoint_"):
        promote(run, out=tmp_path / "bundle")


def test_too_few_calibration_images_leave_plain_probabilities_and_a_warning(scarce_run: Path, tmp_path: Path) -> None:
    bundle = promote(scarce_run, out=tmp_path / "bundle")
    assert bundle.info.calibration.images == 0
    assert bundle.info.thresholds == [1.0, 1.0, 1.0]
    assert "not calibrated" in bundle.info.warnings[0]
    assert "not calibrated" in (bundle.root / "README.md").read_text()


def test_a_run_promoted_before_its_end_carries_a_warning(training_run: Path, copied: Copy, tmp_path: Path) -> None:
    run = copied(training_run, checkpoints=True)
    (run / "status.json").write_text('{"state": "interrupted", "reason": "interrupted from the keyboard"}')
    bundle = promote(run, out=tmp_path / "bundle")
    assert "it was interrupted (interrupted from the keyboard)" in bundle.info.warnings[0]
