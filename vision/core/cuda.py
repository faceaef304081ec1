"""What runs a network on a GPU: pixels go there as bytes, batches have few sizes, and each is one CUDA graph.

A batch is padded to the next of BUCKETS, whose kernels were recorded once and are replayed with one call. It is staged
in pinned memory, and goes over on a stream of its own while the batch before it is in work. `python -m train_and_save
optimize` measures which precision a model bears and compiles it (AOTInductor). Without that, eager kernels in bfloat16
are recorded: float16's range is too small for some models (BLIP's values overflow). It is the more exact, so the card
of a model that bears it says so (`half`). All of it runs on a CPU, too, without graphs and streams: tests do that.
"""

import hashlib
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from vision.core.engine import DeviceLostError, Floats
from vision.core.pixels import Steps

log = logging.getLogger(__name__)

BUCKETS = (1, 2, 4, 8, 16, 32)

MADE = "cuda.json"
"""Beside the compiled code: what it was made for."""

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}

Run = Callable[..., tuple[Tensor, ...]]


class Made(BaseModel):
    """What `optimize` chose for a model on one kind of GPU."""

    gpu: str
    torch: str
    dtype: str
    channels_last: bool
    code: dict[str, str]
    """Each compiled part of the network, and the file that holds it; the others run eager."""
    sha256: dict[str, str]
    engines: dict[str, float]
    """Images/s of what was tried, in batches of the largest size."""
    gate: dict[str, float]
    """How much of float32's answers was left, 0-1, of each."""


@dataclass(frozen=True)
class Plan:
    """How a model runs: on which device, in which precision, and what of it is compiled."""

    device: str
    dtype: torch.dtype = torch.bfloat16
    channels_last: bool = False
    code: Mapping[str, Path] = field(default_factory=dict)
    graphs: bool = True

    def __str__(self) -> str:
        return f"{'compiled' if self.code else 'eager'} {str(self.dtype).removeprefix('torch.')}"


def gpu_name(device: str) -> str:
    """Return what compiled code depends on: the GPU's name and compute capability."""
    if torch.device(device).type != "cuda":
        return device
    found = torch.cuda.get_device_properties(device)
    return f"{found.name} ({found.major}.{found.minor})"


def plan(name: str, device: str, folders: Sequence[Path], half: str = "bfloat16") -> Plan:
    """Return how a model runs here; folders: where its compiled code may lie, the first that fits is taken."""
    for folder in folders:
        if not (folder / MADE).is_file():
            continue
        made = Made.model_validate_json((folder / MADE).read_text())
        if (made.gpu, made.torch) != (gpu_name(device), torch.__version__):
            log.warning(
                "%s: %s is for %s and torch %s, and is ignored: this is %s and torch %s.",
                *(name, folder / MADE, made.gpu, made.torch, gpu_name(device), torch.__version__),
            )
            continue
        _verify(folder, made)
        code = {part: folder / file for part, file in made.code.items()}
        return Plan(device, DTYPES[made.dtype], made.channels_last, code)
    # Cards before Ampere have no bfloat16 of their own.
    has_half = (
        half == "float16" or torch.device(device).type == "cpu" or torch.cuda.get_device_capability(device) >= (8, 0)
    )
    eager = Plan(device, DTYPES[half] if has_half else torch.float32)
    log.info("%s: %s; `python -m train_and_save optimize` would measure and compile it for this GPU.", name, eager)
    return eager


def _verify(folder: Path, made: Made) -> None:
    for file, expected in made.sha256.items():
        with (folder / file).open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != expected:
                raise ValueError(f"{folder / file} is damaged: it differs from {MADE}. Run optimize again.")


class Levels(nn.Module):
    """A network behind bytes: (B, H, W, 3), uint8, is normalised on the card, in float32, and then given to it."""

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        """Take mean and std of the channels as levels of 0-255."""
        super().__init__()
        self.network = network
        # Plain numbers: buffers would be rounded with the weights.
        self.scales = [1 / one for one in std]
        self.shifts = [-m / s for m, s in zip(mean, std, strict=True)]

    def forward(self, *inputs: Tensor) -> Any:
        [pixels] = inputs
        return self.network(self.normalized(pixels).to(next(self.parameters()).dtype))

    def normalized(self, pixels: Tensor) -> Tensor:
        channels = [
            pixels[..., channel].float() * scale + shift
            for channel, (scale, shift) in enumerate(zip(self.scales, self.shifts, strict=True))
        ]
        return torch.stack(channels, -1).permute(0, 3, 1, 2)


