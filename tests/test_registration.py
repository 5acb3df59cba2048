# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""The installed wheel makes Dskd and MVTec known to processes that run nothing but stock anomalib."""

import json
import shutil
import statistics
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from anomalib_dskd.registration import DOORS

from .conftest import anomalib, run

IMPORTS_FIRST = [
    "anomalib",
    "anomalib.models",
    "anomalib.data",
    "anomalib.engine",
    "torch",
    "lightning.pytorch",
    "timm",
    "anomalib_dskd",
    "anomalib_dskd.registration",
    "anomalib_dskd.model",
    "anomalib_dskd.model.lightning_model",
    "anomalib_dskd.model.torch_model",
    "anomalib_dskd.data",
]

KNOWN = """
import importlib, json, sys
importlib.import_module(sys.argv[1])
import anomalib.data, anomalib.models, anomalib_dskd
from anomalib.data import MVTec, MVTecAD, get_datamodule
from anomalib.models import Dskd, get_model, list_models
assert Dskd is anomalib_dskd.Dskd is importlib.import_module("anomalib_dskd.model").Dskd
assert "dskd" in list_models()
assert "Dskd" in list_models(case="pascal")
assert type(get_model("dskd")) is type(get_model({"class_path": "Dskd"})) is Dskd
assert type(get_model({"class_path": "anomalib.models.Dskd", "init_args": {"image_size": [64, 96]}})) is Dskd
assert issubclass(MVTec, MVTecAD)
data = get_datamodule({"data": {"class_path": "MVTec", "init_args": {"category": "toothbrush"}}})
assert type(data) is MVTec and data.name == "MVTec"
assert vars(MVTec()).keys() == vars(MVTecAD()).keys()
print(json.dumps([str(MVTec().root) == str(MVTecAD().root), anomalib_dskd.__file__]))
"""


def python(code: str, *arguments: str, check: bool = True, **env: object) -> subprocess.CompletedProcess:
    return run([sys.executable, "-W", "ignore", "-c", code, *arguments], check=check, **env)


@pytest.mark.parametrize("first", IMPORTS_FIRST)
def test_known_whatever_is_imported_first(installed_wheel, first):
    result = python(KNOWN, first, PYTHONPATH=installed_wheel)
    same_root, file = json.loads(result.stdout.splitlines()[-1])
    assert same_root
    assert Path(file).is_relative_to(installed_wheel)


def test_known_without_the_extras(installed_wheel):
    """OpenVINO is for those who export."""
    without = "import sys; sys.modules['openvino'] = sys.modules['nncf'] = sys.modules['ray'] = None\n"
    result = python(without + KNOWN, "anomalib.models", PYTHONPATH=installed_wheel)
    assert json.loads(result.stdout.splitlines()[-1])[0]


def test_triggers_are_the_last_imports():
    """A new anomalib may import something after the modules that the hook waits for."""
    code = "import sys, anomalib.data, anomalib.models; print([m for m in sys.modules if m.startswith('anomalib.')])"
    imported = eval(python(code, TORCH_DEVICE_BACKEND_AUTOLOAD=0).stdout.splitlines()[-1])  # noqa: S307
    for trigger, package, _, _ in DOORS:
        children = [m for m in imported if m.rpartition(".")[0] == package]
        assert children[-1] == trigger


def test_hook_says_nothing_and_stays_small(installed_wheel):
    result = python(
        "import torch, sys; print(sorted(m for m in sys.modules if 'dskd' in m))", PYTHONPATH=installed_wheel
    )
    assert result.stderr == ""
    assert result.stdout.splitlines() == ["['anomalib_dskd', 'anomalib_dskd.registration']"]


def test_hook_costs_milliseconds(installed_wheel):
    """Measured inside the process after torch is there, as ``import torch`` pays it."""
    code = (
        "import torch, time, sys; t = time.perf_counter(); "
        "from anomalib_dskd.registration import autoload; autoload(); print(time.perf_counter() - t)"
    )
    seconds = [
        float(python(code, PYTHONPATH=installed_wheel, TORCH_DEVICE_BACKEND_AUTOLOAD=0).stdout) for _ in range(3)
    ]
    assert statistics.median(seconds) < 0.1, seconds


def test_switched_off_the_full_path_still_works(installed_wheel, tmp_path):
    code = "import anomalib.models; print(hasattr(anomalib.models, 'Dskd'))"
    off = {"PYTHONPATH": installed_wheel, "TORCH_DEVICE_BACKEND_AUTOLOAD": 0}
    assert python(code, **off).stdout.splitlines()[-1] == "False"
    command = ["train", "--model", "anomalib_dskd.Dskd", "--data", "MVTecAD", "--print_config"]
    assert "image_size: 256" in anomalib(*command, cwd=tmp_path, **off).stdout


