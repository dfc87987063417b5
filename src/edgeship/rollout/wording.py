"""Words that verdicts and rollouts share."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """A number with its noun.

    >>> counted(1, "device"), counted(3, "device")
    ('1 device', '3 devices')
    """
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
