"""The process in which Ray is driven: apart from the command's, so that Ctrl-C ends both at once.

Ray runs threads and processes of its own, and one that is interrupted half way can take the process that
drives it along in a crash. That process therefore has a session of its own, which Ctrl-C in a terminal does
not reach; its parent ends it with all that it started. Parts are written whole: nothing is lost by that.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
from typing import IO, Any, cast

from wafervlm import workshop
from wafervlm.errors import ProviderError, WaferVLMError

# What a parent tells its user; anything else is a defect, whose trace the child prints.
_TOLD = (WaferVLMError, OSError, MemoryError)


def drive_apart(*arguments: Any) -> None:
    """Call ``wafervlm.score.drive`` with ``arguments`` in a process of its own; raises what it raises, and
    ProviderError where the process died."""
    reading, writing = os.pipe()
    environment = {**os.environ, "PYTHONPATH": _path()}
    command = [sys.executable, "-m", "wafervlm.score_process", str(writing)]
    with (
        os.fdopen(reading, "rb") as answer,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, env=environment, pass_fds=[writing], start_new_session=True
        ) as child,
    ):
        os.close(writing)
        try:
            given = cast(IO[bytes], child.stdin)
            with contextlib.suppress(BrokenPipeError):  # it died, which its answer tells
                given.write(pickle.dumps(arguments))
                given.flush()
            told = answer.read()
            code = child.wait()
        finally:
            _end(child)
    if not told:
        raise ProviderError(
            f"the process that drives Ray ended with exit code {code}; run the same command again, parts "
            "that are complete stay"
        )
    error = pickle.loads(told)  # noqa: S301  (by the child)
    if error is not None:
        raise error


def _end(child: subprocess.Popen[bytes]) -> None:
    """Kill ``child`` and what it started, unless it has ended well: then Ray has ended the rest."""
    if child.poll() != 0:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _path() -> str:
    """This package's place first, so that the child imports the same one."""
    return os.pathsep.join([str(workshop.ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


def _die_with_parent() -> None:
    """End all when the parent's end of the pipe closes before this process has done its work."""
    # Not through sys.stdin, whose lock Python would wait for when it ends.
    while os.read(0, 1):
        pass
    os.killpg(0, signal.SIGKILL)


def _main() -> None:
    arguments = pickle.load(sys.stdin.buffer)  # noqa: S301  (by the parent)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    from wafervlm.score import drive

    error: BaseException | None = None
    try:
        drive(*arguments)
    except _TOLD as caught:
        error = caught
    with os.fdopen(int(sys.argv[1]), "wb") as answer:
        pickle.dump(error, answer)
    # All is done, and threads that Ray leaves behind are not always ended well by Python.
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    _main()
