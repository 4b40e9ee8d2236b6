"""What all sections of a run file share. Exercise it: ``pytest tests/ms4_train/config/test_section.py``."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A section of the file: unknown keys, infinities and NaN are refused, and values do not change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())
