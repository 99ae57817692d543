"""The calibration benchmark: its likelihood, and its verdict on what is calibrated and what is not."""

import json

import numpy as np
import pytest
import scipy.stats

from benchmarks import calibration


def test_likelihood_of_a_mixture():
    rng = np.random.default_rng(0)
    means, targets = rng.normal(size=(3, 4, 5)), rng.normal(size=(3, 5))
    density = np.mean(scipy.stats.norm.pdf(targets[:, None], means, 0.7), axis=1)
    np.testing.assert_allclose(calibration.log_likelihood(means, targets, 0.7), np.log(density), rtol=1e-10)


def test_a_calibrated_prediction_is_seen_as_one():
    """Targets drawn from the prediction itself are covered as often as said; half the width is not enough."""
    rng = np.random.default_rng(1)
    means = rng.normal(size=(200, 4, 50))
    chosen = np.take_along_axis(means, rng.integers(0, 4, size=(200, 1, 50)), axis=1)[:, 0]
    targets = chosen + 0.5 * rng.normal(size=chosen.shape)
    good = calibration.score(means, targets, 0.5)
    assert good["calibration_error"] < 0.02
    for level, covered in good["coverage"].items():
        assert abs(float(level) - covered) < 0.03
    narrow = calibration.score(means.mean(1, keepdims=True), targets, 0.25)
    assert narrow["calibration_error"] > 0.2
    assert narrow["nll"] > good["nll"]
    assert 0.4 < calibration.fitted_std(means, targets) < 0.6


@pytest.mark.slow
def test_a_small_run(tmp_path, capsys, quick_compiles):
    config = calibration.Config(shots=(2,), num_particles=2, outer_steps=2, num_tasks=200, output_dir=tmp_path)
    calibration.main(config)
    rows = json.loads((tmp_path / "calibration.json").read_text())["shots"]["2"]
    assert set(rows) == {"MAML", "ensemble of MAML", "Bayesian MAML"}
    assert calibration.markdown(rows).count("\n") == 4
    assert (tmp_path / "calibration.png").read_bytes().startswith(b"\x89PNG")
