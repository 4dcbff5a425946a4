"""Where mqctl begins and ends, whatever its surroundings: a traceback is for nobody."""

from __future__ import annotations

# Nothing that takes time to import: Ctrl-C may come at any moment, and `main` must be there to take it.
import os
import signal
import sys
import threading
from typing import IO, Any

__all__ = ["main"]

FAILED = 1


def main(prog_name: str = "mqctl") -> None:
    """Run mqctl with the arguments of this process, and end the process."""
    interruptible = _stop_quietly()
    _mend_streams()
    code: Any = FAILED
    try:
        from mqctl.program import program

        if interruptible:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        program(prog_name=prog_name)
    except SystemExit as end:
        code = end.code
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    except BaseException as error:
        if os.environ.get("MQCTL_DEBUG"):
            raise
        _say(error)
    _stop_quietly()
    if not _flush(silent=bool(code)):
        code = code or FAILED
    sys.exit(code)


def _stop_quietly() -> bool:
    """Ctrl-C ends the process at once, as one that knows nothing of it; False: it is not for us."""
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    ):
        return False
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    return True


def _mend_streams() -> None:
    """Streams that are closed, or cannot say all that a message may hold."""
    import codecs

    codecs.register_error("mqctl", _escaped)
    sys.stdin = sys.stdin or open(os.devnull)  # noqa: SIM115
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="mqctl")


def _escaped(error: UnicodeError) -> tuple[str, int]:
    """As JSON writes it: what is JSON stays JSON."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    pairs = zip(units[::2], units[1::2], strict=True)
    return "".join(f"\\u{high:02x}{low:02x}" for high, low in pairs), error.end


def _flush(*, silent: bool) -> bool:
    """Whether all that was said has arrived; what has not is forgotten, lest Python try again."""
    good = True
    for name in ("stdout", "stderr"):
        stream: IO[str] = getattr(sys, name)
        try:
            stream.flush()
        except (OSError, ValueError) as error:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
            good = False
            if name == "stdout" and not silent and not isinstance(error, BrokenPipeError):
                _say(error)
    return good


def _say(error: BaseException) -> None:
    """An error, where the means to say it better may be missing."""
    what = str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
    try:
        sys.stderr.write(f"error: {what}\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
