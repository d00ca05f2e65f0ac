"""The libraries alone: for a copy of the project, which has its own `lime`."""
# ruff: noqa: F401

import datasets
import hydra
import lightning.pytorch
import matplotlib.figure
import peft
import scipy.optimize
import scipy.stats
import torchmetrics
import transformers.models.llava_onevision.image_processing_pil_llava_onevision
import transformers.models.llava_onevision.modeling_llava_onevision
import transformers.models.llava_onevision.processing_llava_onevision
import transformers.models.qwen2.tokenization_qwen2
import transformers.models.qwen2_vl.image_processing_pil_qwen2_vl
import transformers.models.qwen2_vl.modeling_qwen2_vl
import transformers.models.qwen2_vl.processing_qwen2_vl
import transformers.models.siglip.modeling_siglip
