# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""Time tasks in turns, so that a busy machine slows all of them alike."""

import gc
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter
from typing import TypeVar

import numpy as np

Name = TypeVar("Name")

# Variables to start the measuring process with. torch's threads otherwise wait for each other by spinning: where
# something else runs too, a prediction on two cores can take ten times as long, while OpenVINO's hardly suffers.
PROCESS_ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE"}


def interleave(
    tasks: Mapping[Name, Sequence[Callable[[int], object]]],
    rounds: int,
    warmup: int = 3,
    seed: int = 0,
    progress: Callable[[int], object] = lambda _: None,
) -> dict[Name, np.ndarray]:
    """Time each task once a round, in an order drawn anew for each round.

    A turn begins with an untimed run: the task's weights are then in the caches and its threads awake, as on a line
    where it runs alone, whichever task came before.

    Args:
        tasks: What to time, by name: one function or several variants, run one after the other in the task's turn.
            Each is given the number of the round, negative in the warm-up.
        rounds: Number of rounds that are timed.
        warmup: Number of rounds before.
        seed: Seed of the order.
        progress: Called before each round with its number.

    Returns:
        For each task its seconds, ``(variants, rounds)``. Round for round they were taken close to each other: ratios
        are to be taken within a round.
    """
    generator = np.random.default_rng(seed)
    names = list(tasks)
    seconds = {name: np.zeros((len(variants), rounds)) for name, variants in tasks.items()}
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()  # it would strike one task or another
    try:
        for turn in range(-warmup, rounds):
            progress(turn)
            for index in generator.permutation(len(names)):
                variants = tasks[names[index]]
                variants[0](turn)
                for number, variant in enumerate(variants):
                    start = perf_counter()
                    variant(turn)
                    elapsed = perf_counter() - start
                    if turn >= 0:
                        seconds[names[index]][number, turn] = elapsed
    finally:
        if collecting:
            gc.enable()
    return seconds