class Values(nn.Module):
    """A network that is given normalised pixels (B, 3, H, W) in float32."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> Any:
        return self.network(pixels.to(next(self.parameters()).dtype))


def behind(steps: Steps | None, network: nn.Module) -> nn.Module:
    """Return a network that takes what a model's preprocessing hands over: bytes if its steps are known."""
    if steps is None:
        return Values(network)
    return Levels(network, *([one * 255 for one in values] for values in (steps.mean, steps.std)))


UNMASKED = "sdpa_unmasked"


def unmasked(model: Any) -> None:
    """Let a transformers network of whole pictures never make a mask.

    While it is exported or recorded, transformers makes one that hides nothing, with which the fast kernels of
    attention cannot be had. For kinds of attention that it does not know it makes none.
    """
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if model.config._attn_implementation == "sdpa":
        AttentionInterface.register(UNMASKED, sdpa_attention_forward)
        model.set_attn_implementation(UNMASKED)


class Outputs(nn.Module):
    """A network that returns a tuple, of float32."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        outputs = self.network(*inputs)
        return tuple(part.float() for part in (outputs if isinstance(outputs, tuple) else (outputs,)))


class Best(nn.Module):
    """A detector's network that returns the anchor points with the best scores alone: else most of the time goes into
    carrying the others to the CPU."""

    ANCHORS = 1000

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores (B, N, labels) and boxes (B, N, 4), N at most ANCHORS."""
        scores, boxes = (part.float() for part in self.network(*inputs))
        best = scores.amax(2).topk(min(self.ANCHORS, scores.shape[1]), dim=1).indices.unsqueeze(2)
        return scores.gather(1, best.expand(-1, -1, scores.shape[2])), boxes.gather(1, best.expand(-1, -1, 4))


def load(module: nn.Module, how: Plan, part: str = "network") -> Run:
    """Return a network that returns a tuple, or its compiled code, as a function of tensors on how.device."""
    return Compiled(how.code[part], how.device) if part in how.code else placed(module, how)


class Compiled:
    """Code that AOTInductor made, as a function of tensors."""

    def __init__(self, code: Path, device: str) -> None:
        self._runner = compiled(code, device)

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(self._runner.run(list(inputs)))


def placed(module: nn.Module, how: Plan) -> nn.Module:
    module = module.to(how.device, how.dtype)
    return module.to(memory_format=torch.channels_last) if how.channels_last else module


def compiled(code: Path, device: str) -> Any:
    """Load a shared library that AOTInductor made. torch's loader of packages would also read pickles."""
    if torch.device(device).type == "cpu":
        return torch._C._aoti.AOTIModelContainerRunnerCpu(str(code), 1)
    runner: Any = torch._C._aoti.AOTIModelContainerRunnerCuda
    # The last argument: no thread of its own waits for the end of a run, which a CUDA graph could not record.
    return runner(str(code), 1, device, str(code.parent), True)


def bucket(count: int) -> int:
    return next(size for size in BUCKETS if size >= count)


class Constants(TorchDispatchMode):
    """Keeps what a network makes on the CPU and carries to the card in each run, as YOLO and RT-DETR do.

    Such a copy cannot be recorded. In a first run they are noted; once `known`, they are taken from the card.
    """

    def __init__(self) -> None:
        super().__init__()
        self.known = False
        self._noted: list[Tensor] = []
        self._next = iter(self._noted)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name
        if name in ("aten::_to_copy", "aten::to", "aten::type_as") and _goes_over(args[0], *args[1:], *kwargs.values()):
            if not self.known:
                self._noted.append(func(*args, **kwargs))
            return (next(self._next) if self.known else self._noted[-1]).clone()
        if name == "aten::copy_" and _goes_over(args[1], args[0]):
            if not self.known:
                self._noted.append(args[1].to(args[0].device))
            return args[0].copy_(next(self._next) if self.known else self._noted[-1])
        return func(*args, **kwargs)


