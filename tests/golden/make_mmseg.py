"""Writes mmseg_*.safetensors with mmsegmentation's own modules: `python -m tests.golden.make_mmseg`, extra dense.

Everything is random but the code: weights, BatchNorm statistics, maps, images and masks. Dropout is off.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vpeft.dense.mmseg import need, register
from vpeft.heads.conv import resize

CHANNELS, CLASSES, IGNORED = [4, 6, 8, 10], 5, 255
PACKAGES = ("mmsegmentation", "mmcv-lite", "mmengine", "torch")


def randomise(module: nn.Module) -> None:
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape) + 0.5 if name.endswith("running_var") else torch.randn(tensor.shape))


def heads(head: Any, name: str, maps: list[Tensor], scaled: bool = False) -> dict[str, Tensor]:
    """State, eval output, gradients of sum(output * cotangent), and the output with the batch's own statistics.

    With `scaled`, kernels are divided by the root of what they sum, so that a long chain stays of the size of its maps.
    """
    randomise(head)
    if scaled:
        with torch.no_grad():
            for weight in head.parameters():
                weight.div_(weight[0].numel() ** 0.5 if weight.ndim > 1 else 1)
    found = {f"{name}/state/{key}": value.clone() for key, value in head.state_dict().items()}
    maps = [x.clone().requires_grad_() for x in maps]
    output = head.eval()(maps)
    cotangent = torch.randn_like(output)
    (output * cotangent).sum().backward()
    found |= {f"{name}/output": output.detach(), f"{name}/cotangent": cotangent}
    found |= {f"{name}/grad/{key}": p.grad for key, p in head.named_parameters()}
    found |= {f"{name}/grad/map{i}": x.grad for i, x in enumerate(maps) if x.grad is not None}
    return found | {f"{name}/train_output": head.train()(maps).detach()}


def decode_heads(models: Any) -> dict[str, Tensor]:
    maps = [torch.randn(2, channels, 12 >> i, 16 >> i) for i, channels in enumerate(CHANNELS)]
    common = {"num_classes": CLASSES, "norm_cfg": {"type": "BN"}, "align_corners": False, "dropout_ratio": 0}
    uper = {"type": "UPerHead", "in_channels": CHANNELS, "in_index": [0, 1, 2, 3], "channels": 8, **common}
    fcn = {"type": "FCNHead", "in_channels": CHANNELS[2], "in_index": 2, "channels": 8, "concat_input": False, **common}
    found = {f"map{i}": x for i, x in enumerate(maps)}
    found |= heads(models.build({**uper, "pool_scales": (1, 2, 3, 6)}), "uper", maps)
    return found | heads(models.build({**fcn, "num_convs": 2}), "fcn", maps)


def setr_heads(models: Any) -> dict[str, Tensor]:
    """SETR-PUP's head on the last map, and one of its auxiliary heads on the first."""
    maps = [torch.randn(1, channels, 2, 3) for channels in CHANNELS]
    common = {"type": "SETRUPHead", "num_classes": CLASSES, "channels": 8, "norm_cfg": {"type": "BN"}}
    common |= {"dropout_ratio": 0, "align_corners": False, "kernel_size": 3}
    found = {f"map{i}": x for i, x in enumerate(maps)}
    main = {"in_channels": CHANNELS[3], "in_index": 3, "num_convs": 4, "up_scale": 2}
    auxiliary = {"in_channels": CHANNELS[0], "in_index": 0, "num_convs": 2, "up_scale": 4}
    found |= heads(models.build({**common, **main}), "setr", maps, scaled=True)
    return found | heads(models.build({**common, **auxiliary}), "setr_auxiliary", maps, scaled=True)


def losses(models: Any) -> dict[str, Tensor]:
    """A head's loss_by_feat: logits are resized to the mask, ignored pixels are 255."""
    mask = torch.randint(0, CLASSES, (2, 24, 28))
    mask[torch.rand(mask.shape) < 0.3] = IGNORED
    found = {"loss/logits": torch.randn(2, CLASSES, 6, 7), "loss/mask": mask}
    for name, option in {"all": False, "valid": True}.items():
        loss = {"type": "CrossEntropyLoss", "avg_non_ignore": option}
        head = models.build(
            {"type": "FCNHead", "in_channels": 4, "channels": 4, "num_classes": CLASSES, "loss_decode": loss}
        )
        for which, target in {"": mask, "_ignored": torch.full_like(mask, IGNORED)}.items():
            logits = found["loss/logits"].clone().requires_grad_()
            value = head.loss_by_feat(logits, [sample(gt=one) for one in target])["loss_ce"]
            value.backward()
            found |= {f"loss/{name}{which}": value.detach(), f"loss/{name}{which}_grad": logits.grad}
    return found


