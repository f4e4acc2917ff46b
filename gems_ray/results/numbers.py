"""Numbers as people read them in tables; a number that is not known is a dash, or nothing."""

import math


def fixed(value: float, digits: int = 1) -> str:
    """A number with so many decimals: `140.0`."""
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def short(value: float) -> str:
    """A number of any size: `354.6`, `0.457`."""
    if math.isnan(value):
        return "-"
    return f"{value:.1f}" if abs(value) >= 10 or value == 0 else f"{value:.3g}"


def spread(mean: float, std: float) -> str:
    """A mean with its deviation: `140.0 ± 40.0`."""
    return fixed(mean) + ("" if math.isnan(std) else f" ± {std:.1f}")


def interval(low: float, high: float, digits: int = 1) -> str:
    """An interval: `120.5 to 160.0`."""
    return "-" if math.isnan(low) else f"{low:.{digits}f} to {high:.{digits}f}"


def p_value(value: float) -> str:
    """A p-value with the digits that matter."""
    return "" if math.isnan(value) else "<0.001" if value < 0.001 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"
