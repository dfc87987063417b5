"""What the field does with the same float file and the same calibration samples: defaults and best known variants.

Each peer is a function (float file, samples in the file's own names and layout, folder) → quantized file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from edgeship.build.backends.tflite_signature import with_signature

Sample = Mapping[str, np.ndarray]
Peer = Callable[[Path, Sequence[Sample], Path], Path]


def onnxruntime_static(**settings: Any) -> Peer:
    """ONNX Runtime's ``quantize_static`` after its own pre-processing."""

    def quantize(model: Path, samples: Sequence[Sample], folder: Path) -> Path:
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

        class Reader(CalibrationDataReader):  # type: ignore[misc]
            def __init__(self) -> None:
                self._samples = iter(samples)

            def get_next(self) -> dict[str, np.ndarray] | None:
                sample = next(self._samples, None)
                return None if sample is None else dict(sample)

        ready = folder / "ready.onnx"
        quant_pre_process(str(_raised(model, folder)), str(ready), skip_symbolic_shape=True)
        quantize_static(str(ready), str(folder / "model.onnx"), Reader(), quant_format=QuantFormat.QDQ, **settings)
        return folder / "model.onnx"

    return quantize


def _raised(model: Path, folder: Path) -> Path:
    """The file with opset 13 at least: below it there is nothing per channel."""
    import onnx
    from onnx import version_converter

    document = onnx.load(str(model))
    opset = max(entry.version for entry in document.opset_import if entry.domain in {"", "ai.onnx"})
    if opset < 13:
        document = version_converter.convert_version(document, 13)
    onnx.save(document, folder / "raised.onnx")
    return folder / "raised.onnx"


def nncf_onnx(**settings: Any) -> Peer:
    """NNCF on an ONNX file."""

    def quantize(model: Path, samples: Sequence[Sample], folder: Path) -> Path:
        import nncf
        import onnx

        made = nncf.quantize(onnx.load(str(_raised(model, folder))), nncf.Dataset([dict(each) for each in samples]),
                             subset_size=len(samples), **nncf_settings(**settings))  # fmt: skip
        onnx.save(made, folder / "model.onnx")
        return folder / "model.onnx"

    return quantize


def nncf_openvino(**settings: Any) -> Peer:
    """NNCF on an OpenVINO network."""

    def quantize(model: Path, samples: Sequence[Sample], folder: Path) -> Path:
        import nncf
        import openvino

        network = openvino.Core().read_model(str(model))
        dataset = nncf.Dataset([list(each.values()) for each in samples])
        made = nncf.quantize(network, dataset, subset_size=len(samples), **nncf_settings(**settings))
        openvino.save_model(made, str(folder / "model.xml"), compress_to_fp16=False)
        return folder / "model.xml"

    return quantize


def nncf_settings(*, ranges: str = "", bias_correction: bool = True) -> dict[str, Any]:
    """Keyword arguments of ``nncf.quantize``: its defaults, or true ranges, with or without bias correction."""
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    if not ranges and bias_correction:
        return {}
    chosen = {"activations_range_estimator_params": getattr(RangeEstimatorParametersSet, ranges)} if ranges else {}
    return {
        "advanced_parameters": AdvancedQuantizationParameters(disable_bias_correction=not bias_correction, **chosen)
    }


