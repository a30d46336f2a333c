"""A device's numbers are looked at when they have arrived; here the way they take is played by hand."""

import copy
import gc
import weakref

import pytest
import torch
from gpu_support import gpu

from efa_addons import late as module
from efa_addons.late import Late, late
from efa_addons.ops.tracing import capturing

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def way(monkeypatch):
    """Numbers on their way, each with whether it has arrived; and whether a graph is captured."""

    class Way:
        sent, capturing = [], False

        def arrive(self):
            self.sent[-1][1] = True

    played = Way()
    played.sent = []

    def send(number):
        played.sent.append([number, False])
        own = played.sent[-1]
        return number, lambda: own[1]

    monkeypatch.setattr(module, "_send", send)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: played.capturing)
    return played


def number(value):
    return lambda: torch.tensor(float(value))


def test_on_a_cpu_at_once(way):
    look = Late(every=4)
    assert [look(CPU, number(i)) for i in range(5)] == [0, 1, 2, 3, 4] and way.sent == []


def test_on_a_gpu_the_first_is_waited_for_and_others_when_they_are_there(way):
    look = Late()
    assert look(GPU, number(1)) == 1.0 and way.sent == []
    assert look(GPU, number(2)) is None and look(GPU, lambda: 1 / 0) is None  # one is on its way: no other is made
    way.arrive()
    assert look(GPU, number(4)) == 2.0
    assert look(GPU, number(5)) is None and len(way.sent) == 2
    way.arrive()
    assert look(GPU, number(6)) == 4.0


def test_every_so_many_calls(way):
    look = Late(every=4)
    assert look(GPU, number(1)) == 1.0
    assert [look(GPU, lambda: 1 / 0) for _ in range(2)] == [None, None]
    assert look(GPU, number(4)) is None
    way.arrive()
    assert look(GPU, lambda: 1 / 0) == 4.0


def test_a_number_that_another_thread_takes_meanwhile(way):
    look = Late()
    look(GPU, number(1))

    def taken():
        look._sent = None
        return True

    look._sent = torch.tensor(2.0), taken
    assert look(GPU, number(3)) == 2.0


def test_nothing_is_looked_at_in_a_capture_or_where_nothing_is(way):
    look = Late()
    way.capturing = True
    assert look(GPU, lambda: 1 / 0) is None and look(torch.device("meta"), lambda: 1 / 0) is None
    way.capturing = False
    assert look(GPU, number(1)) == 1.0


def test_a_capture_on_a_device_that_is_not_the_current_one(monkeypatch):
    current = []

    class Device:
        def __init__(self, device):
            self.device = device

        def __enter__(self):
            current.append(self.device.index)

        def __exit__(self, *error):
            current.pop()

    monkeypatch.setattr(torch.cuda, "device", Device)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: current == [1])
    assert capturing(torch.device("cuda", 1)) and not capturing(torch.device("cuda", 0)) and not capturing(CPU)


@gpu
def test_where_tensors_are_made_on_a_gpu_unasked():
    look = Late()
    with torch.device("cuda"):
        found = [look(torch.device("cuda", 0), number(3)) for _ in range(3)]
    assert found[0] == 3.0 and set(found[1:]) <= {None, 3.0}


def test_each_owner_has_its_own(way):
    one = torch.nn.Linear(1, 1)
    other = copy.deepcopy(one)
    assert late(one, "width") is late(one, "width") is not late(other, "width")
    assert late(one, "width") is not late(one, "frequency")
    kept = weakref.ref(late(other, "width"))
    del other
    gc.collect()
    assert kept() is None
