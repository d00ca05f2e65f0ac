"""What things cost: layers, training steps, decoding, data, start-up, and how cost grows.

Every measurement compares its subjects in one process, in interleaved repetitions, and reports medians of the ratios
of each repetition (`timing`). A run leaves a record (`record`), from which tables and figures are made.
`scripts/benchmark.py` is the command line.
"""

COMMANDS: dict[str, str] = {
    "layer": "forward and backward of one adapted layer: time, kept activations, passes over memory",
    "step": "one training step of a model with random weights: time, kept activations, peak memory",
    "decode": "generated tokens per second with a key-value cache",
    "data": "rows per second of the data path, by modality and number of workers",
    "start": "seconds until help, a configuration error, and the first training step",
    "growth": "cost against experts, rank, tokens, layers and batch",
    "profile": "where the time of the main job goes",
    "efficiency": "the four published panels: time, throughput, memory and parameters by method",
}
"""Subcommands, each a module of this package with `Options` and `run(options)`, and what they measure."""
