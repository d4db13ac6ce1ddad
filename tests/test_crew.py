"""What a caller and its ranks say to each other, what is a fault, and where ranks run; no processes are started."""

from __future__ import annotations

import socket
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import engine
from engine import ModelSource, ParallelConfig, PoolFull, WorkerLost
from engine.parallel.layout import Exchange
from engine.parallel.links import Links, same
from engine.ranks.control import Inbox, Message, ProtocolError, admit, call, plain, receive, send
from engine.ranks.crew import Crew, Rank
from engine.ranks.far import Reader, Writer
from engine.ranks.journal import Journal
from engine.ranks.launch import Placement, Torchrun, exchange_of
from engine.ranks.planning import Planning
from engine.ranks.remote import check_same
from engine.spec import DenoiserSpec
from tests.worlds import TINY


@pytest.fixture
def pair():
    made = socket.socketpair()
    for link in made:
        link.settimeout(5)
    yield made
    for link in made:
        link.close()


def test_messages_survive_the_way_whole_or_in_pieces(pair):
    here, there = pair
    told = Message({"a": [1, 2.5, None]}, {"x": torch.arange(6.0)[::2], "y": torch.ones(2, 2, dtype=torch.bfloat16)})
    send(here, told)
    got = receive(there)
    assert got.told == told.told
    assert all(torch.equal(got.tensors[name], x) for name, x in told.tensors.items())
    inbox, made = Inbox(), []
    stream = b"".join(told.encode()) * 2
    for i in range(0, len(stream), 7):
        made += inbox.add(stream[i : i + 7])
    assert [m.told for m in made] == [told.told] * 2


@pytest.mark.parametrize(
    "garbage", [b"\xff" * 64, b"\0" * 7 + b"\x05" + b"\0" * 8 + b"hello", b"GET / HTTP/1.1\r\n\r\n"]
)
def test_garbage_is_no_message(pair, garbage):
    here, there = pair
    here.sendall(garbage)
    here.shutdown(socket.SHUT_WR)
    with pytest.raises((ProtocolError, EOFError)):
        receive(there)
    with pytest.raises(ProtocolError):
        list(Inbox().add(garbage + bytes(64)))


def caller(server: socket.socket, secret: bytes, found: list) -> None:
    link, _ = server.accept()
    link.settimeout(5)
    try:
        found.append(admit(link, secret))
    except (ProtocolError, EOFError, OSError) as error:
        found.append(error)
    link.close()


@pytest.mark.parametrize("theirs", [b"secret", b"another"])
def test_only_who_knows_the_secret_is_let_in(theirs):
    with socket.create_server(("127.0.0.1", 0)) as server:
        found: list = []
        thread = threading.Thread(target=caller, args=(server, b"secret", found))
        thread.start()
        if theirs == b"secret":
            call(server.getsockname(), theirs, 1, 5.0).close()
        else:
            with pytest.raises((EOFError, OSError)):
                call(server.getsockname(), theirs, 1, 5.0)
        thread.join()
    assert found[0] == 1 if theirs == b"secret" else isinstance(found[0], ProtocolError)


def test_a_rank_refuses_a_caller_that_does_not_know_the_secret():
    """Who listens there answers with any proof."""

    def pretend(server: socket.socket) -> None:
        link, _ = server.accept()
        send(link, plain({"protocol": 1, "nonce": "x"}))
        receive(link)
        send(link, plain({"proof": "0" * 64}))
        link.close()

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=pretend, args=(server,))
        thread.start()
        with pytest.raises(ProtocolError, match="secret"):
            call(server.getsockname(), b"secret", 1, 5.0)
        thread.join()


def test_values_come_back_as_they_went():
    values = [
        None,
        True,
        3,
        2.5,
        "x",
        [1, (2, 3)],
        {"a": b"bytes", 1: b""},
        np.arange(3, dtype=np.int16),
        np.float32(2),
    ]
    writer = Writer()
    told = writer.write(values)
    back = Reader(writer.tensors, lambda name: pytest.fail("names nothing")).read(told)
    assert back[:7] == values[:7]
    assert back[7].dtype == np.int16
    assert back[7].tolist() == [0, 1, 2]
    assert back[8] == 2.0
    with pytest.raises(ValueError, match="cannot be sent"):
        Writer().write(np.array([object()]))


