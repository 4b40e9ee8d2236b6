"""What a server is called, who may use it, and every bound that it holds its clients to.

Exercise it: ``pytest tests/ms4_train/serving/test_settings.py``.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, fields
from pathlib import Path

from ms4_train.errors import ConfigError
from ms4_train.untrusted import DEFAULT_LIMITS, ImageLimits

_MAY_BE_ZERO = ("drain_seconds", "max_images")


@dataclass(frozen=True)
class ServerSettings:
    """Names, keys and bounds of one server.

    Attributes:
        model_name: what clients call the model.
        adapters: names under which adapters are loaded already.
        adapter_folder: adapters below it may be loaded and dropped by clients; None: by nobody.
        api_keys: any of them opens the server; none: it is open to whoever reaches it.
        metrics_need_key: whether ``/metrics`` asks for a key too.
        allowed_hosts: names that requests may call the server by (their Host header, without port); none: any. It keeps web pages that
            point their own name at this machine from using a server without keys.
        image_hosts: hosts that images may be fetched from; data URLs always work.
        image_limits: of one image.
        max_images: of one request.
        max_body_bytes: of a request's body.
        max_json_values: commas and brackets of a body, those inside texts included: what it can grow to in memory.
        max_held_bytes: of all bodies and image pixels that are held at once.
        max_prompt_tokens: None: what the engine's context leaves.
        max_tokens: of one answer; None: what the prompt leaves of the engine's context.
        max_n: answers to one prompt.
        max_answers: computed or waiting at once; beyond it clients are told to come back.
        max_connections: open at once; beyond it new ones are closed.
        buffered_events: of one stream, that its client has not taken yet.
        header_seconds, body_seconds: in which a request's head and its body must have come.
        request_seconds: from a request's body to the end of its answer.
        stall_seconds: after which a client that takes nothing of its answer is cut off.
        keep_alive_seconds: between signs of life on a silent stream.
        drain_seconds: that unfinished answers get when the server stops.
        worker_threads: that parse, tokenise and decode images.
        created: when the model was loaded, in seconds since 1970.

    Raises:
        ConfigError: a bound that is not positive.
    """

    model_name: str
    adapters: tuple[str, ...] = ()
    adapter_folder: Path | None = None
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    metrics_need_key: bool = False
    allowed_hosts: tuple[str, ...] = ()
    image_hosts: tuple[str, ...] = ()
    image_limits: ImageLimits = DEFAULT_LIMITS
    max_images: int = 16
    max_body_bytes: int = 48 << 20
    max_json_values: int = 1_000_000
    max_held_bytes: int = 1 << 30
    max_prompt_tokens: int | None = None
    max_tokens: int | None = None
    max_n: int = 16
    max_answers: int = 256
    max_connections: int = 1024
    buffered_events: int = 4096
    header_seconds: float = 10.0
    body_seconds: float = 60.0
    request_seconds: float = 600.0
    stall_seconds: float = 30.0
    keep_alive_seconds: float = 15.0
    drain_seconds: float = 30.0
    worker_threads: int = 4
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            if value < 0 or (value == 0 and each.name not in _MAY_BE_ZERO):
                raise ConfigError(f"{value} is not positive.", key=each.name, fix="give a larger bound, or leave it out.")
        if not self.model_name or self.model_name in self.adapters or len(set(self.adapters)) != len(self.adapters):
            raise ConfigError("model and adapters need names that differ.", key="served-model-name", fix="rename one of them.")
        if not all(self.api_keys):
            raise ConfigError("an API key is empty.", key="api-key", fix="give it some characters, or leave it out.")
