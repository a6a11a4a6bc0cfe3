"""Signals that ask for an end are obeyed, or held, and never lost."""

from __future__ import annotations

import signal
import weakref

import pytest

from vmsnapshot.interruptions import Interruptions


def test_signal_is_obeyed_and_the_next_one_does_not_interrupt_what_that_has_begun() -> None:
    with Interruptions() as interruptions:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert interruptions.noted == ["SIGTERM", "SIGTERM"]


def test_signal_that_came_while_held_is_obeyed_at_the_release() -> None:
    with Interruptions() as interruptions:
        interruptions.hold()
        signal.raise_signal(signal.SIGHUP)
        with pytest.raises(KeyboardInterrupt):
            interruptions.release()
        signal.raise_signal(signal.SIGINT)
        assert interruptions.noted == ["SIGHUP", "SIGINT"]


def test_release_without_a_signal_goes_on_and_obeys_again() -> None:
    with Interruptions() as interruptions:
        interruptions.hold()
        interruptions.release()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_whose_exception_python_swallows_is_obeyed_when_asked() -> None:
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


def test_handlers_are_as_before_in_the_end() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Interruptions():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
