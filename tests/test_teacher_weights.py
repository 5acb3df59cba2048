# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""Where the teacher's weights may come from, and what is answered where they cannot be had."""

import os
import pickle

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

from anomalib_dskd.errors import DskdError
from anomalib_dskd.model.components import Teacher
from anomalib_dskd.model.teacher_weights import LITE0, LITE0_BACKBONE, load_teacher

from .conftest import SHARED, needs_shared


def same_maps(teacher: Teacher, expected: torch.nn.Module) -> bool:
    image = torch.rand(1, 3, 96, 96)
    with torch.no_grad():
        return all(torch.allclose(a, b, atol=1e-5) for a, b in zip(teacher(image), expected.eval()(image), strict=True))


@pytest.fixture
def teacher() -> Teacher:
    return Teacher("resnet18")


@pytest.fixture
def reference(teacher_state) -> torch.nn.Module:
    network = timm.create_model("resnet18", features_only=True, out_indices=(1, 2, 3))
    network.load_state_dict(teacher_state, strict=False)
    return network


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("wrapped", [False, True])
def test_local_file(tmp_path, teacher, teacher_state, reference, suffix, cut, wrapped):
    state = {name: value for name, value in teacher_state.items() if not (cut and name.startswith(("layer4", "fc")))}
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}} if wrapped else state, path)
    else:
        save_file(state, path)
    assert not same_maps(teacher, reference)
    load_teacher(teacher, "resnet18", path)
    assert same_maps(teacher, reference)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    ("backbone", "builder"),
    [
        ("regnetx_004_tv", torchvision.models.regnet_x_400mf),
        ("wide_resnet50_2", torchvision.models.wide_resnet50_2),
        ("mobilenetv3_large_100", torchvision.models.mobilenet_v3_large),
        ("convnext_tiny", torchvision.models.convnext_tiny),
    ],
)
def test_torchvision_naming(tmp_path, backbone, builder, suffix):
    """torchvision's own network, loaded from its own names, computes the maps that torchvision computes.

    Where the two libraries define a network's tensors in another order, it is refused, never loaded wrongly.
    """
    network = builder(weights=None).eval()
    for parameter in network.parameters():  # convnext's layer scale starts at 1e-6 and would hide its blocks
        torch.nn.init.normal_(parameter, std=0.05)
    for name, buffer in network.named_buffers():  # as trained ones, unlike each other
        if "running" in name:
            torch.nn.init.uniform_(buffer, 0.5, 1.5)
    path = tmp_path / f"weights{suffix}"
    torch.save(network.state_dict(), path) if suffix == ".pth" else save_file(network.state_dict(), path)
    teacher = Teacher(backbone)
    if (backbone, suffix) == ("regnetx_004_tv", ".pth"):
        with pytest.raises(DskdError, match="does not fit"):
            load_teacher(teacher, backbone, path)
        return
    load_teacher(teacher, backbone, path)
    image, seen = torch.rand(1, 3, 64, 64), []
    for child in network.modules():
        child.register_forward_hook(lambda _module, _input, output: seen.append(output.clone()))
    with torch.no_grad():
        network(image)
        maps = teacher(image)
    for features in maps:  # batch norm's epsilon differs between the libraries, 1e-5 and 1e-3, hence 2 %
        assert any(features.shape == s.shape and (features - s).norm() < 0.02 * s.norm() for s in seen)


def test_wheel_shipped_lite0():
    teacher = Teacher(LITE0_BACKBONE)
    before = teacher.network.conv_stem.weight.clone()
    load_teacher(teacher, LITE0_BACKBONE, LITE0)
    assert not torch.equal(before, teacher.network.conv_stem.weight)
    variance = dict(teacher.network.named_buffers())["bn1.running_var"]
    assert (variance != 1).all(), "batch norm's statistics must come along"
    with pytest.raises(DskdError, match="tf_efficientnet_lite0"):
        load_teacher(Teacher("resnet18"), "resnet18", LITE0)


