"""Models for microcontrollers: TensorFlow Lite Micro's operators and memory, and C sources with the model inside."""
