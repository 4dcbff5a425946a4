"""The errors that mqctl raises itself; what the server refuses stays a ``psycopg.Error``."""

from __future__ import annotations


class MqctlError(Exception):
    """Something that mqctl refuses to do.

    ``hint`` says what to do about it, ``detail`` what exactly was found; both may be empty.
    """

    def __init__(self, message: str, *, detail: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail
        self.hint = hint


class SourceError(MqctlError):
    """The SQL tree is missing, incomplete or not laid out as mqctl expects."""


class ConnectError(MqctlError):
    """No connection to a server."""
