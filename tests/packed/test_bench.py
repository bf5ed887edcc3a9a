"""What the benchmark of packed runs counts and says."""

import json
import subprocess
import sys
import time

import pytest

from vpeft.packed.bench import Measured, Setting, bench, step, table, to_json

TINY = Setting("test_vit.r160_in1k", image_size=32, members=2, batch=4, steps=1, rounds=1)


def test_packing_saves_no_arithmetic():
    inside = step(TINY, turns=2)
    assert inside.operations["apart"] > 0
    assert inside.operations["packed"] == pytest.approx(inside.operations["apart"], rel=0.02)
    assert [len(seconds) for seconds in inside.seconds.values()] == [2, 2]
    assert inside.ratio > 0


def test_the_table_has_medians_and_ratios_within_rounds():
    rounds = [
        {
            "one after another": Measured(10.0, 10.0, 100 * 2**20, 2.0),
            "at once": Measured(6.0, 11.0, 300 * 2**20, 2.0),
            "packed": Measured(5.0, 6.0, 150 * 2**20, 1.0),
        },
        {
            "one after another": Measured(20.0, 20.0, 100 * 2**20, 4.0),
            "at once": Measured(12.0, 22.0, 300 * 2**20, 4.0),
            "packed": Measured(10.0, 16.0, 150 * 2**20, 3.0),
        },
    ]
    assert table(rounds).splitlines()[-1] == "| packed | 7.5 | 11.0 | 2.00 | 150 | 0.70 | 0.62 | 1.50 |"
    inside = step(TINY, turns=1)
    read = json.loads(to_json(TINY, rounds, inside))
    assert read["rounds"][1]["packed"]["cpu"] == 16.0
    assert read["setting"]["members"] == 2


def child(code):
    """In the place of a process that trains."""

    def start(files, threads):
        return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True), time.perf_counter()

    return start


def test_processes_are_summed_as_they_ran(monkeypatch):
    monkeypatch.setattr("vpeft.packed.bench._start", child("print('said'); print('[1048576, [0.5]]')"))
    (found,) = bench(TINY, say=lambda text: None)
    apart, at_once, packed = found.values()
    assert (apart.step, at_once.step, packed.step) == (1.0, 0.5, 0.5)
    assert 0 < packed.memory < at_once.memory < 2.1 * apart.memory
    assert packed.memory <= apart.memory * 1.1
    assert 0 < packed.cpu < apart.cpu


def test_a_process_that_fails_is_told(monkeypatch):
    monkeypatch.setattr("vpeft.packed.bench._start", child("print('no memory'); raise SystemExit(3)"))
    with pytest.raises(RuntimeError, match="A run ended with 3; what it said ends: no memory"):
        bench(TINY, say=lambda text: None)
