"""From a configuration to a client: the engine or a server, what it is called, and that it is closed."""

import pytest
from support.eval_files import eval_run, write_model
from support.judges import judging

from ms4_evals.clients.endpoint.client import EndpointClient
from ms4_evals.clients.engine import EngineClient
from ms4_evals.clients.opening import open_client
from ms4_train.config.evaluation import EvalRun
from ms4_train.errors import EvaluationError, MS4Error


def endpoint_run(url, **sections):
    values = {"recipe": "eval", "endpoint": {"servers": [{"base_url": url}]}, "tasks": [{"task": "arithmetic"}]}
    return EvalRun.model_validate(values | sections)


def test_a_model_runs_on_the_engine_under_its_folders_name(tmp_path):
    config = eval_run(write_model(tmp_path / "small"), tmp_path / "r.sqlite", label=None)
    with open_client(config) as (client, label):
        assert isinstance(client, EngineClient)
        assert label == "small"
    with open_client(config.model_copy(update={"label": "mine"})) as (_, label):
        assert label == "mine"


def test_a_server_is_called_as_its_model_and_is_closed(monkeypatch):
    closed = []
    real = EndpointClient.close
    monkeypatch.setattr(EndpointClient, "close", lambda self: (closed.append(self), real(self)))

    def interrupted(config):
        with open_client(config) as (client, label):
            assert label == client.identity()["endpoint_model"]
            opened.append(client)
            raise KeyboardInterrupt

    opened = []
    with judging() as judge, pytest.raises(KeyboardInterrupt):
        interrupted(endpoint_run(judge.url))
    assert len(opened) == 1
    assert closed == opened


def test_what_does_not_answer_is_refused():
    with pytest.raises(EvaluationError), open_client(endpoint_run("http://127.0.0.1:9/v1")):
        pass
    local = {"recipe": "eval", "model": {"path": "nowhere"}, "tasks": [{"task": "arithmetic"}]}
    with pytest.raises(MS4Error), open_client(EvalRun.model_validate(local)):
        pass
