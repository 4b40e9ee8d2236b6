"""What the comparisons with other engines share: one tiny model that this program fine-tuned."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    from support.trained import train_tiny

    return train_tiny(tmp_path_factory.mktemp("trained"))
