"""Converters that live in environments of their own, so that their pins never meet ours."""

from edgeship.build.toolchains.converters import convert_onnx
from edgeship.build.toolchains.environment import TOOLCHAINS, Status, Toolchain, check, install, remove, status

__all__ = ["TOOLCHAINS", "Status", "Toolchain", "check", "convert_onnx", "install", "remove", "status"]
