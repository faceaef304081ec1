"""python benchmarks/gpu_probe.py [--tiny]: first questions to a GPU, each answered for itself. Needs no package of ours.

A family (network with seeded weights) is a process of its own; they compile beside each other and measure in turns.
"""

import argparse
import fcntl
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
FAMILIES = ["vit", "lite0", "nanodet", "yolo", "rtdetr", "blip_see", "blip_say", "blip_generate", "vit_static", "vit_tune"]
START = time.time()


def note(rows, name, value):
    rows[name] = value
    print(f"{time.time() - START:6.1f}s {name:<44} {value}", flush=True)


def attempt(rows, name, run):
    try:
        value = run()
        for key, one in (value.items() if isinstance(value, dict) else [("", value)]):
            note(rows, f"{name} {key}".strip(), one)
        return value
    except Exception as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        note(rows, name, f"FAILED {type(error).__name__}: {' | '.join(lines[:2] + lines[-1:])[:300]}")
        traceback.print_exc(limit=-4)
        return None


def build(family, tiny):
    """-> module (uint8 NHWC in, tensors out), example of one picture, is_conv."""
    import torch
    from torch import nn

    torch.manual_seed(0)

    class Levels(nn.Module):
        def __init__(self, inner, mean=127.5, std=127.5):
            super().__init__()
            self.inner = inner
            self.register_buffer("mean", torch.full((1, 3, 1, 1), mean))
            self.register_buffer("std", torch.full((1, 3, 1, 1), std))

        def forward(self, pixels):
            x = (pixels.permute(0, 3, 1, 2).float() - self.mean.float()) / self.std.float()
            out = self.inner(x.to(self.mean.dtype))
            out = out if isinstance(out, tuple) else (out,)
            return tuple(o.float() for o in out)

    class Pick(nn.Module):
        def __init__(self, model, *names):
            super().__init__()
            self.model, self.names = model, names

        def forward(self, x):
            out = self.model(pixel_values=x)
            return tuple(getattr(out, name) for name in self.names)

    def spread(model):
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
        return model

    side = 224
    if family.startswith("vit"):
        from transformers import ViTConfig, ViTForImageClassification

        model = ViTForImageClassification(ViTConfig(num_hidden_layers=1 if tiny else 12, num_labels=1000))
        module = Levels(Pick(model, "logits"))
    elif family == "lite0":
        import timm

        module = Levels(timm.create_model("tf_efficientnet_lite0", pretrained=False))
    elif family == "nanodet":
        from vision.models.nanodet_module import NanoDet

        side, module = 416, Levels(spread(NanoDet(80)))
    elif family == "yolo":
        from ultralytics.nn.tasks import DetectionModel

        model = DetectionModel("yolo26n.yaml", nc=80, verbose=False).eval().fuse(verbose=False)
        head = model.model[-1]
        head.export, head.dynamic, head.xyxy = True, True, True
        head.postprocess = lambda predictions: predictions.permute(0, 2, 1)
        side, module = 640, Levels(model, 0.0, 255.0)
    elif family == "rtdetr":
        from transformers import RTDetrConfig, RTDetrForObjectDetection, RTDetrResNetConfig

        backbone = RTDetrResNetConfig(
            hidden_sizes=[64, 128, 256, 512], depths=[2] * 4, layer_type="basic",
            out_features=["stage2", "stage3", "stage4"],
        )
        config = RTDetrConfig(
            backbone_config=backbone, encoder_in_channels=[128, 256, 512], hidden_expansion=0.5,
            decoder_layers=1 if tiny else 3, num_queries=300, num_labels=80,
        )
        side, module = 640, Levels(Pick(spread(RTDetrForObjectDetection(config)), "logits", "pred_boxes"), 0.0, 255.0)
    elif family.startswith("blip"):
        from transformers import BlipConfig, BlipForConditionalGeneration

        layers = {"num_hidden_layers": 1} if tiny else {}
        text = {"vocab_size": 30524, "bos_token_id": 30522, "sep_token_id": 102, "eos_token_id": 2, "pad_token_id": 0}
        side = 384
        config = BlipConfig(vision_config={"image_size": side, **layers}, text_config={**text, **layers})
        model = BlipForConditionalGeneration(config)
        if family == "blip_generate":
            return model, side
        from train_and_save import captioner_graphs as graphs

        parts = graphs.family(model)
        if family == "blip_see":
            module = Levels(graphs.See(parts))
        else:
            module = static_say(graphs, parts)
    else:
        raise ValueError(family)
    return module.eval(), side


