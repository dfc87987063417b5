"""Runs in the tensorflow toolchain's environment, behind ``tensorflow_worker.py``; nothing of Edgeship is imported."""
