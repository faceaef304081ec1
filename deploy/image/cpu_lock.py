"""Turn the lock into that of an image without CUDA: `python deploy/image/cpu_lock.py < requirements.lock`.

What only CUDA needs is left out. The CPU builds of torch and torchvision are on PyTorch's own index, not on PyPI, whose
hashes are for other files: these two are pinned without a hash. Everything else keeps its hashes.

polars is left out too, a tenth of the image: ultralytics wants it, for the tables of its trainings.
"""

import re
import sys

HEADER = """\
# Made by deploy/image/cpu_lock.py from requirements.lock; `make lock` runs it.
# torch and torchvision carry no hashes: their CPU builds come from PyTorch's own index.
"""
CUDA = re.compile(r"nvidia-(?!ml-py)|cuda-|triton==")
FROM_PYTORCH = re.compile(r"(torch|torchvision)==[\w.]+")
UNUSED = re.compile(r"polars==[\w.]+")


def without_cuda(lock: str) -> str:
    """The lock's requirements without those of CUDA, and the torch pair's CPU builds without hashes."""
    requirements = re.split(r"^(?=[a-z0-9])", lock, flags=re.MULTILINE)[1:]
    return HEADER + "".join(map(_for_cpu, requirements))


def _for_cpu(requirement: str) -> str:
    if CUDA.match(requirement) or requirement.startswith("polars-runtime"):
        return ""
    if pair := FROM_PYTORCH.match(requirement):
        return f"{pair.group()}+cpu\n"
    if unused := UNUSED.match(requirement):  # not left out entirely: then ultralytics would bring it, unpinned
        return requirement.replace(unused.group(), f"{unused.group()} ; sys_platform == 'never'", 1)
    return requirement


if __name__ == "__main__":
    sys.stdout.write(without_cuda(sys.stdin.read()))
