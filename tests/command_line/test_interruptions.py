"""SIGINT, SIGTERM and SIGHUP interrupt the program, or are held until the window is over. None is lost."""

from __future__ import annotations

import signal
import weakref

import pytest

from vmsnapshot.interruptions import Interruptions


def test_first_signal_interrupts_and_the_second_does_not_interrupt_the_clean_up() -> None:
    with Interruptions() as interruptions:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert interruptions.noted == ["SIGTERM", "SIGTERM"]


def test_held_signal_interrupts_at_the_release() -> None:
    with Interruptions() as interruptions:
        interruptions.hold()
        signal.raise_signal(signal.SIGHUP)
        with pytest.raises(KeyboardInterrupt):
            interruptions.release()
        signal.raise_signal(signal.SIGINT)
        assert interruptions.noted == ["SIGHUP", "SIGINT"]


def test_signal_after_the_release_interrupts() -> None:
    with Interruptions() as interruptions:
        interruptions.hold()
        interruptions.release()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_signal_whose_exception_python_swallows_is_obeyed_when_asked() -> None:
    class Referred:
        """Something that a weak reference can be made to."""

    referred = Referred()
    reference = weakref.ref(referred, lambda _: signal.raise_signal(signal.SIGTERM))
    with Interruptions() as interruptions:
        interruptions.obey()
        del referred
        assert reference() is None
        assert interruptions.noted == ["SIGTERM"]
        with pytest.raises(KeyboardInterrupt):
            interruptions.obey()


def test_signal_handlers_are_restored() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Interruptions():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
