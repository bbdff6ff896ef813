"""What signals do to a process that catches them."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from st3.training.signals import ASKING, Interruption, Signals


@pytest.fixture(autouse=True)
def _as_usual():
    """What a process does that was not started in the background, where some signals are ignored."""
    before = {each: signal.signal(each, signal.SIG_DFL) for each in ASKING}
    yield
    for each, handler in before.items():
        signal.signal(each, handler)


@pytest.mark.parametrize("number", ASKING)
def test_a_signal_ends_what_is_under_way_with_its_exit_code(number):
    before = signal.getsignal(number)
    with pytest.raises(Interruption, match=number.name) as caught, Signals():
        os.kill(os.getpid(), number)
    assert caught.value.exit_code == 128 + number
    assert signal.getsignal(number) == before


@pytest.mark.parametrize("number", ASKING)
def test_a_noted_signal_waits_until_it_is_obeyed(number):
    with Signals() as signals:
        with signals.noted():
            signals.obey()
            os.kill(os.getpid(), number)
            done = True  # goes on
        with pytest.raises(Interruption, match=number.name):
            signals.obey()
    assert done


@pytest.mark.parametrize("number", ASKING)
def test_a_second_signal_ends_the_process_at_once_but_not_the_same_one_passed_on(number):
    code = (
        "import os, signal, sys, time; from st3.training.signals import ASKING, Signals\n"
        "for each in ASKING: signal.signal(each, signal.SIG_DFL)\n"
        "with Signals() as signals, signals.noted():\n"
        "    os.kill(os.getpid(), int(sys.argv[1])); print('first', flush=True)\n"
        "    os.kill(os.getpid(), int(sys.argv[1])); print('again', flush=True)\n"
        "    time.sleep(1.1); os.kill(os.getpid(), int(sys.argv[1])); print('second', flush=True)\n"
    )
    answer = subprocess.run([sys.executable, "-c", code, str(int(number))], capture_output=True, text=True)
    assert (answer.returncode, answer.stdout, answer.stderr) == (-number, "first\nagain\n", "")


def test_signals_that_somebody_else_handles_or_ignores_stay_with_them():
    seen, before = [], [signal.getsignal(each) for each in (signal.SIGUSR1, signal.SIGHUP)]
    signal.signal(signal.SIGUSR1, lambda *_: seen.append(1))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Signals():
            os.kill(os.getpid(), signal.SIGUSR1)
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGUSR1, before[0])
        signal.signal(signal.SIGHUP, before[1])
    assert seen == [1]


def test_another_thread_catches_nothing_and_can_work():
    done = []

    def work():
        with Signals() as signals, signals.noted():
            done.append(signals.asked)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [0]
