"""Recurrent layers of Keras 3 that keep their state from call to call: the states become inputs and outputs."""

from typing import Any, Final

from .files import Refused

#: Layer → names of its states, in the order in which it takes and gives them. Source: Keras, recurrent layers.
_STATES: Final = {"LSTM": ("h", "c"), "GRU": ("h",), "SimpleRNN": ("h",)}
_MENDS: Final = "make the states inputs and outputs of the model"


def stateful_layers(model: Any) -> list[Any]:
    """Recurrent layers that hide a state, those of models inside the model included."""
    flatten = getattr(model, "_flatten_layers", None)
    layers = flatten(include_self=False, recursive=True) if flatten is not None else model.layers
    return [each for each in layers if getattr(each, "stateful", False)
            and (hasattr(each, "reset_states") or hasattr(each, "reset_state")) and each is not model]  # fmt: skip


def with_states(model: Any, hidden: list[Any]) -> tuple[Any, str]:
    """The same model with the hidden states as further inputs and outputs, behind its own; and a note for people.

    Args:
        model: of Keras 3.
        hidden: its stateful layers.

    Raises:
        Refused: a layer of another kind, inside another model, or for a batch of several.
    """
    import keras

    for layer in hidden:
        _check(layer, model)
    begins: list[Any] = []
    ends: list[Any] = []

    def call(layer: Any, *arguments: Any, **named: Any) -> Any:
        if not any(layer is each for each in hidden):
            return layer(*arguments, **named)
        names = _STATES[type(layer).__name__]
        twin = type(layer).from_config({**layer.get_config(), "stateful": False, "return_state": True})
        given = [keras.Input(batch_shape=tuple(state.shape), dtype=state.dtype, name=f"{layer.name}_{name}")
                 for name, state in zip(names, layer.states, strict=True)]  # fmt: skip
        result, *states = twin(*arguments, **{**named, "initial_state": given})
        twin.set_weights(layer.get_weights())
        begins.extend(given)
        ends.extend(keras.layers.Identity(name=f"{layer.name}_{name}_next")(state)
                    for name, state in zip(names, states, strict=True))  # fmt: skip
        return result

    plain = keras.Model(model.inputs, model.outputs)
    # cloning is no way: it looks for a path from the clone's own inputs alone
    results = plain._run_through_graph(plain.inputs, operation_fn=lambda layer: layer, call_fn=call)
    opened = keras.Model([*plain.inputs, *begins], [*results, *ends])
    pairs = ", ".join(f"{each.name} → {each.name}_next" for each in begins)
    return opened, f"it kept a state from call to call: now inputs and outputs, carried on by whoever calls ({pairs})"


def _check(layer: Any, model: Any) -> None:
    kind = type(layer).__name__
    if kind not in _STATES or not any(layer is each for each in model.layers):
        raise Refused(
            f"layer {layer.name} ({kind}) is stateful: its state stays hidden from one call to the next", _MENDS
        )
    batch = layer.states[0].shape[0]
    if batch != 1:
        raise Refused(f"layer {layer.name} is stateful for {batch} samples at once, and a device has one",
                      "build the model with batch_size=1 and the same weights, and save it again")  # fmt: skip
