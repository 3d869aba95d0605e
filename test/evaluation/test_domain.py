"""The test of what is out of domain, with the shipped statistics."""

import json

import numpy as np
import pytest

from wristworld_ros.cli.main import main
from wristworld_ros.evaluation.domain import _summary, evaluate_domain


def test_shares_and_area_under_the_curve():
    reference = np.linspace(0, 0.99, 100)
    found = _summary(np.array([0.5, 2.0]), reference)
    assert found["beyond"] == 0.5 and found["median"] == 1.25
    assert found["auc"] == pytest.approx((0.505 + 1) / 2)
    assert found["caught"] == {"1%": 0.5, "5%": 0.5}
    assert _summary(reference, reference)["auc"] == pytest.approx(0.5)


def test_simulated_pictures_are_in_domain():
    found = evaluate_domain([], episodes=1, frames=2, splits=["test-iid"])
    assert found["test-iid"]["frames"] == 2 and found["test-iid"]["beyond"] == 0
    assert 0.2 < found["test-iid"]["median"] < 1 and found["by_recording"] == {}


@pytest.mark.real
def test_real_pictures_are_out_of_domain(realdata, tmp_path, capsys):
    out = tmp_path / "domain.json"
    words = ["evaluate", "domain", "--split", "test-iid", "--episodes", "1", "--frames", "2"]
    words += ["--recordings", realdata / "droid/val_199", realdata / "station/0004"]
    assert main([str(w) for w in [*words, "--json", out]]) == 0
    document = json.loads(out.read_text())
    assert document["results"]["recordings"]["beyond"] == 1.0
    assert set(document["results"]["by_recording"]) == {"droid/val_199", "station/0004"}
    assert len(document["provenance"]["weights"]["domain"]) == 64
    assert "recordings" in capsys.readouterr().out
