"""Step time, arithmetic and peak memory of methods on one backbone, as ratios within one run.

Machines drift, so models take turns round by round, medians are compared, and memory is the growth
of a fresh process that runs one model alone.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vpeft.backbones import Backbone, create
from vpeft.heads import LinearHead
from vpeft.methods import build, feature_dim
from vpeft.tuned import Tuned

CLASSES = 100
_PAIRS = 20  # of merged and plain inference: a single pair is off by more than what is to be seen
ALL_LINEARS = ("qkv", "proj", "fc1", "fc2")

# What is compared: method entries, and Hugging Face peft's LoRA on the same timm model.
CASES: dict[str, Mapping[str, Any]] = {
    "full": {"name": "full"},
    "linear": {"name": "linear"},
    "bitfit": {"name": "bitfit"},
    "layernorm": {"name": "layernorm"},
    "partial-1": {"name": "partial"},
    "vpt-deep-10": {"name": "vpt", "prompts": 10, "dropout": 0.0},
    "vpt-deep-50": {"name": "vpt", "prompts": 50, "dropout": 0.0},
    "adaptformer-64": {"name": "adaptformer", "dropout": 0.0},
    "lora-qkv": {"name": "lora", "targets": ["qkv"], "shared_a": True},
    "lora-q-v": {"name": "lora"},
    "lora-all": {"name": "lora", "targets": list(ALL_LINEARS), "shared_a": True},
    "lora-fa": {"name": "lora_fa"},
    "dora": {"name": "dora"},
    "adalora": {"name": "adalora"},
    "krona": {"name": "krona"},
    "ia3": {"name": "ia3"},
    "ssf": {"name": "ssf"},
    "difffit": {"name": "difffit"},
    "fishmask": {"name": "fishmask"},
    "fact-tt-16": {"name": "fact_tt", "dropout": 0.0},
    "fact-tk-32": {"name": "fact_tk", "dropout": 0.0},
    "houlsby-8": {"name": "houlsby"},
    "pfeiffer-8": {"name": "pfeiffer", "dropout": 0.0},
    "parallel-8": {"name": "parallel", "bottleneck": 8, "dropout": 0.0},
    "adapter-plus-8": {"name": "adapter_plus"},
    "repadapter-8": {"name": "repadapter", "dropout": 0.0},
    "compacter-24": {"name": "compacter"},
    "convpass-8": {"name": "convpass", "dropout": 0.0},
    "convpass-attn-8": {"name": "convpass", "attention_only": True, "dropout": 0.0},
    "bi-adapter-32": {"name": "bi_adapter"},
    "noah": {"name": "noah", "dropout": 0.0},
    "lion": {"name": "lion"},
    "vp-30": {"name": "vp"},
    "evp-30": {"name": "evp"},
    "dam-vp-10": {"name": "dam_vp", "prompts": 10},
    "vqt-1": {"name": "vqt", "dropout": 0.0},
    "dtl": {"name": "dtl"},
    "dtl-plus": {"name": "dtl", "kernel": 3},
    "lst": {"name": "lst"},
    "prefix-10": {"name": "prefix"},
    "peft-lora-qkv": {"peft": r"blocks\.\d+\.attn\.qkv"},
    "peft-lora-all": {"peft": r"blocks\.\d+\.(attn\.(qkv|proj)|mlp\.(fc1|fc2))"},
}


@dataclass(frozen=True)
class Setting:
    """What is measured.

    Args:
        backbone: timm name; weights are random.
        batch: Images a step.
        image_size: Side in pixels; None is the backbone's own.
        rounds: Turns of every model after one that is not counted.
        threads: CPU threads of torch.
        device: cpu or cuda.
        precision: fp32, or bf16 for autocast.
    """

    backbone: str = "vit_base_patch16_224"
    batch: int = 16
    image_size: int | None = None
    rounds: int = 5
    threads: int = 2
    device: str = "cpu"
    precision: str = "fp32"


@dataclass(frozen=True)
class Measured:
    """Of one case: trained parameters, seconds of every round, bytes of peak memory, operations of one step.

    Operations are those of matrix products, convolutions and attention, forward and backward, as torch counts
    them; elementwise work is not in them.
    """

    parameters: int
    seconds: list[float]
    memory: int
    flops: int

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def bench(setting: Setting, cases: list[str], say: Callable[[str], None] = print) -> dict[str, Measured]:
    """Measure every case; `full` among them is what the others are compared with."""
    torch.set_num_threads(setting.threads)
    memory, flops = {}, {}
    for case in cases:
        memory[case], flops[case] = footprint(setting, case)
        say(f"{case}: peak memory {memory[case] / 2**20:.0f} MiB, {flops[case] / 1e9:.0f} GFLOP a step")
    steps = {case: Step(setting, case) for case in cases}
    seconds: dict[str, list[float]] = {case: [] for case in cases}
    for turn in range(setting.rounds + 1):
        for case, step in steps.items():
            elapsed = step()
            if turn:
                seconds[case].append(elapsed)
        say(f"round {turn} of {setting.rounds} done")
    return {case: Measured(steps[case].parameters, seconds[case], memory[case], flops[case]) for case in cases}


class Step:
    """One training step of one case: forward, cross-entropy, backward, AdamW."""

    def __init__(self, setting: Setting, case: str) -> None:
        torch.manual_seed(0)
        self.device = torch.device(setting.device)
        body = create(setting.backbone, "none", setting.image_size)
        self.image_size = body.image_size
        self.model = model_of(CASES[case], body).to(self.device).train()
        head = next(module for module in self.model.modules() if isinstance(module, LinearHead))
        learned = [p for p in self.model.parameters() if p.requires_grad]
        self.parameters = sum(p.numel() for p in learned) - sum(p.numel() for p in head.parameters())
        self.optimiser = torch.optim.AdamW(learned, lr=1e-4)
        self.images = torch.randn(setting.batch, 3, *self.image_size, device=self.device)
        self.labels = torch.randint(CLASSES, (setting.batch,), device=self.device)
        self.bf16 = setting.precision == "bf16"

    def __call__(self) -> float:
        """Run it and return its wall time in seconds."""
        self._wait()
        start = time.perf_counter()
        self.optimiser.zero_grad()
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            loss = nn.functional.cross_entropy(self.model(self.images), self.labels)
        loss.backward()
        self.optimiser.step()
        self._wait()
        return time.perf_counter() - start

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def model_of(case: Mapping[str, Any], body: Backbone) -> nn.Module:
    if "peft" not in case:
        methods = build(case, body)
        return Tuned(body, methods, LinearHead(feature_dim(body, methods), CLASSES))
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=8, lora_alpha=8, lora_dropout=0.0, target_modules=case["peft"])
    adapted: Any = get_peft_model(body.model, config)  # type: ignore[arg-type]
    return nn.Sequential(adapted, LinearHead(body.dim, CLASSES))


def footprint(setting: Setting, case: str) -> tuple[int, int]:
    """Bytes that a fresh process gains from before the model is built to the peak of its second step; operations."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_footprint, (setting, case))


