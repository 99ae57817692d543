"""The check of committed results: it passes for them, and fails where one is worse."""

import copy

import pytest

from benchmarks import check


def test_the_committed_results_keep_their_promises(capsys):
    check.main()
    assert "FAILED" not in capsys.readouterr().out


@pytest.mark.parametrize("path", ["speed/meta_step.json", "speed/meta_step_pieces.json"])
def test_a_slower_step_fails(path):
    result = copy.deepcopy(check.read(path))
    for case in result["cases"].values():
        for name, row in case["rows"].items():
            if name.startswith("jaxmaml") and not name.endswith("_before"):
                row["median_ms"] *= 3.0
    assert not all(holds for _, holds in check.CHECKS[path](result))


def test_a_worse_curve_fails():
    result = copy.deepcopy(check.read("adaptation/step_counts_sinusoid.json"))
    result["settings"]["5-shot"]["MAML"]["mean"][10] = 0.36
    assert [holds for _, holds in check.sinusoids(result)].count(False) == 1


def test_what_fails_is_named_and_ends_the_command(monkeypatch, capsys):
    monkeypatch.setitem(check.MEMORY, "omniglot-5w1s-1step", 0)
    with pytest.raises(SystemExit, match="1 of the committed results"):
        check.main()
    assert "FAILED omniglot-5w1s-1step: at most 0 MB" in capsys.readouterr().out
