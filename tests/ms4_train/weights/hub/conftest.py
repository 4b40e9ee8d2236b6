"""A hub on this machine for the tests of downloads and uploads."""

import pytest
from support.hub_client import hub_client


@pytest.fixture
def hub(monkeypatch, tmp_path_factory):
    with hub_client(monkeypatch, tmp_path_factory.mktemp("home")) as hub:
        yield hub
