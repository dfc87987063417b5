"""The search for the best quantized file: ranges, rounding, what stays in float, and which candidates survive.

Pure parts: :mod:`graph`, :mod:`ranges`, :mod:`rounding`, :mod:`floats`, :mod:`space`, :mod:`halving`,
:mod:`saturation`. :mod:`engine` is the shell that makes candidates, runs them and keeps the best so far.
"""
