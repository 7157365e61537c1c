"""Student's t without a statistics package."""

from __future__ import annotations

import math


def student_t(probability: float, degrees: int) -> float:
    """Quantile of Student's t for a whole number of degrees of freedom, probability in (0.5, 1).

    Bisection on the closed-form distribution function (Abramowitz and Stegun 26.7.3, 26.7.4).
    """

    def two_sided(t: float) -> float:
        theta = math.atan(t / math.sqrt(degrees))
        sine, cosine = math.sin(theta), math.cos(theta)
        odd = degrees % 2 == 1
        term, total = (cosine, 0.0) if odd else (1.0, 0.0)
        for k in range(degrees // 2):
            total += term
            term *= cosine**2 * ((2 * k + 2) / (2 * k + 3) if odd else (2 * k + 1) / (2 * k + 2))
        return 2 / math.pi * (theta + sine * total) if odd else sine * total

    low, high = 0.0, 1.0
    while two_sided(high) < 2 * probability - 1:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if two_sided(middle) < 2 * probability - 1 else (low, middle)
    return (low + high) / 2
