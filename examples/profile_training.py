# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""Training images a second, peak memory, and where the time of a step goes.

python examples/profile_training.py --root datasets/MVTecAD --category toothbrush --teacher_weights random
"""

import resource
import statistics
import time
from collections import Counter

import torch
from anomalib.data import MVTec
from anomalib.engine import Engine
from anomalib.models import Dskd
from jsonargparse import auto_cli
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.profiler import ProfilerActivity, profile

WARM_UP = 3
FAMILIES = {
    "convolution": ("conv",),
    "batch norm": ("batch_norm",),
    "activation, pooling, residual sum, upsampling": ("relu", "threshold", "clamp_min", "max_pool", "upsample", "add_"),
    "optimizer": ("adam", "optimizer", "lerp", "addc", "sqrt"),
}


class StepTimes(Callback):
    """Time each step and profile those after the warm-up."""

    def __init__(self) -> None:
        self.profiler = profile(activities=[ProfilerActivity.CPU])
        self.waits: list[float] = []
        self.steps: list[float] = []
        self.before = self.started = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        """Start the step's clock; since the last step ended, data were waited for."""
        self.started = time.perf_counter()
        if trainer.global_step == WARM_UP:
            self.profiler.start()
        if trainer.global_step > WARM_UP:
            self.waits.append(self.started - self.before)

    def on_train_batch_end(self, trainer: Trainer, *args: object) -> None:
        """Stop the step's clock."""
        self.before = time.perf_counter()
        if trainer.global_step > WARM_UP:
            self.steps.append(self.before - self.started)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the profiler before validation."""
        self.profiler.stop()


def main(
    root: str,
    category: str,
    teacher_weights: str | None = None,
    precision: str = "32-true",
    batch_size: int = 16,
    steps: int = 10,
) -> None:
    """Train a few steps and print what they cost.

    Args:
        root: Folder in MVTec AD's layout.
        category: Name of the category.
        teacher_weights: As in ``Dskd``.
        precision: Lightning's precision, such as ``32-true`` or ``bf16-mixed``.
        batch_size: Images in a step; the category must have as many.
        steps: Steps that are measured, after three to warm up.
    """
    times = StepTimes()
    data = MVTec(root, category, train_batch_size=batch_size, num_workers=0)
    data.setup()
    data.train_data.samples = data.train_data.samples.iloc[:batch_size]  # one full batch an epoch
    model = Dskd(teacher_weights=teacher_weights, training_steps=WARM_UP + steps)
    Engine(
        callbacks=[times], accelerator="cpu", precision=precision, limit_val_batches=0, enable_progress_bar=False
    ).fit(model, train_dataloaders=data.train_dataloader())
    step, wait = statistics.median(times.steps), statistics.median(times.waits)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{precision}, batch {batch_size}, {torch.get_num_threads()} threads")
    print(f"{batch_size / (step + wait):.1f} images/s, peak memory {memory:.1f} GiB")
    print(f"step {step:.3f} s, waiting for data {wait:.3f} s, medians of {len(times.steps)}")

    shares: Counter[str] = Counter()
    for event in times.profiler.key_averages():
        name = event.key.lower()
        family = next(
            (f for f, parts in FAMILIES.items() if any(part in name for part in parts)), "other: " + event.key
        )
        shares[family] += event.self_cpu_time_total
    total = sum(shares.values())
    for family, share in shares.most_common(12):
        print(f"{share / total:6.1%}  {family}")


if __name__ == "__main__":
    auto_cli(main, as_positional=False)

# Prints:
# bf16-mixed, batch 16, 2 threads
# 10.3 images/s, peak memory 2.7 GiB
# step 1.503 s, waiting for data 0.052 s, medians of 10