@needs_shared
def test_shared_resnet18():
    teacher = Teacher("resnet18")
    load_teacher(teacher, "resnet18", SHARED / "weights/resnet18_imagenet1k_v1_to_layer3.safetensors")
    loaded = teacher.network.layer3[1].bn2
    assert loaded.running_var.allclose(torch.tensor(1 - 1e-5)), "folded, see its README"
    assert loaded.bias.std() > 0.01, "a fresh network's is zero"


class RunsCode:
    def __reduce__(self):
        return os.system, ("touch code-has-run",)


def damaged(tmp_path, teacher_state, kind):
    path = tmp_path / "weights.pth"
    if kind == "missing file":
        return path
    if kind == "zero bytes":
        path.write_bytes(b"")
    elif kind == "web page":
        path.write_text("Repository not found")
    elif kind == "truncated pth":
        torch.save(teacher_state, path)
        path.write_bytes(path.read_bytes()[:100_000])
    elif kind == "truncated safetensors":
        path = path.with_suffix(".safetensors")
        save_file(teacher_state, path)
        path.write_bytes(path.read_bytes()[:100_000])
    elif kind == "runs code":
        path.write_bytes(pickle.dumps({"conv1.weight": RunsCode()}))
    elif kind == "whole model":
        torch.save(torch.nn.Linear(2, 2), path)
    elif kind == "no state dict":
        torch.save([1, 2, 3], path)
    elif kind == "missing tensor":
        torch.save({k: v for k, v in teacher_state.items() if k != "layer2.0.conv1.weight"}, path)
    elif kind == "misshaped tensor":
        torch.save({**teacher_state, "layer2.0.conv1.weight": torch.zeros(128, 64, 1, 1)}, path)
    elif kind == "deeper architecture":
        torch.save(timm.create_model("resnet34").state_dict(), path)
    elif kind == "another architecture":
        torch.save(timm.create_model("tf_efficientnet_lite0").state_dict(), path)
    return path


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("missing file", "there is no file"),
        ("zero bytes", "Copy it again"),
        ("web page", "Copy it again"),
        ("truncated pth", "Copy it again"),
        ("truncated safetensors", "Copy it again"),
        ("runs code", "refused"),
        ("whole model", "refused"),
        ("no state dict", "does not hold a state_dict"),
        ("missing tensor", r"1 of \d+ tensors are missing, such as layer2.0.conv1.weight"),
        ("misshaped tensor", r"layer2.0.conv1.weight has shape \(128, 64, 1, 1\), \(128, 64, 3, 3\) is needed"),
        ("deeper architecture", "it has more, such as layer1.2.conv1.weight"),
        ("another architecture", "does not fit backbone='resnet18'"),
    ],
)
def test_bad_file_leaves_the_teacher_alone(tmp_path, monkeypatch, teacher, teacher_state, kind, said):
    monkeypatch.chdir(tmp_path)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    path = damaged(tmp_path, teacher_state, kind)
    with pytest.raises(DskdError, match=said) as error:
        load_teacher(teacher, "resnet18", path)
    assert path.name in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "code-has-run").exists()
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_no_network(monkeypatch, tmp_path, teacher):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(DskdError, match="could not get its pre-trained weights of 'resnet18'") as error:
        load_teacher(teacher, "resnet18", None)
    assert "--model.teacher_weights PATH" in str(error.value)


def test_no_pretrained_weights():
    with pytest.raises(DskdError, match="timm has no pre-trained weights for backbone='efficientnet_b0_gn'"):
        load_teacher(Teacher("efficientnet_b0_gn"), "efficientnet_b0_gn", None)
    with pytest.raises(DskdError, match=r"resnet18.none.*resnet18.a1_in1k"):
        load_teacher(Teacher("resnet18"), "resnet18.none", None)


def test_random_must_be_asked_for(teacher):
    before = teacher.network.conv1.weight.clone()
    load_teacher(teacher, "resnet18", "random")
    assert torch.equal(before, teacher.network.conv1.weight)
