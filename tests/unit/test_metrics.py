"""Calibration and position bias, against computations by hand and judges that are made to be good or bad."""

import numpy as np
import pytest

from utils import metrics


def test_the_calibration_error_is_that_of_a_computation_by_hand():
    # statements in order: .1 false, .1 true, .2 false | .2 false, .7 true, .7 false
    error, points = metrics.calibration_error([[0.7, 0.2, 0.1], [0.7, 0.1, 0.2]], [0, 1], bins=2)
    assert [size for *_, size in points] == [3, 3]
    assert [stated for stated, *_ in points] == pytest.approx([0.4 / 3, 1.6 / 3])
    assert [share for _, share, _ in points] == pytest.approx([1 / 3, 1 / 3])
    assert error == pytest.approx((0.2 + 0.2) / 2)
    assert metrics.calibration_error([[1, 0, 0], [0, 1, 0]], [0, 1])[0] == 0
    assert metrics.calibration_error([[1, 0, 0], [0, 1, 0]], [1, 0])[0] == pytest.approx(2 / 3)
    assert len(metrics.calibration_error(np.full((40, 3), 1 / 3), [0] * 40, bins=10)[1]) == 10


def test_who_means_what_he_says_has_a_small_calibration_error_and_a_boaster_a_large_one():
    rng = np.random.default_rng(0)
    said = rng.dirichlet([1, 1, 1], size=4000)
    happened = (said.cumsum(axis=1) > rng.random((4000, 1))).argmax(axis=1)
    boast, modest = (said**power / (said**power).sum(axis=1, keepdims=True) for power in (3, 0.3))
    assert metrics.calibration_error(said, happened)[0] < 0.02
    assert metrics.calibration_error(boast, happened)[0] > 0.1
    assert metrics.calibration_error(modest, happened)[0] > 0.1
