# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""Errors whose message is written for the user."""

import sys
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

COMMANDS = {"anomalib", "anomalib-dskd"}


class DskdError(ValueError):
    """Something the user can put right; the message says what is wrong, with which value, and what to do.

    In the ``anomalib`` and ``anomalib-dskd`` commands the message alone is printed; Python code sees an ordinary
    exception.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        if Path(sys.argv[0]).stem in COMMANDS:
            _MessageHook.install(message)


class _MessageHook:
    """Exception hook that prints an error's message and leaves all other errors to the hook before it.

    It can only be installed when the error is raised: anomalib installs rich's hook after it imports its models.
    """

    def __init__(self, previous: object) -> None:
        self.previous = previous
        self.message = ""

    @classmethod
    def install(cls, message: str) -> None:
        if not isinstance(sys.excepthook, cls):
            sys.excepthook = cls(sys.excepthook)
        sys.excepthook.message = message

    def __call__(self, kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        # jsonargparse raises an error of its own that quotes the message of the constructor's
        if isinstance(error, ValueError) and self.message in str(error):
            print(f"{Path(sys.argv[0]).stem}: error: {self.message}", file=sys.stderr)  # noqa: T201
        else:
            self.previous(kind, error, traceback)  # type: ignore[operator]


def first_line(error: Exception) -> str:
    """Return the first line of what an error says, its name where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def check_choice(name: str, value: str, choices: Iterable[str]) -> str:
    """Return ``value`` if it is one of ``choices``.

    Raises:
        DskdError: If it is not; the message lists the choices.
    """
    choices = list(choices)
    if value not in choices:
        msg = f"{name}={value!r} is not one of {', '.join(map(repr, choices))}."
        raise DskdError(msg)
    return value