# Ranks that are threads: what a caller makes of what they say.


def rank_that(says, link: socket.socket) -> None:
    """Read one request, and send messages until there are no more or nobody listens."""
    try:
        receive(link)
        for told in says:
            send(link, plain(told))
            time.sleep(0.05)
    except (OSError, EOFError):
        return


@pytest.fixture
def crew_of():
    """A crew of ranks that say given things, and what becomes of a request to them."""
    made, threads = [], []

    def make(*ranks, timeout: float = 1.0) -> Crew:
        pairs = [socket.socketpair() for _ in ranks]
        jobs = [(says, there) for says, (_, there) in zip(ranks, pairs, strict=True)]
        threads.extend(threading.Thread(target=rank_that, args=job) for job in jobs)
        made.extend(pairs)
        for thread in threads:
            thread.start()
        return Crew([Rank(i, here) for i, (here, _) in enumerate(pairs)], timeout)

    yield make
    for pair in made:
        for link in pair:
            link.close()
    for thread in threads:
        thread.join()


def beats(progress: int):
    return ({"beat": progress} for _ in range(1000))


def error(name: str, words: str, **told):
    return {"error": name, "words": words, "kind": "error", "fault": False} | told


def test_where_nobody_moves_on_the_one_that_came_least_far_is_named(crew_of):
    crew = crew_of(beats(5), beats(3))
    with pytest.raises(WorkerLost, match=r"rank 1 made no progress for 1 s.*timeout"):
        crew.ask(plain({"op": "step"}), together=True)
    with pytest.raises(WorkerLost, match="recover"):
        crew.ask(plain({"op": "step"}))


def test_a_rank_that_gave_up_is_named_and_not_the_one_that_waits_for_it(crew_of):
    crew = crew_of([error("ValueError", "no such action")], beats(3))
    with pytest.raises(WorkerLost, match=r"rank 0 failed, and not as the others did: ValueError: no such action"):
        crew.ask(plain({"op": "step"}), together=True)


def test_silence_is_a_fault_though_others_go_on(crew_of):
    crew = crew_of(({"beat": i} for i in range(1000)), [])
    with pytest.raises(WorkerLost, match=r"rank 1 gave no sign of life"):
        crew.ask(plain({"op": "step"}), together=True)


def test_a_slow_request_is_no_fault_while_ranks_move_on(crew_of):
    slow = [*({"beat": i} for i in range(25)), {"value": 1, "worlds": {}}]
    assert [m.told["value"] for m in crew_of(slow, slow).ask(plain({"op": "step"}), together=True)] == [1, 1]


@pytest.mark.parametrize("kind", [ValueError, PoolFull, KeyError])
def test_what_all_raise_alike_is_raised_and_the_ranks_go_on(crew_of, kind):
    crew = crew_of(*[[error(kind.__name__, "no")] for _ in range(2)])
    with pytest.raises(kind, match="no"):
        crew.ask(plain({"op": "step"}))
    assert not crew.lost


def test_out_of_memory_is_the_cause_and_the_others_lost_link_is_not(crew_of):
    memory = error("OutOfMemoryError", "tried to allocate 2 GiB", kind="memory", fault=True)
    link = error("RuntimeError", "gloo: connection closed by peer", kind="link", fault=True)
    with pytest.raises(
        WorkerLost, match=r"rank 1 ran out of memory: OutOfMemoryError: tried to allocate 2 GiB"
    ) as caught:
        crew_of([link], [{"beat": 1}, memory]).ask(plain({"op": "step"}))
    assert caught.value.rank == 1


def test_a_rank_of_another_machine_that_hangs_up_has_lost_its_link(crew_of):
    crew = crew_of(beats(1), beats(1))
    threading.Timer(0.2, crew.ranks[1].link.shutdown, (socket.SHUT_RD,)).start()
    with pytest.raises(WorkerLost, match="rank 1 lost its link: its connection was closed"):
        crew.ask(plain({"op": "step"}))


