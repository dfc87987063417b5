"""NNCF on ONNX files: fewer quantizers than ONNX Runtime's own, so sometimes closer, and sometimes much slower."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from edgeship.build.backends import nncf_settings
from edgeship.build.backends.base import Samples, Scheme
from edgeship.build.backends.onnx_masks import bound_masks
from edgeship_agent.contract.manifest import Binding
from edgeship_agent.runtime.bound import to_artifact

if TYPE_CHECKING:
    from edgeship.build.backends.onnx_runtime import Prepared


def quantize(prepared: Prepared, inputs: Sequence[Binding], samples: Samples, scheme: Scheme, model: Path) -> None:
    """Static QDQ by NNCF's min–max algorithm.

    Args:
        prepared: the float file, its opset raised.
        inputs: how the source's inputs reach it.
        samples: that set ranges.
        scheme: its ranges and its float part.
        model: where to write.
    """
    import nncf

    fed = [
        {each.artifact_name: np.asarray(to_artifact(each, sample[each.name]), order="C") for each in inputs}
        for sample in samples
    ]

    def ignored(library: Any) -> Any:
        return library.IgnoredScope(names=list(scheme.floats)) if scheme.floats else None

    document = onnx.load(str(prepared.calibration.file(scheme)))
    bound_masks(document, prepared.calibration)
    made = nncf_settings.quantize(document, nncf.Dataset(fed), len(fed), scheme, ignored)
    model.write_bytes(made.SerializeToString(deterministic=True))
