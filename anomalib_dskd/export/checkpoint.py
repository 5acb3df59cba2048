# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""Load a checkpoint for export."""

import pickle
from pathlib import Path

from anomalib_dskd.errors import DskdError, first_line
from anomalib_dskd.model import Dskd


def load_checkpoint(ckpt: Path) -> Dskd:
    """Load a trained model onto the CPU; nothing but weights and plain data is read from the file.

    Args:
        ckpt: Checkpoint that anomalib wrote.

    Raises:
        DskdError: If the file is missing, damaged, or another model's or version's.
    """
    try:
        return Dskd.load_from_checkpoint(ckpt, map_location="cpu").eval()
    except DskdError as error:
        msg = f"{ckpt}: {error}"
    except FileNotFoundError:
        msg = f"{ckpt} does not exist: give the model.ckpt of a training, as in results/Dskd/.../model.ckpt."
    except pickle.UnpicklingError:  # torch's message says how to run what is in it
        msg = f"{ckpt} is damaged, or holds more than weights and plain data, and so is not loaded: it could run code."
    except Exception as error:  # noqa: BLE001  # torch's parsers raise what they please
        msg = f"{ckpt} is no checkpoint of Dskd, or damaged: {first_line(error)}"
    raise DskdError(msg)
