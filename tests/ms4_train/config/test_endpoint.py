"""Server sections: what a file can say, and what is refused."""

import pytest
from pydantic import ValidationError

from ms4_train.config.endpoint import EndpointSection, JudgeSection, Server

GOOD = {"servers": [{"base_url": "http://127.0.0.1:8000/v1", "model": "small", "api_key_env": "MISTRAL_API_KEY"}]}


def test_defaults():
    section = EndpointSection.model_validate(GOOD)
    assert (section.kind, section.stream, section.prices, section.extra_body) == ("auto", True, None, {})
    assert section.concurrency >= 1
    assert JudgeSection.model_validate(GOOD).temperature == 0.0, "a judge does not roll dice"
    assert JudgeSection.model_validate({**GOOD, "temperature": None}).temperature is None


@pytest.mark.parametrize(
    "change",
    [
        {"servers": []},
        {"servers": [{"base_url": "127.0.0.1:8000"}]},
        {"servers": [{"base_url": "ftp://host/v1"}]},
        {"kind": "tgi"},
        {"concurrency": 0},
        {"timeout": 0},
        {"prices": {"input": -1}},
        {"unknown": 1},
    ],
)
def test_what_makes_no_sense_is_refused(change):
    with pytest.raises(ValidationError):
        EndpointSection.model_validate(GOOD | change)


@pytest.mark.parametrize("name", ["sk-1234", "a b", "", "9KEY"])
def test_a_key_in_place_of_its_variables_name_is_refused(name):
    with pytest.raises(ValidationError) as caught:
        Server.model_validate({"base_url": "http://h/v1", "api_key_env": name})
    (problem,) = caught.value.errors()
    assert "not the key" in problem["msg"]
    assert name not in problem["msg"] or not name, "it may be the key itself"


def test_an_address_without_its_scheme_is_told_how_to_be_written():
    with pytest.raises(ValidationError, match=r"'127.0.0.1:8000/v1' is no address; write it as http://"):
        Server.model_validate({"base_url": "127.0.0.1:8000/v1"})