def broken_copy(installed_wheel: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "broken"
    shutil.copytree(installed_wheel, copy)
    (copy / "anomalib_dskd/model/lightning_model.py").write_text("raise RuntimeError('the plugin is broken')\n")
    return copy


def test_broken_plugin_warns_once_and_harms_nobody(installed_wheel, tmp_path, mvtec_root, stfpm_cache):
    broken = broken_copy(installed_wheel, tmp_path)
    result = run(
        [sys.executable, "-c", "import torch, anomalib.models, anomalib.data, anomalib.engine"], PYTHONPATH=broken
    )
    assert (
        result.stderr.count("anomalib-dskd is not available in this process: RuntimeError: the plugin is broken") == 1
    )
    data = ["--data", "MVTecAD", "--data.root", mvtec_root, "--data.category", "stripes", "--data.num_workers", 0]
    trained = anomalib(
        *["train", "--model", "Stfpm", "--trainer.max_steps", 1, "--trainer.accelerator", "cpu", *data],
        cwd=tmp_path,
        PYTHONPATH=broken,
        HF_HOME=stfpm_cache,
    )
    assert "image_AUROC" in trained.stdout
    assert trained.stderr.count("anomalib-dskd is not available") == 1


@pytest.fixture(scope="session")
def stfpm_cache(tmp_path_factory, teacher_file) -> Path:
    """A model hub's cache as a download leaves it: Stfpm asks timm for pre-trained weights whatever it is told."""
    home = tmp_path_factory.mktemp("hub")
    repository = home / "hub/models--timm--resnet18.a1_in1k"
    snapshot = repository / "snapshots/0123456789abcdef"
    snapshot.mkdir(parents=True)
    shutil.copy(teacher_file, snapshot / "model.safetensors")
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(snapshot.name)
    return home


def test_timms_weights_are_the_default(stfpm_cache, teacher_state, monkeypatch):
    """From the same cache, without being told: ``teacher_weights=None``."""
    code = (
        "import anomalib_dskd.model.teacher_weights as t; from anomalib_dskd.model.components import Teacher; "
        "teacher = Teacher('resnet18'); t.load_teacher(teacher, 'resnet18', None); "
        "print(teacher.network.conv1.weight.sum().item())"
    )
    loaded = float(python(code, HF_HOME=stfpm_cache).stdout.splitlines()[-1])
    assert loaded == pytest.approx(teacher_state["conv1.weight"].sum().item(), rel=1e-5)


@pytest.mark.parametrize(("found", "warns"), [("2.6.9", True), ("3.0.0", True), ("2.9.1", False)])
def test_other_versions_of_anomalib(installed_wheel, tmp_path, found, warns):
    """Seen by the metadata alone: anomalib itself cannot be had in a version that does not exist yet."""
    metadata = tmp_path / f"anomalib-{found}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: anomalib\nVersion: {found}\n")
    code = "import anomalib.models; print(hasattr(anomalib.models, 'Dskd'))"
    result = run([sys.executable, "-c", code], PYTHONPATH=f"{tmp_path}:{installed_wheel}")
    assert result.stdout.splitlines()[-1] == str(not warns)
    assert result.stderr.count(f"anomalib>=2.7,<3 is needed, {found} is installed") == int(warns)


def test_no_anomalib_at_all(installed_wheel):
    """Nothing is waited for in vain, and nothing fails."""
    code = "import sys; sys.modules['anomalib'] = None; import torch; print(torch.ones(1).item())"
    result = run([sys.executable, "-c", code], PYTHONPATH=installed_wheel)
    assert result.stdout == "1.0\n"
    assert result.stderr == ""


def test_wheel_contains_what_it_needs_and_nothing_else(installed_wheel):
    names = {path.relative_to(installed_wheel).as_posix() for path in installed_wheel.rglob("*") if path.is_file()}
    names = {name for name in names if "__pycache__" not in name}
    data = ("data/mvtec", "data/mvtec_3d", "data/magnetic_tile", "data/demo_textures")
    configs = ("dskd", "dskd_edge", "dskd_paper", "demo", *data)
    assert {f"anomalib_dskd/configs/{name}.yaml" for name in configs} <= names
    info = f"anomalib_dskd-{version('anomalib-dskd')}.dist-info"
    assert f"{info}/entry_points.txt" in names
    assert f"{info}/licenses/LICENSE" in names
    assert {name for name in names if not name.startswith(("anomalib_dskd/", info))} == {"bin/anomalib-dskd"}
    assert sum((installed_wheel / name).stat().st_size for name in names) < 1_000_000