@pytest.mark.parametrize("name", ["torch", "weights", "exchange"])
def test_ranks_that_run_something_else_are_refused(name):
    facts = [{"torch": "2.13", "weights": "aa", "exchange": "Ulysses 2"} for _ in range(3)]
    check_same(facts)
    facts[2][name] = "other"
    with pytest.raises(ValueError, match=f"rank 2 runs {name} 'other', rank 0 runs '{facts[0][name]}'"):
        check_same(facts)
    with pytest.raises(ValueError, match=f"rank 1 runs {name} 'other', the ranks before ran"):
        check_same([facts[0], facts[1], facts[2]], before=True)


def test_a_journal_is_due_after_so_many_steps():
    journal = Journal(2)
    step, opened = plain({"op": "step"}), plain({"op": "open"})
    for message in (opened, step):
        journal.add(message, [])
    assert not journal.due
    journal.add(step, [])
    assert journal.due
    assert [m.told["op"] for m, _ in journal.since] == ["open", "step", "step"]
    journal.begin({3: b"x"})
    assert not journal.due
    assert not journal.since
    never = Journal(0)
    never.add(step, [])
    assert not never.due
    assert not never.since


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ranks": 0}, "ranks 0"),
        ({"ranks": "two"}, "ranks 'two'"),
        ({"exchange": "ulises"}, "exchange 'ulises'"),
        ({"backend": "mpi"}, "backend 'mpi'"),
        ({"timeout": 0.0}, "timeout 0.0"),
        ({"snapshot_every": -1}, "snapshot_every -1"),
    ],
)
def test_what_no_config_is(changes, words):
    with pytest.raises(ValueError, match=words):
        ParallelConfig(**changes)


def test_short_forms_of_a_config():
    assert ParallelConfig.of(2) == ParallelConfig(2)
    assert ParallelConfig.of("auto") == ParallelConfig()
    for wrong in (True, 2.0, [2]):
        with pytest.raises(ValueError, match="a number of ranks"):
            ParallelConfig.of(wrong)


def test_where_ranks_run():
    assert Placement.of(ParallelConfig(2), "cpu", None) == Placement(2, "cpu", None, "gloo", 2)
    run = Torchrun(1, 4, 1, 2, "somewhere", 1, True)
    assert Placement.of(ParallelConfig(), "cpu", run) == Placement(4, "cpu", None, "gloo", 2)
    with pytest.raises(ValueError, match="torchrun has started 4"):
        Placement.of(ParallelConfig(2), "cpu", run)
    if not torch.cuda.is_available():
        assert Placement.of(ParallelConfig(), "cpu", None).ranks == 1
        with pytest.raises(ValueError, match="this machine has 0 CUDA devices"):
            Placement.of(ParallelConfig(2), "cuda", None)
    assert str(exchange_of("ring", 2)) == "ring pass-KV 2"
    assert exchange_of("ulysses", 1) == Exchange()
    with pytest.raises(ValueError, match="of 4 ranks: expected one of 2"):
        exchange_of(Exchange(4), 2)


def test_a_source_survives_the_way():
    preset = engine.PRESETS["self-forcing-i2v"]
    source = ModelSource.of(Path("a"), torch.float32, preset, size=[64, 64], base=Path("b"), lora=None)
    assert ModelSource.from_dict(source.to_dict()) == source
    assert hash(source) == hash(ModelSource.of("a", "float32", preset, size=(64, 64), base="b", lora=None))
    magi = ModelSource.of("a", None, engine.PRESETS["magi-4.5b-base"])
    assert ModelSource.from_dict(magi.to_dict()) == magi


def test_the_planner_is_asked_again_once_its_plan_is_outgrown():
    """Slow links make one rank the choice; fast ones do not. Other worlds are another plan, made once."""
    facts = {"name": "NVIDIA H100", "memory": 8e10, "dtype": "bfloat16", "weights": 10**6, "reserved": 0}
    spec = replace(TINY, frame=(1024, 1024), denoiser=DenoiserSpec(width=2048, layers=8, heads=16))
    made = [Planning(spec, spec.kv, None, Links("by hand", 2, same(late, 1e12)), facts, 1) for late in (1.0, 1e-9)]
    assert str(made[0].choose([1])) == "one rank"
    assert made[1].choose([1]).ranks == 2
    first = made[1].plan
    assert made[1].choose([1]).ranks == 2
    assert made[1].plan is first
    made[1].choose([1, 2])
    assert made[1].plan is not first
    assert len(made[1].plans) == 2