BEAMS, LENGTH, KEPT = 3, 24, 64


def static_say(graphs, parts):
    import torch
    from torch import nn

    class Static:
        def __init__(self, cache, position):
            self.cache, self.position = cache, position  # (R, 2, heads, T, width)

        def extend(self, keys, values):
            new = torch.stack([graphs._split(part, self.cache.shape[2]) for part in (keys, values)], 1)
            self.cache = self.cache.index_copy(3, self.position, new)
            return self

        def listen(self, query):
            allowed = torch.arange(self.cache.shape[3], device=query.device) <= self.position
            heads = graphs._split(query, self.cache.shape[2])
            weights = heads @ self.cache[:, 0].transpose(-1, -2) / self.cache.shape[4] ** 0.5
            weights = weights.masked_fill(~allowed, float("-inf")).softmax(-1)
            return (weights @ self.cache[:, 1]).transpose(1, 2).flatten(2)

    graphs._longer = lambda said, keys, values: said.extend(keys, values)
    graphs._listen = lambda query, said: said.listen(query)

    class StaticSay(nn.Module):
        def __init__(self):
            super().__init__()
            self.family = parts
            self.shape = (len(parts.layers), 2, parts.heads, LENGTH)
            self.width = 768 // parts.heads

        def forward(self, tokens, parents, position, cache, *seen):
            batch, beams = tokens.shape
            said = cache[torch.arange(batch, device=tokens.device)[:, None], parents].flatten(0, 1)
            hidden = self.family.embed(tokens.flatten(), position.expand(batch * beams)).unsqueeze(1)
            kept = []
            for index, layer in enumerate(self.family.layers):
                own = Static(said[:, index], position)
                hidden, own = self.family.step(layer, hidden, own, seen[2 * index], seen[2 * index + 1])
                kept.append(own.cache)
            log_probs = self.family.logits(hidden[:, 0]).float().log_softmax(-1)
            best = log_probs.topk(KEPT)
            return best.values, best.indices, torch.stack(kept, 1).unflatten(0, (batch, beams))

    return StaticSay()


def inputs_of(family, module, side, batch, device, dtype):
    import torch

    generator = torch.Generator().manual_seed(1)
    if family == "blip_say":
        layers, _, heads, _ = module.shape
        width = module.width
        seen = []
        for _ in range(layers):
            seen += [torch.randn(batch, heads, width, 577), torch.randn(batch, heads, 577, width)]
        cache = torch.zeros(batch, BEAMS, *module.shape, width)
        tokens = torch.randint(1000, (batch, BEAMS), generator=generator)
        parents = torch.arange(BEAMS).expand(batch, BEAMS).contiguous()
        floats = [one.to(device, dtype) for one in (cache, *seen)]
        return (tokens.to(device), parents.to(device), torch.tensor([5], device=device), *floats)
    return (torch.randint(256, (batch, side, side, 3), generator=generator).to(torch.uint8).to(device),)


def sync(device):
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def pace(run, batch, device, seconds=0.2):
    """Pictures a second."""
    for _ in range(3):
        run()
    sync(device)
    start, done = time.perf_counter(), 0
    while True:
        for _ in range(5):
            run()
        sync(device)
        done += 5
        if time.perf_counter() - start > seconds:
            break
    return round(done * batch / (time.perf_counter() - start), 1)


