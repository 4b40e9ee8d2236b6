"""Generation: ``Engine`` answers ``GenerationRequest``s with a model in this process. Exercise it: ``ms4 generate --help``."""

from ms4_train.inference.chat import chat_request, completion_answer
from ms4_train.inference.detokenize import TextDecoder
from ms4_train.inference.engine import Engine, TokenStream
from ms4_train.inference.request import Completion, GenerationRequest, Progress, SamplingParams

__all__ = [
    "Completion",
    "Engine",
    "GenerationRequest",
    "Progress",
    "SamplingParams",
    "TextDecoder",
    "TokenStream",
    "chat_request",
    "completion_answer",
]
