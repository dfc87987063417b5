"""Which models of the test data are built, how they are asked for, and with which inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from msgspec import Struct

from model_matrix import feeds

FACTORY: Final = str(Path(__file__).resolve().parents[2] / "tests" / "factories" / "cifar_resnet.py")
_CIFAR: Final = "CIFAR-10 (JPEG copy): 200 train images, 1,000 test images"
_MNIST: Final = "MNIST: 1,000 and 1,000 digits"
_KWS: Final = "spoken words: 100 and 100"
_TOYCAR: Final = "one recording of a machine: 98 and 98 windows"
_SPEECH: Final = "a minute of speech, frame by frame, with the model's own memory"


class Case(Struct, frozen=True, kw_only=True):
    """One model.

    Attributes:
        name: of the record.
        title: for people.
        file: below the folder of the test data.
        inputs: what it is fed with, for people.
        feed: makes that.
        factory: function of the repository's own that makes the model, for a file of weights.
        options: further words of the command.
    """

    name: str
    title: str
    file: str
    inputs: str
    feed: feeds.Feed
    factory: str = ""
    options: tuple[str, ...] = ()


CASES: Final = (
    Case(name="resnet8_keras", title="ResNet-8 (Keras .h5)", file="mlperf_tiny/ic_resnet8/pretrainedResnet.h5",
         inputs=_CIFAR, feed=feeds.cifar),
    Case(name="resnet20", title="ResNet-20 (PyTorch state dict)", file="pytorch_cifar10/resnet20-12fca82f.th",
         inputs=_CIFAR, feed=feeds.cifar_normalised, factory="resnet20", options=("--input-shape", "1,3,32,32")),
    Case(name="resnet32", title="ResNet-32 (PyTorch state dict)", file="pytorch_cifar10/resnet32-d509ac18.th",
         inputs=_CIFAR, feed=feeds.cifar_normalised, factory="resnet32", options=("--input-shape", "1,3,32,32")),
    Case(name="dscnn_saved_model", title="DS-CNN (SavedModel)", file="mlperf_tiny/kws_dscnn/kws_ref_model",
         inputs=_KWS, feed=feeds.words),
    Case(name="dscnn_frozen", title="DS-CNN S (TensorFlow 1 frozen graph)", file="arm_kws_tf1/DS_CNN_S.pb",
         inputs=f"{_KWS}, from another front end, without labels", feed=feeds.words_unlabelled,
         options=("--input-tensor", "Reshape_1", "--task", "classification")),
    Case(name="toycar_keras", title="ToyCar autoencoder (Keras .h5)", file="mlperf_tiny/ad_toycar/ad01.h5",
         inputs=_TOYCAR, feed=feeds.machine),
    Case(name="mnist_cntk", title="MNIST CNN of CNTK (ONNX, opset 8)", file="onnx/mnist_cntk.onnx",
         inputs=_MNIST, feed=feeds.mnist),
    Case(name="ultraface", title="Ultra-Light face detector (ONNX)", file="ultraface/version-RFB-320.onnx",
         inputs="CIFAR-10 train images scaled to 320 × 240: 60 and 600", feed=feeds.faces),
    Case(name="magika", title="Magika file types (ONNX, integer input)", file="magika/fast_v2_1/model.onnx",
         inputs="pieces of the test data's own files: 100 and 300", feed=feeds.contents,
         options=("--task", "classification")),
    Case(name="silero_onnx16k", title="Silero voice detector (ONNX, opset 15, state)",
         file="silero_vad/silero_vad_16k_op15.onnx", inputs=_SPEECH, feed=feeds.speech_onnx,
         options=("--input-shape", "input=1,576", "--input-shape", "state=2,1,128")),
    Case(name="silero_onnx", title="Silero voice detector (ONNX with branches, state)",
         file="silero_vad/silero_vad.onnx", inputs=_SPEECH, feed=feeds.speech_onnx_at_16k,
         options=("--input-shape", "input=1,576", "--input-shape", "state=2,1,128", "--input-value", "sr=16000")),
    Case(name="silero_jit", title="Silero voice detector (TorchScript, hidden state)", file="silero_vad/silero_vad.jit",
         inputs=_SPEECH, feed=feeds.speech_torch,
         options=("--input-shape", "x=1,512", "--input-shape", "sr=16000")),
    Case(name="dtln_onnx", title="DTLN noise suppression, stage 1 (ONNX, two inputs)", file="dtln/model_1.onnx",
         inputs=_SPEECH, feed=feeds.spectra),
    Case(name="dtln_tflite", title="DTLN noise suppression, stage 1 (TFLite)", file="dtln/model_1.tflite",
         inputs=_SPEECH, feed=feeds.spectra),
    Case(name="dtln_quantized", title="DTLN with 8-bit weights (TFLite)", file="dtln/model_quant_1.tflite",
         inputs=_SPEECH, feed=feeds.spectra),
    Case(name="mnist_lstm", title="MNIST LSTM (TFLite)", file="tflite/mnist_lstm_float.tflite",
         inputs=_MNIST, feed=feeds.mnist_rows),
    Case(name="mnist_lstm_int8", title="MNIST LSTM (TFLite, int8)", file="tflite/mnist_lstm_int8.tflite",
         inputs=_MNIST, feed=feeds.mnist_rows_int8),
    Case(name="hello_world", title="Sine (TFLite)", file="tflite/hello_world_float.tflite",
         inputs="random angles from 0 to 2π: 400 and 600", feed=feeds.angles),
    Case(name="hello_world_int8", title="Sine (TFLite, int8)", file="tflite/hello_world_int8.tflite",
         inputs="every value that the input can take: 85 and 170", feed=feeds.angles_int8),
    Case(name="micro_speech", title="Micro Speech (TFLite, int8)", file="tflite/micro_speech_quantized.tflite",
         inputs="random inputs: 200 and 600", feed=feeds.random_int8(1960)),
    Case(name="coral_mobilenet", title="MobileNet v1 0.25 128 (TFLite, uint8)",
         file="tflite/coral_mobilenet_v1_0.25_128_quant.tflite",
         inputs="CIFAR-10 train images scaled to 128 × 128: 60 and 600", feed=feeds.photos,
         options=("--task", "classification")),
    Case(name="microwakeword", title="microWakeWord “Okay Nabu” (TFLite, int8, hidden state)",
         file="microwakeword/v2_okay_nabu.tflite", inputs="random inputs: 200 and 600", feed=feeds.random_int8(3, 40)),
    Case(name="resnet8_tflite", title="ResNet-8 (TFLite)", file="mlperf_tiny/ic_resnet8/pretrainedResnet.tflite",
         inputs=_CIFAR, feed=feeds.cifar),
    Case(name="resnet8_int8", title="ResNet-8 (TFLite, int8)",
         file="mlperf_tiny/ic_resnet8/pretrainedResnet_quant.tflite", inputs=_CIFAR, feed=feeds.cifar_int8),
    Case(name="dscnn_tflite", title="DS-CNN (TFLite “float32” with 8-bit weights)",
         file="mlperf_tiny/kws_dscnn/kws_ref_model_float32.tflite", inputs=_KWS, feed=feeds.words),
    Case(name="dscnn_int8", title="DS-CNN (TFLite, int8)", file="mlperf_tiny/kws_dscnn/kws_ref_model.tflite",
         inputs=_KWS, feed=feeds.words_int8),
    Case(name="toycar_tflite", title="ToyCar autoencoder (TFLite)", file="mlperf_tiny/ad_toycar/ad01_fp32.tflite",
         inputs=_TOYCAR, feed=feeds.machine),
    Case(name="toycar_int8", title="ToyCar autoencoder (TFLite, int8)", file="mlperf_tiny/ad_toycar/ad01_int8.tflite",
         inputs=_TOYCAR, feed=feeds.machine_int8),
    Case(name="ultraface_weights", title="Ultra-Light face detector (PyTorch weights without their model)",
         file="ultraface/version-RFB-320.pth", inputs="none: refused before", feed=feeds.ones),
    Case(name="hard_invoking", title="A file with an operator that no runtime has (TFLite)",
         file="hard_cases/model_invoking_error.tflite", inputs="none: refused before", feed=feeds.ones),
)  # fmt: skip
