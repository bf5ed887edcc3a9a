"""What is compared in `mllm.bench`: a run of this project, and transformers' LLaVA with peft under their Trainer.

Both train LoRA on q and v of the language model and an MLP behind a frozen CLIP tower, in float32 with AdamW, from the
same weights and on the same conversations. The Trainer is given sequences that are tokenised and images that are
decoded and normalised beforehand, so that its collator only pads; a run of this project tokenises every batch.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from safetensors.torch import load_file
from torch import Tensor

from mllm import language as languages
from mllm import run
from mllm.bench_setting import ALPHA, COMPARED, LR, R, Setting
from mllm.collate import collate
from mllm.data_schema import DataConfig, FilesConfig
from mllm.schema import LanguageConfig, MLLMConfig, OptimConfig, TrainConfig, VisionConfig
from mllm.sequence import IGNORED
from vpeft.run_folder import RunFolder
from vpeft.tasks.learning import normalise
from vpeft.tasks.stepping import StepCheckpoint
from vpeft.tasks.timing import Timing, Waiting

PEFT = "transformers + peft"
# What is measured; of this project whether rows are packed and whether features are kept.
CASES: dict[str, tuple[bool, bool] | None] = {
    PEFT: None,
    "neither": (False, False),
    "packed": (True, False),
    "features kept": (False, True),
    "both": (True, True),
}


class Ours:
    """A run of `kind: mllm` without its folder.

    Args:
        folder: Of `prepare`.
        setting: What is measured.
        packed: Several conversations share a row.
        kept: Features of the tower are kept.
    """

    def __init__(self, folder: Path, setting: Setting, packed: bool, kept: bool) -> None:
        self.config: Any = run.complete(
            MLLMConfig(
                vision=VisionConfig(f"hf:{folder / 'vision'}", layer=-2),
                connector={"name": "mlp"},
                language=LanguageConfig(setting.language),
                language_method={"name": "lora", "r": R, "alpha": ALPHA, "targets": ["q", "v"]},
                cache_features=kept,
                data=DataConfig(
                    task="talks",
                    root=folder,
                    files=FilesConfig(train=["talks.json"]),
                    system="",
                    max_length=setting.capacity,
                    pack=packed,
                    batch_size=setting.rows if packed else setting.batch,
                    aspect="squash",
                ),
                optim=OptimConfig(lr=LR),
                train=TrainConfig(accelerator="cpu"),
            )
        )
        self.job: Any = run.assemble(self.config)
        self.model = self.job.model
        self.model.connector.load_state_dict(load_file(folder / "connector.safetensors"))
        self.parameters = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        self._folder = RunFolder(folder / "run", "")
        batches = list(self.job.data.train_dataloader())
        self.steps, self.positions = len(batches), sum(batch["input_ids"].numel() for batch in batches)
        self.tokens = int(self.job.data.lengths("train").sum())

    @torch.no_grad()
    def first_loss(self) -> float:
        """Mean over the words of the first samples."""
        return float(self.model.eval().loss(_first(self.job)))

    def __call__(self) -> float:
        clock, data = _Clock(), self.job.data
        trainer = run.build_trainer(self.config, self._folder, Timing(Waiting()), self.job.task.measure)
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        callbacks[:] = [clock, *(one for one in callbacks if not isinstance(one, StepCheckpoint))]
        data.trainer = trainer
        trainer.fit_loop.epoch_loop.max_steps = self.steps
        trainer.fit(self.job.task, datamodule=data)
        return clock.seconds


class _Clock(L.Callback):
    seconds = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.seconds = -time.perf_counter()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.seconds += time.perf_counter()


class Theirs:
    """transformers' LLaVA with the same weights, LoRA by peft, and their Trainer.

    Args:
        folder: Of `prepare`.
        setting: What is measured.
    """

    def __init__(self, folder: Path, setting: Setting) -> None:
        from peft import LoraConfig, get_peft_model
        from transformers import CLIPVisionModel, LlavaConfig, LlavaForConditionalGeneration

        own = languages.load(setting.language)
        language = own.model
        tower: Any = CLIPVisionModel.from_pretrained(folder / "vision")
        self.image = own.shape.vocab - 1
        config = LlavaConfig(
            vision_config=tower.config,
            text_config=language.config,
            image_token_index=self.image,
            vision_feature_layer=-2,
            tie_word_embeddings=language.config.tie_word_embeddings,
        )
        model: Any = LlavaForConditionalGeneration(config)
        model.model.vision_tower.load_state_dict(tower.state_dict())
        model.model.language_model.load_state_dict(language.model.state_dict())
        model.lm_head.load_state_dict(language.lm_head.state_dict())
        saved = load_file(folder / "connector.safetensors")
        for ours, theirs in (("layers.0", "linear_1"), ("layers.2", "linear_2")):
            part = getattr(model.model.multi_modal_projector, theirs)
            part.load_state_dict({name: saved[f"{ours}.{name}"] for name in ("weight", "bias")})
        lora = LoraConfig(
            r=R,
            lora_alpha=int(ALPHA),
            target_modules=r".*language_model.*\.[qv]_proj",
            modules_to_save=["multi_modal_projector"],
        )
        self.model: Any = get_peft_model(model, lora)
        self.parameters = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        job = Ours(folder, setting, packed=False, kept=False).job
        samples = job.data.samples("train")
        self.samples = [self._sample(job, i) for i in range(len(samples))]
        self.steps = -(-len(self.samples) // setting.batch)
        self.tokens = sum(len(one["input_ids"]) for one in self.samples)
        self.positions, self.seconds = 0, 0.0
        self._trainer = self._built(folder, setting)

    def _sample(self, job: Any, index: int) -> dict[str, Tensor]:
        one = job.data.writing.encode(job.data.samples("train")[index])
        pixels = job.data.pictures.take(torch.tensor([job.data.pictures.position(one.images[0])]))
        return {
            "input_ids": one.ids.masked_fill(one.image_mask, self.image),
            "labels": one.labels,
            "pixel_values": normalise(pixels, job.model.mean, job.model.std)[0],
        }

    def collated(self, samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """A batch, padded on the right."""
        pad = torch.nn.utils.rnn.pad_sequence
        ids = pad([one["input_ids"] for one in samples], batch_first=True)
        self.positions += ids.numel()
        return {
            "input_ids": ids,
            "attention_mask": pad([torch.ones_like(one["input_ids"]) for one in samples], batch_first=True),
            "labels": pad([one["labels"] for one in samples], batch_first=True, padding_value=IGNORED),
            "pixel_values": torch.stack([one["pixel_values"] for one in samples]),
        }

    @torch.no_grad()
    def first_loss(self) -> float:
        """Mean over the words of the first samples."""
        return float(self.model.eval()(**self.collated(self.samples[:COMPARED])).loss)

    def __call__(self) -> float:
        self.positions = 0
        self._trainer.train()
        return self.seconds

    def _built(self, folder: Path, setting: Setting) -> Any:
        from transformers import Trainer, TrainerCallback, TrainingArguments

        timed = self

        class Clock(TrainerCallback):
            def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
                timed.seconds = -time.perf_counter()

            def on_train_end(self, *args: Any, **kwargs: Any) -> None:
                timed.seconds += time.perf_counter()

        arguments = TrainingArguments(
            output_dir=str(folder / "trainer"),
            per_device_train_batch_size=setting.batch,
            num_train_epochs=1,
            learning_rate=LR,
            lr_scheduler_type="cosine",
            max_grad_norm=1.0,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            use_cpu=True,
            dataloader_pin_memory=False,
            remove_unused_columns=False,
            disable_tqdm=True,
        )
        data: Any = self.samples
        return Trainer(self.model, arguments, self.collated, data, callbacks=[Clock()])


def _first(job: Any) -> dict[str, Tensor]:
    data = job.data
    rows = [[data.writing.encode(data.samples("train")[i])] for i in range(COMPARED)]
    where = torch.tensor([data.pictures.position(image) for (one,) in rows for image in one.images])
    return collate(rows, data.pictures.take(where), data.writing.tokens_per_image, "right")


def made(case: str, folder: Path, setting: Setting) -> Ours | Theirs:
    """What one case trains."""
    options = CASES[case]
    return Theirs(folder, setting) if options is None else Ours(folder, setting, *options)