def graphed(run, inputs):
    import torch

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run(*inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = run(*inputs)
    return graph.replay, outputs


class Lock:
    def __enter__(self):
        self.file = open("/tmp/gpu_probe.lock", "w")
        fcntl.flock(self.file, fcntl.LOCK_EX)

    def __exit__(self, *_):
        self.file.close()


def family_run(family, out, device, tiny):
    import torch

    rows = {}
    buckets = [1, 2] if tiny else [1, 8, 32]
    torch.set_num_threads(2)
    torch.set_grad_enabled(False)
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16} if device == "cuda" else {"bf16": torch.bfloat16}
    half = torch.float16 if device == "cuda" else torch.bfloat16
    module, side = build(family, tiny)
    if family == "blip_generate":
        module = module.eval().to(device)
        with Lock():
            for name, dtype in {"fp16": half}.items():
                module.to(dtype)
                for batch in buckets[-1:]:
                    pixels = torch.randn(batch, 3, side, side, device=device, dtype=dtype)
                    for beams, more in ((1, {}), (3, {}), (1, {"cache_implementation": "static", "disable_compile": True})):
                        length = {"max_new_tokens": 20, "min_new_tokens": 20, "use_cache": True, "num_beams": beams, **more}
                        attempt(rows, f"{name} b{batch} generate beams {beams} {'static' if more else ''}".strip(),
                                lambda: pace(lambda: module.generate(pixel_values=pixels, **length), batch, device, 0.01))
                        out.write_text(json.dumps(rows))
        return
    module = module.to(device)
    conv = family in ("lite0", "nanodet", "yolo", "rtdetr")
    with Lock():
        def eager(name, dtype, batches=tuple(buckets), graph=True):
            for batch in batches:
                inputs = inputs_of(family, module, side, batch, device, dtype)
                attempt(rows, f"{name} b{batch} eager", lambda: pace(lambda: module(*inputs), batch, device))
                if device == "cuda" and graph:
                    attempt(rows, f"{name} b{batch} eager graph", lambda: pace(graphed(module, inputs)[0], batch, device))

        small = inputs_of(family, module, side, buckets[1], device, torch.float32)
        exact = [one.double() for one in module(*small)]

        def differences():
            inputs = [x.to(next(module.parameters()).dtype) if x.is_floating_point() else x for x in small]
            return max(((a.double() - b).norm() / b.norm()).item() for a, b in zip(module(*inputs), exact))

        if family in FAMILIES[:7]:
            eager("fp32", torch.float32, buckets[-1:], graph=False)
            for name, dtype in dtypes.items():
                module.to(dtype)
                attempt(rows, f"{name} relative difference", lambda: f"{differences():.2e}")
                eager(name, dtype, buckets if dtype == half else buckets[-1:])
                module.float()
            if conv:
                module.to(half).to(memory_format=torch.channels_last)
                eager("fp16 channels_last", half, buckets[-1:])
    out.write_text(json.dumps(rows))
    module.to(half)
    if conv and device == "cuda":
        module.to(memory_format=torch.channels_last)
    example = inputs_of(family, module, side, 4, device, half)

    def compile(path, static=None, options=None):
        inputs = inputs_of(family, module, side, static or 4, device, half)
        at = time.time()
        dim = torch.export.Dim("batch", min=1, max=64)
        if static:
            shapes = None
        elif family == "blip_say":
            names = ({0: dim}, {0: dim}, None, {0: dim}, *([{0: dim}] * (len(inputs) - 4)))
            shapes = (*names[:4], tuple(names[4:]))
        else:
            shapes = ({0: dim},)
        program = torch.export.export(module, inputs, dynamic_shapes=shapes)
        exported = time.time() - at
        torch._inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=options or {})
        return {"export s": round(exported, 1), "compile s": round(time.time() - at - exported, 1),
                "MB": round(path.stat().st_size / 1e6, 1)}

    def measure(name, path, batches):
        import pickle
        import zipfile

        names = zipfile.ZipFile(path).namelist()
        suspicious = [one for one in names if one.endswith((".pkl", ".pt", ".pickle"))]
        note(rows, f"{name} files", f"{sorted({one.rpartition('.')[2] for one in names})}, pickles: {suspicious[:3]}")
        calls = []
        originals = pickle.loads, pickle.load, torch.load, pickle.Unpickler
        def spy(what, inner):
            def call(*a, **k):
                calls.append(what)
                return inner(*a, **k)
            return call
        pickle.loads, pickle.load, torch.load = spy("loads", pickle.loads), spy("load", pickle.load), spy("torch", torch.load)
        at = time.time()
        try:
            loaded = torch._inductor.aoti_load_package(str(path), run_single_threaded=True)
        finally:
            pickle.loads, pickle.load, torch.load, _ = originals
        note(rows, f"{name} load s, unpickled", f"{time.time() - at:.2f} {calls}")
        for batch in batches:
            inputs = inputs_of(family, module, side, batch, device, half)
            expected = module(*inputs)
            got = loaded(*inputs)
            got = got if isinstance(got, (tuple, list)) else (got,)
            difference = max(((a.float() - b.float()).norm() / b.float().norm()).item() for a, b in zip(got, expected))
            note(rows, f"{name} b{batch} difference from eager half", f"{difference:.2e}")
            attempt(rows, f"{name} b{batch}", lambda: pace(lambda: loaded(*inputs), batch, device))
            if device == "cuda":
                at = time.time()
                pair = attempt(rows, f"{name} b{batch} graph", lambda: {"pace": pace((pair := graphed(loaded, inputs))[0], batch, device),
                               "difference": f"{max(((a.float() - b.float()).norm() / b.float().norm()).item() for a, b in zip(pair[1], expected)):.2e}"})
            out.write_text(json.dumps(rows))
        return "done"

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pt2"
        static = buckets[-1] if family in ("vit_static", "vit_tune") else None
        options = {"max_autotune": True, "max_autotune_gemm_backends": "ATEN,TRITON"} if family == "vit_tune" else None
        name = {"vit_static": "aoti static", "vit_tune": "aoti static tuned"}.get(family, "aoti dynamic")
        compiled = attempt(rows, name, lambda: compile(path, static, options))
        if not compiled and not static:
            static = buckets[1]
            compiled = attempt(rows, name + " (static)", lambda: compile(path, static, options))
        if compiled:
            with Lock():
                attempt(rows, name, lambda: measure(name, path, [static] if static else buckets))
        out.write_text(json.dumps(rows))
        if family == "vit":
            # Whether graphs of the eager network and memory: a second dtype compiled.
            module.to(torch.bfloat16)
            half = torch.bfloat16
            if attempt(rows, "aoti dynamic bf16", lambda: compile(path)):
                with Lock():
                    attempt(rows, "aoti dynamic bf16", lambda: measure("aoti dynamic bf16", path, buckets))
    out.write_text(json.dumps(rows))


