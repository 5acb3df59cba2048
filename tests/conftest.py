# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""Small real files for all tests: images in MVTec AD's layout, teacher weights, an installed wheel."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # read when timm is imported

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

REPO = Path(__file__).parents[1]
SHARED = REPO.parent / "shared"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"no real images and weights at {SHARED}")


def pytest_configure():
    torch.set_num_threads(2)


@pytest.fixture(scope="session")
def mvtec_root(tmp_path_factory) -> Path:
    """Eight good images of a striped texture, four good and four holed ones to test, in MVTec AD's layout."""
    root = tmp_path_factory.mktemp("mvtec")
    generator = np.random.default_rng(0)
    rows, columns = np.mgrid[:80, :96]

    def write(path: Path, holed: bool) -> None:
        phase, noise = generator.uniform(0, 6), generator.normal(0, 8, (80, 96))
        grey = 128 + 60 * np.sin(columns / 4 + phase) * np.cos(rows / 7) + noise
        hole = np.zeros((80, 96), bool)
        if holed:
            top, left = generator.integers(10, 50), generator.integers(10, 60)
            hole[top : top + 16, left : left + 16] = True
            mask = root / "stripes/ground_truth/hole" / f"{path.stem}_mask.png"
            mask.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(hole.astype(np.uint8) * 255).save(mask)
        grey[hole] = 20
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8)).convert("RGB").save(path)

    for index in range(8):
        write(root / f"stripes/train/good/{index:03}.png", holed=False)
    for index in range(4):
        write(root / f"stripes/test/good/{index:03}.png", holed=False)
        write(root / f"stripes/test/hole/{index:03}.png", holed=True)
    return root


@pytest.fixture(scope="session")
def teacher_state() -> dict[str, torch.Tensor]:
    """A whole ResNet-18's state dict in timm's and torchvision's naming; untrained, since only its fate matters."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return timm.create_model("resnet18", pretrained=False).state_dict()


@pytest.fixture(scope="session")
def teacher_file(tmp_path_factory, teacher_state) -> Path:
    path = tmp_path_factory.mktemp("teacher") / "resnet18.safetensors"
    save_file(teacher_state, path)
    return path


@pytest.fixture(scope="session")
def installed_wheel(tmp_path_factory) -> Path:
    """A folder into which the wheel was installed; first on the path, it stands before the editable install."""
    build, target = tmp_path_factory.mktemp("build"), tmp_path_factory.mktemp("installed")
    run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", build, REPO])
    (wheel,) = build.glob("*.whl")
    run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", target, wheel])
    return target


def run(
    command: list, cwd: Path | None = None, check: bool = True, timeout: float = 900, **env: object
) -> subprocess.CompletedProcess:
    """Run a command to its end and show what it printed where it fails."""
    result = subprocess.run(
        [str(part) for part in command],
        cwd=cwd or tempfile.gettempdir(),  # python -c would find the checkout's package in the checkout
        env={**os.environ, **{name: str(value) for name, value in env.items()}},
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )
    if check and result.returncode != 0:
        pytest.fail(f"{command}\nexit code {result.returncode}\n{result.stdout[-3000:]}\n{result.stderr[-6000:]}")
    return result


def anomalib(*arguments: object, **kwargs) -> subprocess.CompletedProcess:
    """Run the stock anomalib script; keyword arguments as in :func:`run`."""
    return run([Path(sys.executable).with_name("anomalib"), *arguments], **kwargs)


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory, mvtec_root) -> Path:
    """A small Dskd, trained for a few steps, with thresholds of the best F1."""
    from anomalib.data import MVTecAD  # noqa: PLC0415 - takes seconds, and not all tests need it
    from anomalib.engine import Engine  # noqa: PLC0415

    from anomalib_dskd import Dskd  # noqa: PLC0415

    engine = Engine(
        default_root_dir=tmp_path_factory.mktemp("small"), accelerator="cpu", enable_progress_bar=False, logger=False
    )
    model = Dskd(teacher_weights="random", layers=["layer1", "layer2"], image_size=(64, 96), training_steps=6)
    engine.fit(model, datamodule=MVTecAD(mvtec_root, "stripes", num_workers=0, train_batch_size=4))
    return Path(engine.best_model_path)


@pytest.fixture(scope="session")
def small_bundle(tmp_path_factory, small_checkpoint) -> Path:
    """Its bundle, in f32, for images of any size."""
    from anomalib_dskd.export import export  # noqa: PLC0415

    bundle = tmp_path_factory.mktemp("bundle") / "stripes"
    export(small_checkpoint, bundle)
    return bundle
