"""From a checked request to the sequences that answer it. Exercise it: ``pytest tests/ms4_train/inference/test_sequences.py``."""

from __future__ import annotations

from ms4_train.inference.adapters import AdapterRegistry
from ms4_train.inference.blocks import BlockName, first_name
from ms4_train.inference.constraints import ConstraintCompiler
from ms4_train.inference.detokenize import EngineTokenizer, StopMatcher
from ms4_train.inference.image_features import image_digests
from ms4_train.inference.request import GenerationRequest
from ms4_train.inference.sampling import sample_seed
from ms4_train.inference.sampling_params import ConstraintSpec
from ms4_train.inference.sequence import PromptImages, Sequence
from ms4_train.inference.thinking import Thought
from ms4_train.model.multimodal import Mistral3ForConditionalGeneration
from ms4_train.model.network import Mistral4ForCausalLM


class SequenceMaker:
    """Makes sequences for one model.

    Args:
        model: that answers.
        tokenizer: of the model; its ``ids``, where it has them, tell thinking from content.
        adapters: of the model.
    """

    def __init__(self, model: Mistral4ForCausalLM, tokenizer: EngineTokenizer, adapters: AdapterRegistry) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._adapters = adapters
        self._special = getattr(tokenizer, "ids", None)
        self._constraints = ConstraintCompiler(tokenizer)

    def check_constraint(self, spec: ConstraintSpec) -> None:
        """Compile a constraint, which is kept.

        Raises:
            EngineError: it cannot be used.
        """
        self._constraints.compile(spec)

    def make(self, request: GenerationRequest, arrived: float) -> list[Sequence]:
        """The n sequences of a request; the first one leads the others.

        Args:
            request: already checked against the model.
            arrived: clock reading, in seconds.
        """
        sampling = request.sampling
        images = self._images(request)
        root = self.root(request.adapter)
        made: list[Sequence] = []
        for index in range(request.n):
            made.append(
                Sequence(
                    request,
                    index,
                    sample_seed(sampling.seed, index),
                    StopMatcher(self._tokenizer, sampling.stop, include=sampling.include_stop),
                    Thought(self._special, sampling.thinking_budget),
                    constraint=None if sampling.constraint is None else self._constraints.compile(sampling.constraint),
                    root=root,
                    images=images,
                    leader=made[0] if made else None,
                    arrived=arrived,
                )
            )
        return made

    def root(self, adapter: str | None) -> BlockName:
        """What the first block of a sequence with this adapter follows."""
        return first_name("" if adapter is None else f"{adapter} {self._adapters.generation(adapter)}")

    def _images(self, request: GenerationRequest) -> PromptImages | None:
        if request.images is None:
            return None
        assert isinstance(self._model, Mistral3ForConditionalGeneration)  # or the request had been refused
        config = self._model.vision_config
        places = tuple(place for place, token_id in enumerate(request.prompt_ids) if token_id == config.image_token_index)
        first_places: list[int] = []
        count = 0
        for length in request.images.num_tokens(config.spatial_merge_size):
            first_places.append(places[count])
            count += length
        return PromptImages(places, tuple(first_places), image_digests(request.images))
