"""Decisions of the kernels become lines of the run's output; warnings keep their way, and the logger is left as it was."""

import io
import logging

from rich.console import Console

from ms4_recipes.kernel_log import kernel_choices_shown

LOGGER = logging.getLogger("ms4_kernels")


def test_decisions_are_printed_in_the_block_only(caplog):
    output, level = io.StringIO(), LOGGER.level
    LOGGER.info("before")
    with kernel_choices_shown(Console(file=output, soft_wrap=True)):
        LOGGER.info("experts on the CPU: %s", "compiled [kernels]")
        LOGGER.warning("slow")
    LOGGER.info("after")
    assert output.getvalue() == "kernels: experts on the CPU: compiled [kernels]\n"
    assert "slow" in caplog.messages  # still goes on to whoever listens
    assert LOGGER.level == level
    assert LOGGER.handlers == []
