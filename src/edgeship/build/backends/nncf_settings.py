"""NNCF's parameters for a scheme, the same for OpenVINO and for ONNX files."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final

from edgeship.build.backends.base import Scheme

#: NNCF sends usage figures unless it believes to run in a test system; Edgeship sends none.
_SILENT: Final = "NNCF_CI"
#: Our estimators that NNCF has too.
_SETS: Final = {"minmax": "MINMAX", "mean": "MEAN_MINMAX", "mse": "HISTOGRAM", "p99.99": "MEAN_QUANTILE"}


def quantize(
    network: Any, dataset: Any, count: int, scheme: Scheme, ignored: Callable[[Any], Any] | None = None
) -> Any:
    """One network through NNCF's post-training quantization.

    Args:
        network: an OpenVINO model or an ONNX document.
        dataset: ``nncf.Dataset``.
        count: samples in it.
        scheme: bias correction is off unless its tool names one of NNCF's.
        ignored: makes the scope that stays in float; None for nothing.
    """
    os.environ.setdefault(_SILENT, "1")
    import nncf
    from nncf.quantization.advanced_parameters import (
        AdvancedQuantizationParameters,
        AdvancedSmoothQuantParameters,
        OverflowFix,
    )
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    parameters = AdvancedQuantizationParameters(
        disable_bias_correction=scheme.tool not in {"fast", "full"},
        activations_range_estimator_params=getattr(RangeEstimatorParametersSet, _SETS[scheme.estimator]),
        weights_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
        # right in ONNX Runtime and wrong in OpenVINO on the CPU (build.md, trap 2)
        smooth_quant_alphas=AdvancedSmoothQuantParameters(convolution=-1, matmul=-1),
        overflow_fix=OverflowFix.ENABLE if scheme.weight_bits == 7 else OverflowFix.DISABLE,
    )
    return nncf.quantize(
        network,
        dataset,
        subset_size=count,
        preset=nncf.QuantizationPreset.PERFORMANCE if scheme.symmetric else nncf.QuantizationPreset.MIXED,
        fast_bias_correction=scheme.tool != "full",
        ignored_scope=ignored(nncf) if ignored else None,
        advanced_parameters=parameters,
    )
