"""When a view is doubted, and when refused."""

import math

import numpy as np
import pytest

from wristworld_ros.generation.confidence import IMAGINED_RIGHT, view_score
from wristworld_ros.generation.doubt import doubt

NOTHING = math.nan


def test_a_view_like_those_of_training_is_not_doubted():
    assert doubt(0.5, 0.9) is None
    assert doubt(0.5, NOTHING) is None
    assert doubt(0.5, 0.9, refuse_below_coverage=0.5, refuse_beyond_domain=0.9) is None


@pytest.mark.parametrize(
    ("coverage", "distance", "limits", "cause", "refused"),
    [
        (0.05, 0.5, (0, 0), "low_coverage", False),
        (0.05, NOTHING, (0, 0), "low_coverage", False),
        (0.5, 1.2, (0, 0), "out_of_domain", False),
        (0.05, 1.2, (0, 0), "out_of_domain", False),
        (0.5, 1.2, (0, 1.5), "out_of_domain", False),
        (0.5, 1.2, (0, 1.0), "out_of_domain", True),
        (0.5, 0.7, (0, 0.6), "out_of_domain", True),
        (0.05, 1.2, (0, 1.0), "out_of_domain", True),
        (0.5, NOTHING, (0, 1.0), "out_of_domain", True),
        (0.4, 1.2, (0.5, 0), "low_coverage", True),
        (0.4, NOTHING, (0.5, 1.0), "low_coverage", True),
    ],
)
def test_the_gravest_doubt_counts(coverage, distance, limits, cause, refused):
    found = doubt(coverage, distance, *limits)
    assert (found.cause, found.refused) == (cause, refused)


def test_it_names_value_limit_and_cure():
    text = doubt(0.04, 0.5, refuse_below_coverage=0.25).text
    assert "4.0% of the wrist view" in text and "refuse_below_coverage is 25.0%" in text
    assert "add an anchor camera, or lower the limit" in text
    text = doubt(0.5, 1.23456, refuse_beyond_domain=1.0).text
    assert "1.23 times" in text and "refuse_beyond_domain is 1" in text and "Fine-tune" in text
    text = doubt(0.5, NOTHING, refuse_beyond_domain=1.0).text
    assert "not known" in text and "wristworld train domain" in text
    assert "4.0%" in doubt(0.04, 0.5).text and "less than 10%" in doubt(0.04, 0.5).text


def test_the_score_is_the_expected_share_of_right_pixels():
    confidence = np.zeros((4, 4), np.float32)
    assert view_score(confidence) == pytest.approx(IMAGINED_RIGHT)
    confidence[:2] = 0.9
    assert view_score(confidence) == pytest.approx(0.5 * 0.9 + 0.5 * IMAGINED_RIGHT)
    confidence[2:] = 0.1  # measured, and hardly right: worse than imagined
    assert view_score(confidence) == pytest.approx(0.5)