def ai_edge_quantizer(*, true_ranges: bool = False, products_per_tensor: bool = False) -> Peer:
    """ai-edge-quantizer's static int8: its default moving average, or minimum and maximum merged by hand."""

    def quantize(model: Path, samples: Sequence[Sample], folder: Path) -> Path:
        from ai_edge_quantizer import calibrator, quantizer, recipe, recipe_manager
        from ai_edge_quantizer.qtyping import QuantGranularity, TFLOperationName
        from ai_edge_quantizer.utils import qsv_utils

        signed = folder / "signed.tflite"
        signed.write_bytes(with_signature(model.read_bytes()))
        manager = recipe_manager.RecipeManager()
        manager.load_quantization_recipe(recipe.static_wi8_ai8())
        if products_per_tensor:
            for product in (TFLOperationName.BATCH_MATMUL, TFLOperationName.FULLY_CONNECTED):
                manager.add_static_config(".*", product, 8, 8, weight_granularity=QuantGranularity.TENSORWISE)
        merging = {"qsv_update_func": qsv_utils.min_max_update} if true_ranges else {}
        calibration = calibrator.Calibrator(str(signed), num_threads=1, **merging)
        key, names = _signature(calibration)
        fed = [{names[name]: array for name, array in sample.items()} for sample in samples]
        calibration.calibrate({key: fed}, manager)
        result = quantizer.Quantizer(str(signed), manager.get_quantization_recipe()).quantize(
            calibration.get_model_qsvs(), enable_progress_bar=False, enable_progress_report=False
        )
        (folder / "model.tflite").write_bytes(bytes(result.quantized_model))
        return folder / "model.tflite"

    return quantize


def _signature(calibration: Any) -> tuple[str, dict[str, str]]:
    """The one signature's key, and tensor name → its argument."""
    interpreter = calibration._tfl_interpreter
    key = next(iter(interpreter.get_signature_list()))
    details = interpreter.get_signature_runner(key).get_input_details()
    return str(key), {str(detail["name"]): str(argument) for argument, detail in details.items()}


def _peers_of_onnxruntime() -> dict[str, Peer]:
    from onnxruntime.quantization import CalibrationMethod, QuantType

    unsigned, signed = {"activation_type": QuantType.QUInt8}, {"activation_type": QuantType.QInt8}
    channel = {"per_channel": True, "weight_type": QuantType.QInt8}
    percentile = {"calibrate_method": CalibrationMethod.Percentile, "extra_options": {"CalibPercentile": 99.999}}
    return {
        "ORT default (s8s8)": onnxruntime_static(),
        "ORT s8s8 per channel": onnxruntime_static(**signed, **channel),
        "ORT u8s8": onnxruntime_static(**unsigned, weight_type=QuantType.QInt8),
        "ORT u8s8 per tensor, percentile 99.999": onnxruntime_static(
            **unsigned, weight_type=QuantType.QInt8, **percentile
        ),
        "ORT u8s8 per channel": onnxruntime_static(**unsigned, **channel),
        "ORT u8s8 per channel, percentile 99.999": onnxruntime_static(**unsigned, **channel, **percentile),
        "ORT s8s8 per channel, percentile 99.999": onnxruntime_static(**signed, **channel, **percentile),
        "NNCF→ORT default": nncf_onnx(),
        "NNCF→ORT min–max": nncf_onnx(ranges="MINMAX"),
        "NNCF→ORT min–max, no bias correction": nncf_onnx(ranges="MINMAX", bias_correction=False),
    }


def peers_of(runtime: str) -> dict[str, Peer]:
    """Name → peer, for one runtime."""
    if runtime == "onnxruntime":
        return _peers_of_onnxruntime()
    if runtime == "openvino":
        return {
            "NNCF default": nncf_openvino(),
            "NNCF min–max": nncf_openvino(ranges="MINMAX"),
            "NNCF min–max, no bias correction": nncf_openvino(ranges="MINMAX", bias_correction=False),
            "NNCF default ranges, no bias correction": nncf_openvino(bias_correction=False),
        }
    return {
        "aeq default": ai_edge_quantizer(),
        "aeq min–max": ai_edge_quantizer(true_ranges=True),
        "aeq min–max, products per tensor": ai_edge_quantizer(true_ranges=True, products_per_tensor=True),
    }


#: Characters that a folder's name keeps.
_PLAIN: Final = re.compile(r"[^A-Za-z0-9]+")


def folder_name(peer: str) -> str:
    """A peer's name as a folder."""
    return _PLAIN.sub("-", peer).strip("-").lower()
