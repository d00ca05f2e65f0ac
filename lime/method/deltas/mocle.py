"""MoCLE (arXiv 2312.12379): experts for clusters of inputs, routed once for a whole sequence."""

from __future__ import annotations

from lime.method.deltas.hydra_lora import HydraLoRADelta


class MoCLEDelta(HydraLoRADelta):
    """The structure of `HydraLoRADelta`, routed per sequence by its mean embedding at the layer's input.

    The source clusters the embeddings of all instructions before training and routes a learned embedding of the
    cluster to one expert, beside a universal one. Chosen here, after the published parameter count: the mean over the
    sequence's real tokens stands for the cluster's embedding, so that no pass over the data comes first; all experts
    take part by their softmax weights, without temperature; A is shared and there is no universal expert.

    The mean takes in the whole sequence of a forward pass: what a token gets then depends on later ones, which is not
    causal. `generate` decides on its prompt alone, and keeps the decision while it decodes.

    Trains `r d_in + E r d_out` parameters, and its router `E d_in`.
    """
