"""Run with the tensorflow toolchain's Python: small trained models in every format that it opens, and bad ones.

``python tensorflow_sources.py FOLDER`` writes into FOLDER; nothing is downloaded.
"""

from __future__ import annotations

import os
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

os.environ.update({"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"})

import h5py
import keras
import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

SIDE, CLASSES = 8, 4


def classifier() -> keras.Model:
    """A few steps of training, so that weights and batch statistics are not what they began with."""
    keras.utils.set_random_seed(3)
    layers = keras.layers
    model = keras.Sequential([
        keras.Input((SIDE, SIDE, 1), name="image"),
        layers.Conv2D(6, 3, padding="same"),
        layers.BatchNormalization(),
        layers.ReLU(),
        layers.DepthwiseConv2D(3, strides=2, padding="same", activation="relu"),
        layers.Flatten(),
        layers.Dense(CLASSES, activation="softmax", name="scores"),
    ])  # fmt: skip
    rng = np.random.default_rng(3)
    labels = rng.integers(0, CLASSES, 256)
    images = rng.normal(0, 1, (256, SIDE, SIDE, 1)) + labels[:, None, None, None]
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(images, labels, epochs=2, verbose=0)
    return model


def two_ends() -> keras.Model:
    """Names that sort otherwise than they stand: inputs zulu, alpha; outputs wide, narrow."""
    keras.utils.set_random_seed(4)
    zulu, alpha = keras.Input((5,), name="zulu"), keras.Input((3,), dtype="int32", name="alpha")
    mixed = keras.layers.Concatenate()([zulu, keras.layers.Flatten()(keras.layers.Embedding(7, 2)(alpha))])
    mixed = keras.layers.Dense(8, activation="silu")(mixed)
    wide = keras.layers.Dense(6, activation="gelu", name="wide")(mixed)
    return keras.Model([zulu, alpha], [wide, keras.layers.Dense(2, name="narrow")(wide)])


def with_states(folder: Path) -> None:
    """A net that hears a stream in pieces, and what it says to four pieces in a row, from an empty state."""
    keras.utils.set_random_seed(6)
    given = keras.Input((5, 3), batch_size=1, name="piece")
    first = keras.layers.LSTM(4, stateful=True, return_sequences=True, name="ear")(given)
    second = keras.layers.GRU(6, stateful=True, name="mind")(keras.layers.Dense(5, activation="relu")(first))
    model = keras.Model(given, keras.layers.Dense(2, name="says")(second))
    model.save(folder / "stream.keras")
    pieces = np.random.default_rng(6).normal(0, 1, (4, 1, 5, 3)).astype(np.float32)
    np.savez(folder / "stream.npz", pieces=pieces, says=np.stack([model(piece).numpy() for piece in pieces]))


def frozen_graph(folder: Path) -> None:
    """A TF1 graph that starts from the bytes of a wave file's samples, as speech models do."""
    rng = np.random.default_rng(5)
    weights = rng.normal(0, 0.5, (12, 3)).astype(np.float32)
    with tf.Graph().as_default() as graph:
        text = tf.compat.v1.placeholder(tf.string, (), name="samples")
        numbers = tf.cast(tf.io.decode_raw(text, tf.int16), tf.float32, name="numbers")
        features = tf.reshape(numbers, [-1, 12], name="features")
        tf.nn.softmax(tf.matmul(features, tf.constant(weights)), name="labels")
    (folder / "graph.pb").write_bytes(graph.as_graph_def().SerializeToString())


def frames(folder: Path) -> None:
    """A TF1 graph that loops by frames and writes what it finds into an array, as ``dynamic_rnn`` did."""
    rng = np.random.default_rng(6)
    weights = rng.normal(0, 0.5, (7, 4)).astype(np.float32)
    tf.compat.v1.disable_control_flow_v2()
    with tf.Graph().as_default() as graph:
        steps = tf.unstack(tf.compat.v1.placeholder(tf.float32, (None, 5, 3), name="x"), axis=1)
        series = tf.TensorArray(tf.float32, 5).unstack(tf.stack(steps))
        start = tf.zeros((tf.shape(steps[0])[0], 4))

        def step(at: Any, state: Any) -> Any:
            return at + 1, tf.tanh(tf.matmul(tf.concat([series.read(at), state], 1), weights))

        _, last = tf.while_loop(lambda at, _state: at < 5, step, (tf.constant(0), start))
        tf.nn.softmax(last, name="labels")
    tf.compat.v1.enable_control_flow_v2()
    (folder / "frames.pb").write_bytes(graph.as_graph_def().SerializeToString())


