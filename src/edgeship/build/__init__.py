"""From a trained model to a signed bundle: convert, quantize, verify on the device's own runtime, measure, choose."""