def _goes_over(tensor: Tensor, *towards: Any) -> bool:
    """Whether a tensor of the CPU is carried to the device, or the device of the tensor, among `towards`."""
    devices = [one.device if isinstance(one, Tensor) else one for one in towards]
    return tensor.device.type == "cpu" and any(isinstance(one, torch.device) and one.type != "cpu" for one in devices)


RECORDING = threading.Lock()
"""Held by who records: CUDA's state of a recording is its process's, not a model's."""


def reason(error: BaseException) -> BaseException:
    """Return what went wrong first: the end of a failed recording raises an error of its own, which tells nothing."""
    while error.__context__ is not None:
        error = error.__context__
    return error


class Pool:
    """The memory of graphs that share theirs."""

    def __init__(self) -> None:
        self.handle = torch.cuda.graph_pool_handle()

    def renew(self) -> None:
        """After a recording that failed: the allocator believes that it goes on, and would refuse all others."""
        self.handle = torch.cuda.graph_pool_handle()


class Replay:
    """A function of tensors that stay where they are: fill `inputs`, call, read `outputs`.

    On a GPU its kernels are recorded once. What cannot be recorded, since it waits for the GPU in the middle, is run as
    it is.
    """

    def __init__(self, run: Run, inputs: Sequence[Tensor], pool: "Pool | None", *, graphs: bool = True) -> None:
        self.inputs = list(inputs)
        self._run = run
        self._graph: torch.cuda.CUDAGraph | None = None
        self._constants = Constants()  # the graph reads them
        with torch.inference_mode():
            self.outputs = self._run(*self.inputs)
            if graphs and self.inputs[0].is_cuda:
                with RECORDING, torch.cuda.device(self.inputs[0].device):
                    self._record(pool or Pool())

    def __call__(self) -> None:
        if self._graph is not None:
            self._graph.replay()
            return
        with torch.inference_mode():
            for fixed, output in zip(self.outputs, self._run(*self.inputs), strict=True):
                fixed.copy_(output)

    def _record(self, pool: "Pool") -> None:
        # Compiled code holds its constants, and none of its calls are Python's to see.
        constants = nullcontext() if isinstance(self._run, Compiled) else self._constants
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side), constants:
            self._run(*self.inputs)  # libraries set themselves up at first use, which cannot be recorded
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        self._constants.known = True
        try:
            with (
                torch.cuda.graph(graph, pool=pool.handle, stream=side, capture_error_mode="thread_local"),
                constants,
            ):
                outputs = self._run(*self.inputs)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            log.warning("runs without CUDA graphs: %s", str(reason(error)).splitlines()[0])
            pool.renew()
            return
        self._graph, self.outputs = graph, outputs


