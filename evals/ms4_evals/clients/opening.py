"""From a configuration to the client it names: the engine of this process, or a server.

Exercise it: ``pytest tests/evals/ms4_evals/clients/test_opening.py``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ms4_evals.clients.base import Client
from ms4_train.config.evaluation import EvalRun

if TYPE_CHECKING:
    from rich.console import Console


@contextlib.contextmanager
def open_client(config: EvalRun, console: Console | None = None) -> Iterator[tuple[Client, str]]:
    """The model under test and what to call it, closed at the end.

    Raises:
        MS4Error: the model cannot be loaded, or no server answers for it.
    """
    if config.model is not None:
        from ms4_evals.clients.embedded import default_label, open_embedded

        client: Client = open_embedded(config.model, config.engine, console)
        label = default_label(config.model)
    else:
        from ms4_evals.clients.endpoint.client import EndpointClient

        assert config.endpoint is not None
        client = EndpointClient(config.endpoint)
        label = str(client.identity()["endpoint_model"])
    try:
        yield client, config.label or label
    finally:
        client.close()
