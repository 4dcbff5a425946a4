"""Just enough of a reader of SQL text: single statements, the function each defines, and its body.

It knows strings, quoted names, comments and dollar quotes; it does not know ``begin atomic`` bodies, which mq does not
use (``prosrc`` is empty for them, so nothing could be compared).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from hashlib import md5, sha256

_TOKEN = re.compile(
    r"""
      (?P<comment>--[^\n]*)
    | (?P<block>/\*)
    | (?P<dollar>\$(?:[A-Za-z_][A-Za-z0-9_]*)?\$)
    | (?P<escape>\b[eE]'(?:[^'\\]|\\.|'')*')
    | (?P<string>'(?:[^']|'')*')
    | (?P<name>"(?:[^"]|"")*")
    | (?P<end>;)
    """,
    re.VERBOSE | re.DOTALL,
)
_ROUTINE = re.compile(
    r"\s*create\s+or\s+replace\s+(?:function|procedure)\s+mq\.(?P<name>[a-z_][a-z0-9_]*)\s*\(",
    re.IGNORECASE,
)
_ANY_ROUTINE = re.compile(
    r"\s*create\s+(?:or\s+replace\s+)?(?:function|procedure)\b", re.IGNORECASE
)


@dataclass(frozen=True)
class Statement:
    """One SQL statement without its semicolon.

    ``code`` is ``text`` without comments and the inside of quotes, ``quoted`` its first dollar-quoted part.
    """

    text: str
    code: str
    quoted: str | None

    @cached_property
    def routine(self) -> str | None:
        """Name of the function or procedure of schema ``mq`` that this statement defines, else None."""
        found = _ROUTINE.match(self.code)
        return found["name"].lower() if found else None

    @property
    def defines_routine(self) -> bool:
        """Whether it defines any function or procedure, in whatever form."""
        return _ANY_ROUTINE.match(self.code) is not None

    @property
    def body_md5(self) -> str | None:
        """``md5(pg_proc.prosrc)`` of the function that this statement defines, else None."""
        if self.routine is None or self.quoted is None:
            return None
        return md5(self.quoted.encode(), usedforsecurity=False).hexdigest()


def normalise(text: str) -> str:
    """``text`` with Unix line ends, no blanks at the end of a line, and exactly one line end at its end."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return "\n".join(line.rstrip() for line in lines).strip("\n") + "\n"


def digest(text: str) -> str:
    """sha256 of the normalised text, in hex."""
    return sha256(normalise(text).encode()).hexdigest()


def dollar_quote(text: str) -> str:
    """``text`` as a dollar-quoted SQL literal, under a tag that does not occur in it."""
    tag, number = "mqctl", 0
    while f"${tag}$" in text:
        number += 1
        tag = f"mqctl{number}"
    return f"${tag}${text}${tag}$"


def split(text: str) -> list[Statement]:
    """The statements of ``text``, in order; what holds nothing but blanks and comments is left out.

    Raises ValueError where a comment or a dollar quote never ends.
    """
    statements: list[Statement] = []
    code: list[str] = []
    quoted: str | None = None
    start = position = 0

    def close(end: int) -> None:
        nonlocal code, quoted, start
        body = "".join(code)
        if body.strip():
            statements.append(Statement(text[start:end].strip(), body.strip(), quoted))
        code, quoted, start = [], None, end + 1

    while token := _TOKEN.search(text, position):
        code.append(text[position : token.start()])
        end = token.end()
        if token.lastgroup == "end":
            close(token.start())
        elif token.lastgroup == "block":
            end = _block_comment_end(text, token.start())
        elif token.lastgroup == "dollar":
            closing = text.find(token.group(), token.end())
            if closing < 0:
                raise ValueError(f"the dollar quote {token.group()} never ends")
            if quoted is None:
                quoted = text[token.end() : closing]
            end = closing + len(token.group())
            code.append(" $$ ")
        elif token.lastgroup == "name":
            code.append(token.group())
        elif token.lastgroup != "comment":
            code.append(" '' ")
        position = end
    code.append(text[position:])
    close(len(text))
    return statements


def _block_comment_end(text: str, start: int) -> int:
    """Where the block comment that begins at ``start`` ends; they nest."""
    depth, position = 1, start + 2
    while depth:
        opening, closing = text.find("/*", position), text.find("*/", position)
        if closing < 0:
            raise ValueError("a block comment never ends")
        if 0 <= opening < closing:
            depth, position = depth + 1, opening + 2
        else:
            depth, position = depth - 1, closing + 2
    return position