def _footprint(setting: Setting, case: str) -> tuple[int, int]:
    torch.set_num_threads(setting.threads)
    if setting.device == "cuda":
        step = Step(setting, case)
        torch.cuda.reset_peak_memory_stats()
        for _ in range(2):
            step()
        memory = torch.cuda.max_memory_allocated()
    else:
        model_of(CASES[case], create("test_vit", "none"))  # what importing costs is not the method's
        gc.collect()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        step = Step(setting, case)
        for _ in range(2):
            step()
        memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    with FlopCounterMode(display=False) as counter:
        step()
    return memory, counter.get_total_flops()


def merged_inference(setting: Setting) -> tuple[float, float]:
    """Largest output difference of merged and unmerged LoRA, and the merged model's time over the plain one's."""
    torch.set_num_threads(setting.threads)
    torch.manual_seed(0)
    body = create(setting.backbone, "none", setting.image_size)
    tuned = Tuned(body, build({"name": "lora", "targets": list(ALL_LINEARS)}, body), nn.Identity()).eval()
    with torch.no_grad():
        for _, parameter in tuned.trainable():
            parameter.normal_(std=0.02)
    options = {"num_classes": 0, "img_size": body.image_size}
    merged, plain = (timm.create_model(setting.backbone, **options).eval() for _ in range(2))
    merged.load_state_dict(tuned.merge(), strict=True)
    images = torch.randn(setting.batch, 3, *body.image_size)
    with torch.inference_mode():
        difference = (merged(images) - tuned(images)).abs().max().item()
        seconds: dict[str, list[float]] = {"merged": [], "plain": []}
        for turn in range(_PAIRS + 1):  # who goes first alternates; the first pair warms up
            pair = [("merged", merged), ("plain", plain)]
            for name, model in pair if turn % 2 else reversed(pair):
                seconds[name].append(_timed(model, images))
    ratios = [a / b for a, b in zip(seconds["merged"][1:], seconds["plain"][1:], strict=True)]
    return difference, statistics.median(ratios)


def _timed(model: nn.Module, images: Tensor) -> float:
    start = time.perf_counter()
    model(images)
    return time.perf_counter() - start


def table(measured: Mapping[str, Measured]) -> str:
    """Markdown: every case against full fine-tuning, and peft's LoRA against ours."""
    full = measured["full"]
    lines = [
        "| case | trained parameters | step, s | time / full | operations / full | peak memory, MiB | memory / full |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for case, m in measured.items():
        time_ratio = statistics.median(a / b for a, b in zip(m.seconds, full.seconds, strict=True))
        lines.append(
            f"| {case} | {m.parameters:,} | {m.median:.2f} | {time_ratio:.2f} "
            f"| {m.flops / full.flops:.2f} | {m.memory / 2**20:,.0f} "
            f"| {m.memory / full.memory:.2f} |"
        )
    for ours, theirs in (("lora-qkv", "peft-lora-qkv"), ("lora-all", "peft-lora-all")):
        if ours in measured and theirs in measured:
            a, b = measured[ours], measured[theirs]
            ratio = statistics.median(x / y for x, y in zip(a.seconds, b.seconds, strict=True))
            lines += ["", f"{ours} over {theirs}: time {ratio:.2f}, memory {a.memory / b.memory:.2f}"]
    return "\n".join(lines)


def to_json(setting: Setting, measured: Mapping[str, Measured]) -> str:
    versions = {"torch": torch.__version__, "timm": timm.__version__}
    cases = {case: asdict(m) for case, m in measured.items()}
    return json.dumps({"setting": asdict(setting), "versions": versions, "cases": cases}, indent=1)
