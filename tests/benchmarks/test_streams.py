"""The comparison of starts for streams, made small."""

import json

import jax
import numpy as np
import pytest

import jaxmaml
from benchmarks import step_counts
from benchmarks.streams import comparison


@pytest.mark.slow
def test_a_small_run(tmp_path, capsys, monkeypatch, quick_compiles):
    monkeypatch.setattr(comparison, "CHUNK_LENGTH", 4)
    monkeypatch.setattr(comparison, "TRAIN_CHUNKS", 2)
    config = step_counts.Config(task="streams", output_dir=tmp_path, outer_steps=2, num_tasks=3, num_steps=3)
    result = step_counts.main(config)
    assert json.loads((tmp_path / "step_counts_streams.json").read_text()) == json.loads(json.dumps(result))
    assert (tmp_path / "step_counts_streams.png").read_bytes().startswith(b"\x89PNG")
    assert list(result["rows"]) == ["MAML", "pretrained", "random", "pretrained, not adapted"]
    for row in result["rows"].values():
        assert len(row["mean"]) == len(row["ci95"]) == 4
        assert row["mean_of_all"] == pytest.approx(np.mean(row["mean"]), rel=1e-5)
        if "validation" in row:
            tried = {float(rate): loss for rate, loss in row["validation"].items() if loss is not None}
            assert tried[row["step_size"]] == min(tried.values())
    assert "k = 2" in capsys.readouterr().out


def test_the_first_chunk_is_scored_before_any_step():
    model = jaxmaml.nn.GRU(4, 1)
    loss_fn = jaxmaml.mean_squared_error(model.apply)
    params = model.init(jax.random.key(0), np.zeros((1, 1), np.float32))
    score = comparison.scorer(loss_fn, 2)
    still, moving = (score(params, rate, jax.random.key(1), 3).per_task for rate in (0.0, 0.1))
    np.testing.assert_allclose(still[:, 0], moving[:, 0], rtol=1e-6)
    assert (np.abs(still[:, 1:] - moving[:, 1:]) > 1e-4).all()


@pytest.mark.parametrize("option", [{"algorithms": ("maml",)}, {"data_dir": "folder"}])
def test_streams_take_no_other_options(option):
    with pytest.raises(SystemExit, match="it takes neither --algorithms nor --run nor --data-dir"):
        step_counts.main(step_counts.Config(task="streams", **option))