def machine(rows, device, tiny):
    import torch

    if device == "cuda":
        note(rows, "card", f"{torch.cuda.get_device_name()} {torch.version.cuda} torch {torch.__version__} cores {os.cpu_count()}")
        for name, dtype in {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}.items():
            side = 8192

            def rate():
                a, b = torch.randn(side, side, device=device, dtype=dtype), torch.randn(side, side, device=device, dtype=dtype)
                return round(pace(lambda: a @ b, 1, device, 0.3) * 2 * side**3 / 1e12, 1)

            attempt(rows, f"matmul {name} TFLOP/s", rate)

        def bus():
            host = torch.empty(32 * 224 * 224 * 3, dtype=torch.uint8).pin_memory()
            card = torch.empty_like(host, device=device)
            return round(pace(lambda: card.copy_(host, non_blocking=True), 1, device) * len(host) / 1e9, 1)

        attempt(rows, "pinned to card GB/s", bus)
        attempt(rows, "nvml", lambda: __import__("pynvml").nvmlInit() or str(__import__("pynvml").nvmlSystemGetDriverVersion()))
    import io

    import numpy as np
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 256, (47, 63, 3), np.uint8)
    photo = Image.fromarray(noise).resize((500, 375), Image.Resampling.BICUBIC)
    grain = np.asarray(photo).astype(np.int16) + np.random.default_rng(1).normal(0, 6, (375, 500, 3))
    buffer = io.BytesIO()
    Image.fromarray(grain.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    data = buffer.getvalue()
    note(rows, "JPEG bytes", len(data))
    count = 16 if tiny else 512

    def cpu(decode):
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(decode, [data] * 32))
            at = time.perf_counter()
            list(pool.map(decode, [data] * count))
            return round(count / (time.perf_counter() - at), 1)

    attempt(rows, "JPEG/s Pillow, all cores", lambda: cpu(lambda one: np.asarray(Image.open(io.BytesIO(one)).convert("RGB"))))
    attempt(rows, "JPEG/s Pillow, one core", lambda: pace(lambda: np.asarray(Image.open(io.BytesIO(data)).convert("RGB")), 1, "cpu"))

    def cards(batch):
        from torchvision.io import ImageReadMode, decode_jpeg

        encoded = [torch.frombuffer(bytearray(data), dtype=torch.uint8) for _ in range(batch)]
        got = decode_jpeg(encoded, mode=ImageReadMode.RGB, device=device)
        expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
        difference = np.abs(got[0].permute(1, 2, 0).cpu().numpy().astype(int) - expected)
        at = time.process_time(), time.perf_counter()
        rate = pace(lambda: decode_jpeg(encoded, mode=ImageReadMode.RGB, device=device), batch, device, 0.6)
        cpu_share = (time.process_time() - at[0]) / (time.perf_counter() - at[1])
        return {"rate": rate, "cores": round(cpu_share, 2), "mean and max difference": f"{difference.mean():.2f} {difference.max()}"}

    for batch in (1, 16, 64):
        attempt(rows, f"JPEG/s on {device} b{batch}", lambda: cards(batch))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--family")
    parser.add_argument("--json")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--only", nargs="*", default=FAMILIES)
    parser.add_argument("--seconds", type=float, default=150)
    asked = parser.parse_args()
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if asked.family:
        family_run(asked.family, Path(asked.json), device, asked.tiny)
        return
    out = Path(os.environ.get("OUT", "build/gpu_probe"))
    out.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "TORCHINDUCTOR_COMPILE_THREADS": "4", "HF_HUB_OFFLINE": "1", "YOLO_OFFLINE": "true",
                   "YOLO_AUTOINSTALL": "false", "TOKENIZERS_PARALLELISM": "false"}
    rows = {}
    children = {}
    with tempfile.TemporaryDirectory() as results:
        logs = {}
        # Those that compile longest first; the parent measures the machine meanwhile, in turns too.
        for family in asked.only:
            logs[family] = open(Path(results) / f"{family}.log", "w+")
            command = [sys.executable, __file__, "--family", family, "--json", f"{results}/{family}.json"]
            children[family] = subprocess.Popen(
                command + (["--tiny"] if asked.tiny else []), stdout=logs[family], stderr=subprocess.STDOUT,
                env={**environment, "TORCHINDUCTOR_CACHE_DIR": f"{results}/cache-{family}"},
            )
        with Lock():
            attempt(rows, "machine", lambda: machine(rows, device, asked.tiny) or "measured")
        for family, child in children.items():
            try:
                child.wait(max(1, asked.seconds - (time.time() - START)))
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
                note(rows, f"{family} cut", f"after {time.time() - START:.0f} s")
        everything = {"machine": rows}
        with (out / "probe.log").open("w") as log:
            for family in children:
                file = Path(results) / f"{family}.json"
                everything[family] = json.loads(file.read_text()) if file.is_file() else {}
                logs[family].seek(0)
                log.write(f"== {family}\n{logs[family].read()}\n")
        (out / "probe.json").write_text(json.dumps(everything, indent=1))
        for family, found in everything.items():
            print(f"== {family}")
            for name, value in found.items():
                print(f"  {name:<44} {value}")
    print(f"{time.time() - START:.0f} s")


if __name__ == "__main__":
    main()
