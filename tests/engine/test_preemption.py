"""Signals: noted, not obeyed at once; passed on to ranks that were not asked."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path

import pytest

from sam_ds.config.signals import STOP
from tests.engine import cases, ranks


@pytest.mark.parametrize("who", [0, 1])
def test_all_ranks_stop_when_one_is_asked(who: int, tmp_path: Path) -> None:
    results = ranks.run({"asked": partial(cases.asked, who=who)}, 2, tmp_path)
    assert ranks.value(results, "asked") == [{"before": False, "items": [], "stopped": True}] * 2


def test_a_second_interrupt_from_the_keyboard_is_obeyed() -> None:
    from sam_ds.engine.preemption import StopFlag

    kept = {number: signal.getsignal(number) for number in STOP}
    try:
        stop = StopFlag()
        stop.listen()
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
