"""The endpoint on a thread of its own: many threads asking, closing, failing."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.endpoint_requests import answers, quick, requests, section, texts
from support.flaky_server import MODEL, FlakyServer

from ms4_evals.clients.endpoint.background import BackgroundEndpoint
from ms4_evals.clients.endpoint.client import EndpointClient
from ms4_train.errors import EvaluationError


def test_threads_get_their_own_answers_and_the_bound_holds():
    asked = requests(80)
    with FlakyServer(seconds=0.005) as server:
        with BackgroundEndpoint(section(server.base_url, concurrency=5)) as endpoint, ThreadPoolExecutor(20) as pool:
            found = dict(zip([request.request_id for request in asked], pool.map(endpoint.ask, asked), strict=True))
            assert endpoint.identity() == EndpointClient(section(server.base_url)).identity()
            assert endpoint.identity()["endpoint_model"] == MODEL
        assert server.most_in_flight == 5
        assert texts(found) == texts(answers(EndpointClient(section(server.base_url)), asked))
    assert not [thread for thread in threading.enumerate() if thread.name == "endpoint"]


def test_faults_are_asked_again_for():
    with (
        FlakyServer(faults=1.0, kinds=["500", "cut"], max_faults=2) as server,
        BackgroundEndpoint(section(server.base_url), backoff=quick()) as endpoint,
    ):
        assert endpoint.ask(requests(1)[0]).attempts == 3


def test_opening_says_what_is_wrong():
    with FlakyServer(key="k") as server, pytest.raises(EvaluationError, match="HTTP 401"), BackgroundEndpoint(section(server.base_url)):
        pass
    with pytest.raises(EvaluationError, match="no connection"), BackgroundEndpoint(section(server.base_url), backoff=quick()):
        pass
    with pytest.raises(EvaluationError, match="extra_body"):
        BackgroundEndpoint(section(server.base_url, extra_body={"n": 3}))
    assert not [thread for thread in threading.enumerate() if thread.name == "endpoint"]


def test_a_question_that_stops_everything_raises_for_its_asker():
    with FlakyServer() as server, BackgroundEndpoint(section(server.base_url), backoff=quick()) as endpoint:
        server.status = 404
        for request in requests(3):
            with pytest.raises(EvaluationError, match="HTTP 404"):
                endpoint.ask(request)


def test_closing_while_it_is_asked_and_asking_when_it_is_closed():
    failures: list[Exception] = []

    def ask(endpoint: BackgroundEndpoint) -> None:
        try:
            endpoint.ask(requests(1)[0])
        except EvaluationError as error:
            failures.append(error)

    with FlakyServer(seconds=30.0) as server:
        endpoint = BackgroundEndpoint(section(server.base_url))
        with pytest.raises(EvaluationError, match="not open"):
            endpoint.ask(requests(1)[0])
        with endpoint:
            threads = [threading.Thread(target=ask, args=(endpoint,)) for _ in range(4)]
            for thread in threads:
                thread.start()
            while server.in_flight < 4:
                time.sleep(0.01)
            start = time.monotonic()
        for thread in threads:
            thread.join(5)
        assert time.monotonic() - start < 5
        assert len(failures) == 4
        endpoint.close()
        with pytest.raises(EvaluationError, match="not open"):
            endpoint.ask(requests(1)[0])


def test_it_opens_again():
    with FlakyServer() as server:
        endpoint = BackgroundEndpoint(section(server.base_url))
        for _ in range(2):
            with endpoint:
                assert not endpoint.ask(requests(1)[0]).error
