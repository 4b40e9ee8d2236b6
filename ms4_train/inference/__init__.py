"""Generation: ``Engine`` answers ``GenerationRequest``s with a model in this process. Exercise it: ``ms4 generate --help``."""

from ms4_train.inference.background import EngineThread
from ms4_train.inference.chat import chat_request, completion_answer
from ms4_train.inference.detokenize import TextDecoder
from ms4_train.inference.engine import Engine
from ms4_train.inference.request import (
    Completion,
    EngineStats,
    Event,
    FinishEvent,
    GenerationRequest,
    Progress,
    TokenEvent,
    TokenLogprobs,
)
from ms4_train.inference.sampling_params import ConstraintSpec, SamplingParams
from ms4_train.inference.token_stream import TokenStream

__all__ = [
    "Completion",
    "ConstraintSpec",
    "Engine",
    "EngineStats",
    "EngineThread",
    "Event",
    "FinishEvent",
    "GenerationRequest",
    "Progress",
    "SamplingParams",
    "TextDecoder",
    "TokenEvent",
    "TokenLogprobs",
    "TokenStream",
    "chat_request",
    "completion_answer",
]