def sample(gt: Tensor | None = None, **meta: Any) -> Any:
    made = need("mmseg.structures").SegDataSample(metainfo=meta)
    if gt is not None:
        made.gt_sem_seg = need("mmengine.structures").PixelData(data=gt[None])
    return made


def predictions(models: Any) -> dict[str, Tensor]:
    """Whole and slide logits of an EncoderDecoder, what post-processing makes of them, and test-time augmentation."""
    models.register_module(name="Patches", module=Patches)
    model = models.build(
        {
            "type": "EncoderDecoder",
            "backbone": {"type": "Patches"},
            "decode_head": {
                "type": "FCNHead",
                "in_channels": 6,
                "in_index": 0,
                "channels": 4,
                "num_convs": 1,
                "concat_input": False,
                "num_classes": CLASSES,
                "norm_cfg": {"type": "BN"},
            },
            "test_cfg": need("mmengine.config").ConfigDict(mode="slide", crop_size=(32, 32), stride=(20, 20)),
        }
    ).eval()
    randomise(model)
    found = {f"model/{key}": value.clone() for key, value in model.state_dict().items()}
    image = torch.randn(1, 3, 40, 60)

    def run(mode: str, images: Tensor, **meta: Any) -> Any:
        model.test_cfg.mode = mode
        side = tuple(images.shape[-2:])
        return model.predict(images, [sample(img_shape=side, pad_shape=side, **meta)])[0]

    with torch.no_grad():
        for mode in ("whole", "slide"):
            found[f"predict/{mode}"] = run(mode, image, ori_shape=(40, 60)).seg_logits.data
        padded = torch.nn.functional.pad(image, (0, 4, 0, 24))
        unpad = {"img_padding_size": [0, 4, 0, 24], "ori_shape": (40, 60)}
        found["predict/padded"] = run("whole", padded, **unpad).seg_logits.data
        original = (50, 77)
        shown = []
        for scale in (0.5, 1.0, 1.5):
            scaled = resize(image, [int(side * scale + 0.5) for side in image.shape[-2:]])
            shown.append(run("whole", scaled, ori_shape=original, flip=False, img_path=""))
            flip = {"flip": True, "flip_direction": "horizontal", "img_path": ""}
            shown.append(run("whole", scaled.flip(-1), ori_shape=original, **flip))
        wrapper = need("mmseg.models").SegTTAModel(model)
        found["predict/augmented"] = torch.stack([one.seg_logits.data.softmax(0) for one in shown]).mean(0)
        merged = wrapper.merge_preds([shown])[0].pred_sem_seg.data
        assert torch.equal(merged[0], found["predict/augmented"].argmax(0))
    return found | {"predict/image": image}


class Patches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, 6, 4, stride=4)

    def forward(self, images: Tensor) -> tuple[Tensor]:
        return (self.proj(images).relu(),)


def measures() -> dict[str, Tensor]:
    """IoUMetric; class 4 is predicted and nowhere labelled, class 5 neither, of 6."""
    metric = need("mmseg.evaluation").IoUMetric(ignore_index=IGNORED)
    mask, prediction = torch.randint(0, 4, (3, 9, 11)), torch.randint(0, 5, (3, 9, 11))
    mask[torch.rand(mask.shape) < 0.2] = IGNORED
    parts = [metric.intersect_and_union(p, m, 6, IGNORED) for p, m in zip(prediction, mask, strict=True)]
    totals = [sum(part) for part in zip(*parts, strict=True)]
    result = metric.total_area_to_metrics(*totals)
    found = {f"iou/{name}": torch.as_tensor(value) for name, value in result.items()}
    means = {f"iou/m{name}": found[f"iou/{name}"].nanmean() for name in ("IoU", "Acc")}
    return found | means | {"iou/mask": mask, "iou/prediction": prediction}


def main() -> None:
    register()
    torch.set_num_threads(1)
    models = need("mmseg.registry").MODELS
    metadata = {
        "repository": "open-mmlab/mmsegmentation",
        "commit": "v1.2.2",
        "licence": "Apache-2.0",
        "versions": " ".join(f"{name}=={version(name)}" for name in PACKAGES),
    }
    files = {
        "mmseg_heads": lambda: decode_heads(models),
        "mmseg_setr": lambda: setr_heads(models),
        "mmseg_losses": lambda: losses(models),
        "mmseg_inference": lambda: predictions(models),
        "mmseg_iou": measures,
    }
    for name, make in files.items():
        torch.manual_seed(0)
        tensors = {key: value.detach().contiguous() for key, value in make().items()}
        save_file(tensors, Path(__file__).parent / f"{name}.safetensors", metadata)


if __name__ == "__main__":
    main()
