"""A process that decodes one picture after another: what holds Python's lock, takes long or crashes does so there.

Pillow keeps the lock while it decodes a WebP or lays transparency on white: seconds for a large picture, in which the
public process would do nothing else. A call and its answer are a line of JSON each; the picture's bytes, then its
pixels and colour profile, lie in memory that both have open.
"""

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image

from vision.core import colours
from vision.core.errors import Code, VisionError
from vision.core.images import Limits, decode_reduced

KEPT_BYTES, IDLE_SECONDS = 1 << 30, 5
"""What the allocator keeps from one picture to the next, else it gets it again page by page; until nobody asks."""

MAPPED_BYTES = 32 << 20
"""From which size on the allocator asks the system for memory of its own, and gives that back when it is freed."""

COMMAND = (sys.executable, "-W", "ignore", "-m", "vision.core.decode_process")


class DecodeProcess:
    """Runs the process: from the first picture on, and again when it died. Of one thread."""

    def __init__(self, limits: Limits, seconds: float) -> None:
        self._limits, self._seconds = limits, seconds
        self._process: Any = None  # a Popen, whose pipes are not None
        self._memory = os.memfd_create("picture")

    def decode_reduced(self, data: bytes) -> tuple[Image.Image, tuple[int, int]]:
        """As images.decode_reduced(). Raises VisionError also where the process crashes or needs too long."""
        process = self._process
        if process is None or process.poll() is not None:
            self._end()
            process = self._process = self._start()
        timer = threading.Timer(self._seconds, process.kill)
        timer.start()
        try:
            os.pwrite(self._memory, data, 0)
            process.stdin.write(json.dumps([len(data), asdict(self._limits)]).encode() + b"\n")
            process.stdin.flush()
            told = json.loads(process.stdout.readline())
        except (OSError, ValueError) as error:  # its pipes ended, or were closed for it
            self._end()
            raise VisionError(
                Code.UNDECODABLE_IMAGE, "Decoding the picture took too much; send it smaller, or in another format."
            ) from error
        finally:
            timer.cancel()
        if "code" in told:
            raise VisionError(Code(told["code"]), told["message"])
        pixels = os.pread(self._memory, told["bytes"], 0)
        picture = Image.frombytes(told["mode"], tuple(told["shown"]), pixels)
        profile = os.pread(self._memory, told["profile"], told["bytes"])
        colours.mark(picture, profile, colours.find(profile, picture.mode))
        return picture, tuple(told["size"])

    def close(self) -> None:
        """End it for good, from any thread: one that waits for the process sees its pipe end."""
        self._end()
        os.close(self._memory)

    def _start(self) -> Any:
        return subprocess.Popen(  # noqa: S603
            (*COMMAND, str(self._memory)),
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[self._memory],
            env={
                **os.environ,
                "MALLOC_MMAP_THRESHOLD_": str(MAPPED_BYTES),
                "MALLOC_TRIM_THRESHOLD_": str(KEPT_BYTES),
            },
        )

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with suppress(BrokenPipeError):  # of what was not written yet
                pipe.close()


def main() -> None:
    """Answer until the pipe ends, which it does with the process that holds its other end."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # sent to all; accepted requests still need it
    memory, allocator = int(sys.argv[1]), ctypes.CDLL(None)
    while True:
        if not select.select([sys.stdin], [], [], IDLE_SECONDS)[0]:
            allocator.malloc_trim(0)
        if not (line := sys.stdin.readline()):
            return
        length, limits = json.loads(line)
        told = _answer(memory, os.pread(memory, length, 0), Limits(**limits))
        with suppress(BrokenPipeError):  # nobody waits any more; the loop ends next
            print(json.dumps(told), flush=True)


def _answer(memory: int, data: bytes, limits: Limits) -> dict[str, Any]:
    try:
        picture, size = decode_reduced(data, limits)
    except VisionError as error:
        return {"code": error.code, "message": error.message}
    pixels, profile = picture.tobytes(), picture.info.get("icc_profile", b"")
    os.pwrite(memory, pixels + profile, 0)
    return {"shown": picture.size, "mode": picture.mode, "bytes": len(pixels), "profile": len(profile), "size": size}


if __name__ == "__main__":
    main()