def reaching(folder: Path) -> None:
    """Graphs that read a file, and that are not frozen."""
    with tf.Graph().as_default() as graph:
        given = tf.compat.v1.placeholder(tf.float32, (1, 2), name="x")
        size = tf.cast(tf.strings.length(tf.io.read_file("/etc/hostname")), tf.float32)
        tf.add(given, size, name="y")
    (folder / "reads.pb").write_bytes(graph.as_graph_def().SerializeToString())
    with tf.Graph().as_default() as graph:
        given = tf.compat.v1.placeholder(tf.float32, (1, 2), name="x")
        tf.matmul(given, tf.compat.v1.get_variable("w", (2, 2), use_resource=False), name="y")
    (folder / "variables.pb").write_bytes(graph.as_graph_def().SerializeToString())


def with_code(folder: Path) -> None:
    """Lambda layers: marshalled Python in the file."""
    model = keras.Sequential([keras.Input((2,)), keras.layers.Lambda(lambda x: x + 1, name="sneaky")])
    model.save(folder / "lambda.keras")
    model.save(folder / "lambda.h5")


def with_slots(folder: Path) -> None:
    """The exported SavedModel with an optimizer's slot at an object that has none, as old Keras wrote it."""
    shutil.copytree(folder / "saved", folder / "slots")
    file = folder / "slots" / "saved_model.pb"
    document = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    nodes = document.meta_graphs[0].object_graph_def.nodes
    owner = next(node for node in nodes if node.WhichOneof("kind") == "user_object")
    first, second, *_ = (index for index, node in enumerate(nodes) if node.WhichOneof("kind") == "variable")
    owner.slot_variables.add(original_variable_node_id=first, slot_name="m", slot_variable_node_id=second)
    file.write_bytes(document.SerializeToString())


def with_signatures(folder: Path) -> None:
    """Two signatures, neither the default."""
    module = tf.Module()
    given = tf.TensorSpec((None, 2), tf.float32)
    module.double = tf.function(lambda x: 2.0 * x, input_signature=[given])
    module.half = tf.function(lambda x: 0.5 * x, input_signature=[given])
    tf.saved_model.save(module, str(folder / "two"), signatures={"double": module.double, "half": module.half})


def of_keras_2(folder: Path) -> None:
    """Written by Keras 2's code, with a layer that Keras 3 does not have."""
    import tf_keras

    tf_keras.utils.set_random_seed(6)
    layers = tf_keras.layers
    model = tf_keras.Sequential([
        tf_keras.Input((6, 3), name="steps"),
        layers.LocallyConnected1D(4, 2, activation="relu"),
        layers.Flatten(),
        layers.Dense(2, name="scores"),
    ])  # fmt: skip
    model.save(folder / "keras2.h5")


def bombs(folder: Path) -> None:
    """Small files that unpack to gigabytes, and weights that lie elsewhere."""
    with h5py.File(folder / "bomb.h5", "w") as file:
        file.attrs["model_config"] = "{}"
        file.create_dataset("model_weights/w", (1 << 30,), "f4", chunks=(1 << 20,), compression="gzip")
    with h5py.File(folder / "link.h5", "w") as file:
        file.attrs["model_config"] = "{}"
        file["model_weights"] = h5py.ExternalLink("/etc/passwd", "/")
    with zipfile.ZipFile(folder / "bomb.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", "{}")
        archive.writestr("metadata.json", "{}")
        archive.writestr("model.weights.h5", bytes(100 << 20))


def main(folder: Path) -> None:
    """Write everything."""
    model = classifier()
    model.save(folder / "net.keras")
    model.save(folder / "net.h5")
    model.save_weights(folder / "net.weights.h5")
    model.export(folder / "saved", verbose=False)
    converter = tf.lite.TFLiteConverter.from_saved_model(str(folder / "saved"))
    (folder / "net.tflite").write_bytes(converter.convert())
    two_ends().save(folder / "ends.keras")
    keras.Sequential([keras.Input((None, 3), name="steps"), keras.layers.GRU(2)]).save(folder / "free.keras")
    word = keras.Input((1,), dtype="string", name="word")
    looked_up = keras.layers.StringLookup(vocabulary=["a", "b"], output_mode="one_hot")(word)
    keras.Model(word, keras.layers.Dense(2)(looked_up)).save(folder / "words.keras")
    keras.Sequential([keras.Input((4, 3), batch_size=2), keras.layers.GRU(2, stateful=True)]).save(folder / "state.h5")
    with_states(folder)
    with_slots(folder)
    with_signatures(folder)
    of_keras_2(folder)
    frozen_graph(folder)
    frames(folder)
    reaching(folder)
    with_code(folder)
    bombs(folder)
    whole = (folder / "net.keras").read_bytes()
    (folder / "short.keras").write_bytes(whole[: len(whole) // 2])
    (folder / "renamed.keras").write_bytes((folder / "net.h5").read_bytes())
    (folder / "renamed.h5").write_bytes(whole)
    (folder / "short.h5").write_bytes((folder / "net.h5").read_bytes()[:9000])
    (folder / "short.pb").write_bytes((folder / "graph.pb").read_bytes()[:300])
    (folder / "renamed.pb").write_bytes(whole)
    (folder / "empty.pb").write_bytes(b"")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
