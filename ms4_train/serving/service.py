"""What all endpoints of one server share: the engine, the bounds, the names, the calls at work.

Exercise it: ``pytest tests/ms4_train/serving/test_service.py``.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ms4_train.chat import ChatTokenizer
from ms4_train.errors import AdapterError, UntrustedInputError, WeightsError
from ms4_train.inference.background import EngineThread
from ms4_train.model.multimodal import Mistral3ForConditionalGeneration
from ms4_train.serving.admission import Admission
from ms4_train.serving.answering import Answering
from ms4_train.serving.failures import ApiError, bad_request
from ms4_train.serving.metrics import ServerMetrics
from ms4_train.serving.prompts import PromptMaker
from ms4_train.serving.settings import ServerSettings


class Service:
    """The server behind its endpoints.

    Args:
        thread: runs the engine.
        tokenizer: of the model.
        settings: names and bounds.

    Attributes:
        adapters: names of those that clients may ask for.
        working: the calls whose answers are on their way.
    """

    def __init__(self, thread: EngineThread, tokenizer: ChatTokenizer, settings: ServerSettings) -> None:
        self.thread = thread
        self.tokenizer = tokenizer
        self.settings = settings
        self.adapters: list[str] = list(settings.adapters)
        self.admission = Admission(settings.max_answers, settings.max_held_bytes)
        self.metrics = ServerMetrics(lambda: thread.stats, self.admission)
        self.workers = ThreadPoolExecutor(settings.worker_threads, thread_name_prefix="ms4-request")
        self.working: set[Answering] = set()
        engine = thread.engine
        self.max_context = engine.max_context
        has_vision = isinstance(engine.model, Mistral3ForConditionalGeneration)
        self.prompts = PromptMaker(tokenizer, settings, engine.max_context, has_vision)

    @property
    def names(self) -> list[str]:
        """What clients may put into ``model``: the model itself, then its adapters."""
        return [self.settings.model_name, *self.adapters]

    def adapter_of(self, model: str) -> str | None:
        """The adapter that a request's ``model`` means; None for the model itself.

        Raises:
            ApiError: 404.
        """
        if model not in self.names:
            raise ApiError(404, f"The model {model!r} does not exist here.", param="model", code="model_not_found")
        return None if model == self.settings.model_name else model

    def load_adapter(self, name: str, path: str) -> None:
        """Load an adapter; works while requests run. Blocks until the engine has done it.

        Raises:
            ApiError: 400: the name is taken, or the folder is none below the server's.
            MS4Error: it cannot be loaded.
        """
        root = self.settings.adapter_folder
        assert root is not None, "the endpoint does not exist without it"
        if name in self.names:
            raise bad_request(f"The name {name!r} is taken.", "lora_name")
        folder = _folder_below(root, path)
        if folder is None:
            raise bad_request("lora_path is no folder below the server's folder of adapters.", "lora_path")
        try:
            self.thread.call(lambda engine: engine.load_adapter(name, folder))
        except (AdapterError, UntrustedInputError, WeightsError) as error:
            # What our errors advise is meant for who runs the server.
            raise bad_request(f"The adapter cannot be loaded: {error.message}", "lora_path", "adapter") from None
        self.adapters.append(name)

    def drop_adapter(self, name: str) -> None:
        """Drop an adapter.

        Raises:
            ApiError: 404: there is none of this name.
            MS4Error: answers are using it.
        """
        if name not in self.adapters:
            raise ApiError(404, f"There is no adapter {name!r}.", param="lora_name", code="model_not_found")
        self.thread.call(lambda engine: engine.drop_adapter(name))
        self.adapters.remove(name)

    def check_alive(self) -> None:
        """Refuse where no answer can be made.

        Raises:
            ApiError: 503.
        """
        if self.admission.is_stopping:
            raise ApiError(503, "The server is stopping.", code="stopping", retry_after=self.admission.retry_after)
        if self.thread.error is not None:
            raise ApiError(503, "The engine has stopped.", code="engine_failed")

    def begin_stop(self) -> None:
        """Refuse new requests; those at work go on."""
        self.admission.is_stopping = True

    def give_up(self) -> None:
        """End what is still at work."""
        for answering in list(self.working):
            answering.stop("stopping")

    def close(self) -> None:
        """Let go of the worker threads."""
        self.workers.shutdown(wait=False, cancel_futures=True)


def _folder_below(root: Path, path: str) -> Path | None:
    """The folder that a path means, links followed; None where it leads out, or is none."""
    try:
        root = root.resolve()
        folder = (root / path).resolve()
        return folder if folder != root and folder.is_relative_to(root) and folder.is_dir() else None
    except (OSError, ValueError):
        return None
