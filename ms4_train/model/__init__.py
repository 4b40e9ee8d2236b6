"""The network, and nothing else: latent attention, mixture of experts, vision tower, and the interface of the latent cache."""

from ms4_train.model.cache import DenseLatentCache, LatentCache
from ms4_train.model.config import RopeParameters, TextConfig
from ms4_train.model.images import ImageBatch
from ms4_train.model.initialise import init_parameter, init_weights
from ms4_train.model.layout import SequenceLayout
from ms4_train.model.moe import Mistral4Experts
from ms4_train.model.multimodal import Mistral3ForConditionalGeneration
from ms4_train.model.network import Mistral4ForCausalLM
from ms4_train.model.vision_config import VisionConfig

__all__ = [
    "DenseLatentCache",
    "ImageBatch",
    "LatentCache",
    "Mistral3ForConditionalGeneration",
    "Mistral4Experts",
    "Mistral4ForCausalLM",
    "RopeParameters",
    "SequenceLayout",
    "TextConfig",
    "VisionConfig",
    "init_parameter",
    "init_weights",
]
