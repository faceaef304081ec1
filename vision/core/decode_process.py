"""A process that decodes one picture after another: what holds Python's lock, takes long or crashes does so there.

Pillow keeps the lock while it decodes a WebP or lays transparency on white: seconds for a large picture, in which the
public process would do nothing else. Lengths, JSON and bytes go both ways, as between the public process and a runner.
"""

import json
import os
import signal
import struct
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from PIL import Image

from vision.core.errors import Code, VisionError
from vision.core.images import Limits, decode_reduced

LENGTHS = struct.Struct("<QQ")

NICE = 5
"""Others' small pictures and the models come first where there is no core for all."""

COMMAND = (sys.executable, "-W", "ignore", "-m", "vision.core.decode_process")


class DecodeProcess:
    """Runs the process: from the first picture on, and again when it died. Of one thread."""

    def __init__(self, limits: Limits, seconds: float) -> None:
        self._limits, self._seconds = limits, seconds
        self._process: Any = None  # a Popen, whose pipes are not None

    def decode_reduced(self, data: bytes) -> tuple[Image.Image, tuple[int, int]]:
        """As images.decode_reduced(). Raises VisionError also where the process crashes or needs too long."""
        process = self._process
        if process is None or process.poll() is not None:
            process = self._process = subprocess.Popen(  # noqa: S603
                COMMAND, cwd=Path(__file__).parents[2], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
        timer = threading.Timer(self._seconds, process.kill)
        timer.start()
        try:
            _write(process.stdin, asdict(self._limits), data)
            told, pixels = _read(process.stdout)
        except (OSError, EOFError, ValueError) as error:
            self.close()
            raise VisionError(
                Code.UNDECODABLE_IMAGE, "Decoding the picture took too much; send it smaller, or in another format."
            ) from error
        finally:
            timer.cancel()
        if "code" in told:
            raise VisionError(Code(told["code"]), told["message"])
        return Image.frombytes("RGB", tuple(told["shown"]), pixels), tuple(told["size"])

    def close(self) -> None:
        """End the process, from any thread: the one that waits for it sees its pipe end."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with suppress(BrokenPipeError):  # of what was not written yet
                pipe.close()


def _write(file: IO[bytes], told: Any, data: bytes) -> None:
    text = json.dumps(told).encode()
    file.write(LENGTHS.pack(len(text), len(data)) + text)
    file.write(data)
    file.flush()


def _read(file: IO[bytes]) -> tuple[Any, bytes]:
    lengths = LENGTHS.unpack(_read_exactly(file, LENGTHS.size))
    text, data = [_read_exactly(file, length) for length in lengths]
    return json.loads(text), data


def _read_exactly(file: IO[bytes], length: int) -> bytes:
    data = file.read(length)
    if len(data) < length:
        raise EOFError
    return data


def main() -> None:
    """Answer until the pipe ends, which it does with the process that holds its other end."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # sent to all; accepted requests still need it
    os.nice(NICE)
    calls, answers = sys.stdin.buffer, sys.stdout.buffer
    while True:
        try:
            told, data = _read(calls)
            _write(answers, *_answer(data, Limits(**told)))
        except (EOFError, BrokenPipeError):
            return


def _answer(data: bytes, limits: Limits) -> tuple[dict[str, Any], bytes]:
    try:
        picture, size = decode_reduced(data, limits)
    except VisionError as error:
        return {"code": error.code, "message": error.message}, b""
    return {"shown": picture.size, "size": size}, picture.tobytes()


if __name__ == "__main__":
    main()