class Launcher:
    """A device, and what takes turns on it. On a CPU there are no streams, and nothing to wait for."""

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self.is_cuda = self.device.type == "cuda"
        self.lock = threading.Lock()
        """Held by who launches; not by who waits for the end."""
        self.pool = Pool() if self.is_cuda else None
        self._copies = torch.cuda.Stream(self.device) if self.is_cuda else None
        self._work = torch.cuda.Stream(self.device) if self.is_cuda else None

    def copying(self) -> Any:
        return torch.cuda.stream(self._copies) if self._copies else nullcontext()

    def working(self) -> Any:
        return torch.cuda.stream(self._work) if self._work else nullcontext()

    def host(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return memory of the host that can be copied from and to while others work."""
        return torch.empty(*shape, dtype=dtype, pin_memory=self.is_cuda)

    def event(self) -> "torch.cuda.Event | None":
        """Return what is reached when all that was launched on the current stream is done; waiting takes no CPU."""
        if not self.is_cuda:
            return None
        event = torch.cuda.Event(blocking=True)
        event.record()
        return event

    @contextmanager
    def noticing(self) -> Iterator[None]:
        """Raise DeviceLostError for an error after which nothing more will work here; others stay as they are."""
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            if self.is_cuda and not self._works():
                raise DeviceLostError(str(error).splitlines()[0]) from error
            raise

    def free(self) -> None:
        if self.is_cuda:
            torch.cuda.empty_cache()

    def _works(self) -> bool:
        # An assert, an illegal address or an uncorrectable memory error stays: each later call fails, too.
        try:
            torch.cuda.synchronize(self.device)
        except RuntimeError:
            return False
        return True


class _Stage:
    """Where one batch waits: its inputs on the host and on the card, its outputs on the host."""

    def __init__(self, launcher: Launcher, inputs: Sequence[NDArray[Any]]) -> None:
        shapes = [((BUCKETS[-1], *one.shape[1:]), torch.from_numpy(np.empty(0, one.dtype)).dtype) for one in inputs]
        self.host = [launcher.host(*shape) for shape in shapes]
        self.card = [torch.empty(*shape, dtype=dtype, device=launcher.device) for shape, dtype in shapes]
        self.outputs: list[Tensor] = []


class Buckets:
    """An Engine (engine.py) on a card, for inputs of one shape each. Several threads may call it."""

    def __init__(self, run: Run, how: Plan) -> None:
        self._run, self._how = run, how
        self.launcher = Launcher(how.device)
        self._largest = BUCKETS[-1]
        self._replays: dict[int, Replay] = {}
        self._idle: list[_Stage] = []

    def __call__(self, *inputs: NDArray[Any]) -> tuple[Floats, ...]:
        outputs, at = [], 0
        while at < len(inputs[0]):
            some = [values[at : at + self._largest] for values in inputs]
            count = len(some[0])
            try:
                with self.launcher.noticing():
                    outputs.append(self._batch(some))
            except torch.OutOfMemoryError:
                self.launcher.free()
                if count == 1:
                    raise
                self._go_smaller(bucket(count))
                continue
            at += count
        return tuple(np.concatenate(parts) if len(parts) > 1 else parts[0] for parts in zip(*outputs, strict=True))

    def example(self, size: int) -> list[Tensor]:
        """Return inputs of a batch as they were when it was called last."""
        known = next(iter(self._replays.values()))
        return [torch.zeros(size, *one.shape[1:], dtype=one.dtype, device=one.device) for one in known.inputs]

    def _go_smaller(self, size: int) -> None:
        """Out of memory with batches of `size`: make them half as large from now on."""
        with self.launcher.lock:
            self._largest = min(self._largest, size // 2)
            self._replays = {one: replay for one, replay in self._replays.items() if one <= self._largest}
            self.launcher.free()
        log.warning("out of memory with a batch of %d: batches hold %d from now on.", size, self._largest)

    def _batch(self, inputs: Sequence[NDArray[Any]]) -> tuple[Floats, ...]:
        count = len(inputs[0])
        try:
            stage = self._idle.pop()
        except IndexError:
            stage = _Stage(self.launcher, inputs)
        with self.launcher.copying():
            for values, host, there in zip(inputs, stage.host, stage.card, strict=True):
                host[:count].numpy()[:] = values
                there[:count].copy_(host[:count], non_blocking=True)
            arrived = self.launcher.event()
        with self.launcher.lock, self.launcher.working():
            if arrived is not None:
                arrived.wait()
            replay = self._replay(bucket(count), stage)
            for there, fixed in zip(stage.card, replay.inputs, strict=True):
                fixed[:count].copy_(there[:count], non_blocking=True)
            replay()
            if not stage.outputs:
                stage.outputs = [self.launcher.host((BUCKETS[-1], *o.shape[1:]), o.dtype) for o in replay.outputs]
            for output, host in zip(replay.outputs, stage.outputs, strict=True):
                host[:count].copy_(output[:count], non_blocking=True)
            done = self.launcher.event()
        if done is not None:
            done.synchronize()
        outputs = tuple(host[:count].numpy().copy() for host in stage.outputs)
        self._idle.append(stage)
        return outputs

    def _replay(self, size: int, stage: _Stage) -> Replay:
        if size not in self._replays:
            inputs = [torch.zeros_like(there[:size]) for there in stage.card]
            self._replays[size] = Replay(self._run, inputs, self.launcher.pool, graphs=self._how.graphs)
        return self._replays[size]


def engine(module: nn.Module, how: Plan) -> Buckets:
    """Return an Engine; module: what `optimize` compiles, from inputs of bytes to a tuple."""
    return Buckets(load(module, how), how)
