"""Words that verdicts and rollouts share."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """A number with its noun.

    >>> counted(1, "device"), counted(3, "device")
    ('1 device', '3 devices')
    """
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def reason_words(reason: str) -> str:
    """A reason code for people; the name of a model before it stays as it is.

    >>> reason_words("golden_mismatch"), reason_words("wake_word: golden_mismatch")
    ('golden mismatch', 'wake_word: golden mismatch')
    """
    model, colon, code = reason.rpartition(": ")
    return f"{model}{colon}{code.replace('_', ' ')}"
