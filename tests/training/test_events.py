import io
import subprocess
import sys

from rich.console import Console

from crossadapt.training.events import Display, Events, Meter, read_events


def test_events_after_the_checkpoint_and_the_end_are_dropped(tmp_path):
    path = tmp_path / "events.jsonl"
    with Events(path) as events:
        for step in range(5):
            events.add("step", step, loss=1.0)
        events.add("end", 2, status="interrupted")
    with path.open("a") as file:
        file.write('{"event": "step", "st')
    with Events(path, after=2) as events:
        events.add("step", 3, loss=2.0)
    found = read_events(path)
    assert [(e["event"], e["step"]) for e in found] == [("step", n) for n in range(4)]
    assert found[-1]["loss"] == 2.0


def test_a_new_run_starts_a_new_file(tmp_path):
    path = tmp_path / "events.jsonl"
    for _ in range(2):
        with Events(path) as events:
            events.add("config", 0)
    assert len(read_events(path)) == 1


def test_a_process_without_a_file_says_nothing(tmp_path):
    with Events(None) as events:
        events.add("step", 1)
    assert not list(tmp_path.iterdir())


def show(terminal: bool, quiet: bool = False) -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=200)
    with Display(3, 0, quiet=quiet, console=console) as display:
        for step in range(1, 4):
            display.step(step, 0.5, 1e-3, 42.0)
        display.say("epoch 1: well")
    return console.file.getvalue()


def test_plain_lines_when_not_a_terminal(monkeypatch):
    monkeypatch.setattr("crossadapt.training.events.PLAIN_SECONDS", 0.0)
    lines = show(terminal=False).splitlines()
    assert lines[0].startswith("step 1/3  loss 0.5000  lr 1.00e-03  42 pairs/s  0:00:00 left")
    assert lines[-1] == "epoch 1: well"
    assert len(lines) == 4


def test_few_plain_lines_but_always_the_last():
    assert [line.split()[1] for line in show(terminal=False).splitlines()] == ["3/3", "1:"]


def test_a_bar_on_a_terminal_and_silence_when_asked():
    assert "step 3/3" in show(terminal=True)
    assert show(terminal=True, quiet=True) == ""
    assert show(terminal=False, quiet=True) == ""


def test_the_meter_reports_a_thousand_times_at_most():
    meter = Meter(5000)
    assert sum(meter.count(step, 10) for step in range(1, 5001)) == 1000
    assert meter.rate > 0


_PEAKS = """
from crossadapt.training.events import peak_memory, reset_peak_memory

reset_peak_memory()
before = peak_memory()
ballast = bytearray(64 * 2**20)
ballast[::4096] = b"x" * len(ballast[::4096])
grown = peak_memory()
del ballast
reset_peak_memory()
print(before, grown, peak_memory())
"""


def test_peak_memory_can_start_anew():
    # In a process of its own: where the system refuses to reset the peak (some sandboxes do), a
    # long test process has had a larger one already.
    done = subprocess.run(
        [sys.executable, "-c", _PEAKS], capture_output=True, text=True, check=True, timeout=120
    )
    before, grown, after = (float(word) for word in done.stdout.split())
    assert grown > before + 50
    assert after < grown + 1
