"""When a view is not to be taken for one: too little of it seen, or pictures unlike training."""

from __future__ import annotations

import math

from wristworld_ros.generation.detail import SHOWN
from wristworld_ros.reconstruction.domain import OUT_OF_DOMAIN
from wristworld_ros.types import Doubt, Reconstruction

LOW_COVERAGE, OUTSIDE = "low_coverage", "out_of_domain"


def doubt(
    coverage: float,
    domain_distance: float,
    refuse_below_coverage: float = 0.0,
    refuse_beyond_domain: float = 0.0,
) -> Doubt | None:
    """The gravest doubt about a view; None when there is none.

    Args:
        coverage: ``ConditionMap.coverage``; below ``SHOWN`` confidence does not count in full.
        domain_distance: ``WristEstimate.domain_distance``; NaN when nothing is known.
        refuse_below_coverage: views with less are refused; 0: none.
        refuse_beyond_domain: views of pictures that are farther, or of which that is not known, are
            refused; 0: none.
    """
    outside = (
        f"the anchor pictures are {domain_distance:.2f} times as far from the training pictures "
        "as 1 % of the validation frames"
    )
    tune = "Fine-tune the model on pictures of this station"
    seen = f"the anchor cameras see {coverage:.1%} of the wrist view"
    move = "Move or add an anchor camera"
    if coverage < refuse_below_coverage:
        limit = f"refuse_below_coverage is {refuse_below_coverage:.1%}"
        return Doubt(LOW_COVERAGE, f"{seen}, {limit}. {move}, or lower the limit.", True)
    if refuse_beyond_domain and math.isnan(domain_distance):
        text = (
            "how far the anchor pictures are from the training pictures is not known, and "
            f"refuse_beyond_domain is {refuse_beyond_domain:g}. Use a model with a folder 'domain' "
            "(wristworld train domain), not another backbone; or set the limit to 0."
        )
        return Doubt(OUTSIDE, text, True)
    if refuse_beyond_domain and domain_distance > refuse_beyond_domain:
        limit = f"refuse_beyond_domain is {refuse_beyond_domain:g}"
        return Doubt(OUTSIDE, f"{outside}, {limit}. {tune}, or raise the limit.", True)
    if domain_distance > OUT_OF_DOMAIN:
        return Doubt(OUTSIDE, f"{outside}: do not rely on the view. {tune}.", False)
    if coverage < SHOWN[1]:
        text = f"{seen}, less than {SHOWN[1]:.0%}: most of it is imagined. {move}."
        return Doubt(LOW_COVERAGE, text, False)
    return None


def doubt_of(result: Reconstruction, **limits: float) -> Doubt | None:
    """``doubt`` of what stage 1 made, before a view is generated."""
    return doubt(result.condition.coverage, result.estimate.domain_distance, **limits)
