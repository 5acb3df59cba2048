# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""What a measurement was taken on and with."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

PACKAGES = ("anomalib-dskd", "anomalib", "torch", "torchvision", "timm", "lightning", "openvino", "nncf")


def environment() -> dict[str, Any]:
    """Describe this machine and the versions in use.

    Returns:
        ``cpu`` (its name), ``cores`` (that this process may use), ``memory_gib``, ``threads`` (torch's),
        ``omp_wait_policy`` (how these wait for each other, if the process was told), ``bf16`` (whether the CPU computes
        in it), ``load`` (threads that ran or waited, mean of the last minute, this process's among them: where it is
        well above ``threads`` the machine was busy with something else), ``gpu`` (its name, or nothing), ``system``,
        ``python``, and the version of each package, ``None`` where it is not installed.
    """
    return {
        "cpu": _cpu_name(),
        "cores": len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "threads": torch.get_num_threads(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
        "bf16": has_bf16(),
        "load": round(psutil.getloadavg()[0], 2),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
    }


def has_bf16() -> bool:
    """Tell whether the CPU has instructions for bfloat16 (AVX512-BF16 or AMX), as OpenVINO sees it.

    Without OpenVINO the answer is Linux's; elsewhere ``False``.
    """
    try:
        import openvino  # noqa: PLC0415  # an extra
    except ImportError:
        return bool({"avx512_bf16", "amx_bf16"} & set(_cpu_info("flags").split()))
    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def has_vnni() -> bool:
    """Tell whether the CPU adds up products of 8-bit numbers in 32 bits, so that they cannot overflow.

    The answer is Linux's; elsewhere ``False``.
    """
    return bool({"avx512_vnni", "avx_vnni"} & set(_cpu_info("flags").split()))


def _cpu_name() -> str:
    return _cpu_info("model name") or platform.processor() or platform.machine()


def _cpu_info(field: str) -> str:
    """Return a field of the first core in Linux's list, empty where there is none."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), "")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
