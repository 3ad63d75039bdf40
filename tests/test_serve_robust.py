"""Rude clients and hard times: slow, half, huge and broken requests; a full queue; many at once; the end."""

import asyncio
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from bert_miniatures.exporting import export
from bert_miniatures.predict import Predictor
from bert_miniatures.serve.batching import Batcher
from bert_miniatures.serve.failures import CODES, Refused
from bert_miniatures.serve.limits import Limits
from bert_miniatures.serve.meters import Meters, ModelMeters
from deploy import LABELS, PAIRS, TEXTS, classifier, written
from serving import held, memory, post_bytes, read_all, running, status_of

ONE = b'{"inputs": "a good film"}'


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("robust")
    labels = LABELS["single"].__class__("classification", ("bad", "good"), max_length=31)
    export(written(classifier(tiny, labels), folder / "model"), folder / "single")
    return folder / "single"


@pytest.fixture(scope="module")
def server(folder):
    with running({"single": folder}, reading=0.4, idle=0.8) as found:
        yield found


@pytest.fixture
def still_alive(server):
    """Whatever the test did, the next client is answered."""
    yield
    assert server.post("/predict", {"inputs": "a good film"}).status == 200


def code_of(answer: bytes) -> str:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/json" in head
    code = json.loads(body)["code"]
    assert status_of(answer) == CODES[code][0]
    return code


# ------------------------------------------------------------------------------------------------- rude clients

pytestmark = pytest.mark.usefixtures("still_alive")


def test_a_slow_client_is_answered_if_it_is_not_too_slow(server):
    request = post_bytes("/predict", ONE)
    parts = [request[i : i + 40] for i in range(0, len(request), 40)]
    assert status_of(server.raw(*parts, pause=0.05)) == 200


def test_a_head_that_never_ends(server):
    start = time.monotonic()
    assert code_of(server.raw(*[b"GET / HTTP/1.1\r\n"], *[b"X: y\r\n"] * 40, pause=0.05)) == "too-slow"
    assert time.monotonic() - start < 5


def test_a_body_that_never_ends(server):
    assert code_of(server.raw(post_bytes("/predict", ONE[:10], "Content-Length: 25"))) == "too-slow"


def test_silence_is_closed(server):
    assert server.raw() == b""
    keep = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    assert server.raw(keep).count(b'{"status":"ok"}') == 1


def test_a_head_of_megabytes(server):
    assert code_of(server.raw(b"GET / HTTP/1.1\r\n", b"X: " + b"y" * 100_000)) == "head-too-large"


@pytest.mark.parametrize(
    "request_", [b"\x16\x03\x01\x02\x00\x01", b"GET\r\n\r\n", b"hello\n\n", b"GET / HTTP/1.1\r\n:\r\n\r\n"]
)
def test_what_is_not_http(request_, server):
    assert code_of(server.raw(request_)) == "not-http"


def test_a_half_closed_socket_is_answered(server):
    assert status_of(server.raw(post_bytes("/predict", ONE), half_close=True)) == 200
    keep = post_bytes("/predict", ONE).replace(b"Connection: close\r\n", b"")
    assert status_of(server.raw(keep, half_close=True)) == 200
    assert server.raw(keep + keep, half_close=True).count(b"HTTP/1.1 200") == 2


def test_half_a_request_and_a_half_closed_socket(server):
    assert code_of(server.raw(post_bytes("/predict", ONE[:10], "Content-Length: 25"), half_close=True)) == "not-http"
    assert code_of(server.raw(b"POST /predict HT", half_close=True)) == "not-http"


def test_a_client_that_leaves(server):
    for request in (post_bytes("/predict", ONE[:10], "Content-Length: 25"), post_bytes("/predict", ONE), b"GET"):
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(request)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset


def test_requests_one_after_another_without_waiting(server, folder):
    texts = TEXTS[:23]
    bodies = [json.dumps({"inputs": text}).encode() for text in texts]
    keep = [post_bytes("/predict", body).replace(b"Connection: close\r\n", b"") for body in bodies[:-1]]
    answers = server.raw(b"".join([*keep, post_bytes("/predict", bodies[-1])]))
    scores = [json.loads(part.split(b"\r\n\r\n")[1])[0][0]["score"] for part in answers.split(b"HTTP/1.1 200")[1:]]
    assert scores == pytest.approx([one["score"] for one in Predictor(folder, threads=1)(texts)], abs=1e-6)


def test_chunks(server):
    chunks = b"".join(b"%x\r\n%c\r\n" % (1, letter) for letter in ONE) + b"0\r\n\r\n"
    assert status_of(server.raw(post_bytes("/predict", chunks, "Transfer-Encoding: chunked"))) == 200
    both = post_bytes("/predict", chunks, "Transfer-Encoding: chunked", "Content-Length: 3")
    assert code_of(server.raw(both)) == "not-http"


@pytest.mark.parametrize("chunked", [False, True])
def test_ten_megabytes_are_read_and_not_kept(chunked, server):
    part = b"good film " * 10_000
    if chunked:
        part, head = b"%x\r\n%b\r\n" % (len(part), part), post_bytes("/predict", b"", "Transfer-Encoding: chunked")
    else:
        head = post_bytes("/predict", b"", f"Content-Length: {100 * len(part)}")
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(head)
        before = memory()
        for _ in range(99):
            connection.sendall(part)
        time.sleep(0.1)
        assert memory() - before < 5e6
        connection.sendall(part + b"0\r\n\r\n" * chunked)
        assert code_of(read_all(connection)) == "body-too-large"


def test_a_body_that_asks_first_is_not_sent_in_vain(server):
    head = post_bytes("/predict", b"", "Content-Length: 9999999", "Expect: 100-continue")
    assert code_of(server.raw(head)) == "body-too-large"
    start = post_bytes("/predict", b"", f"Content-Length: {len(ONE)}", "Expect: 100-continue")
    answer = server.raw(start, ONE, pause=0.1)
    assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200")


def test_a_length_beyond_reason(server):
    for length in ("9" * 18, "9" * 40, "-1", "x"):
        assert status_of(server.raw(post_bytes("/predict", b"", f"Content-Length: {length}"))) in {400, 413}


def test_a_hundred_thousand_words(folder):
    text = "good film " * 50_000
    with running({"single": folder}, body=2_000_000, characters=1_000_000) as server:
        for words in (text, text.replace("film", "fílm")):
            answer = server.post("/predict", {"inputs": words})
            assert answer.status == 200
            assert answer.json[0][0]["score"] == pytest.approx(Predictor(folder)([words])[0]["score"], abs=1e-6)
        answer = server.post("/explain", {"inputs": text}).json
        assert (answer["cut"], answer["words_left_out"]) == (True, 100_000 - 64)


def test_the_same_hundred_thousand_words_are_too_many_by_default(server):
    assert server.post("/predict", {"inputs": "film " * 100_000}).code == "text-too-long"


@pytest.mark.parametrize("path", ["/%00", "/%ff", "/predict%0d%0aX: y", "/../../etc/passwd", "/models/%2e%2e/predict"])
def test_strange_paths(path, server):
    assert server.post(path.replace(" ", "%20"), {"inputs": "a"}).status == 404


def test_a_web_socket_is_not_had(server):
    upgrade = b"GET /predict HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade, close\r\n\r\n"
    assert status_of(server.raw(upgrade)) in {400, 405}


def test_too_many_connections(folder):
    with running({"single": folder}, connections=3) as server:
        waiting = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(3)]
        time.sleep(0.2)
        assert code_of(server.raw()) == "connections"
        for connection in waiting:
            connection.close()
        time.sleep(0.2)
        assert server.get("/health").status == 200


def test_a_client_that_does_not_read(folder):
    with running({"single": folder}, reading=0.5, queue=5000, texts=5000, body=10_000_000) as server:
        body = json.dumps({"inputs": ["a"] * 5000}).encode()
        one = post_bytes("/predict", body).replace(b"Connection: close\r\n", b"")
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", server.port))
            connection.settimeout(0.5)
            try:
                for _ in range(40):
                    connection.sendall(one)
            except (TimeoutError, OSError):
                pass
            for _ in range(100):
                time.sleep(0.05)
                if not server.service.server_state.connections:
                    break
            assert not server.service.server_state.connections


# ------------------------------------------------------------------------------------------------- hard times


def test_many_at_once_and_every_answer_belongs_to_its_text(folder):
    expected = Predictor(folder, threads=1)
    single, paired = expected(TEXTS), expected(TEXTS, PAIRS)
    with running({"single": folder}) as server:

        def ask(number: int) -> bool:
            i = number % len(TEXTS)
            if number % 3:
                found = server.post("/predict", {"inputs": TEXTS[i]}).json
                wanted = single[i : i + 1]
            else:
                found = server.post("/predict", {"inputs": [[TEXTS[i], PAIRS[i]], [PAIRS[i], TEXTS[i]]]}).json
                wanted = paired[i : i + 1]
            return found[0][0]["label"] == wanted[0]["label"] and abs(found[0][0]["score"] - wanted[0]["score"]) < 1e-6

        with ThreadPoolExecutor(13) as pool:
            assert all(pool.map(ask, range(400)))
        together = server.meter("batch_texts_count", model="single")
        assert together < server.meter("requests_total", path="/predict", status="200")


def test_a_full_queue_says_when_to_come_again(folder):
    with (
        running({"single": folder}, queue=7, texts=5, words=3) as server,
        held(server) as go,
        ThreadPoolExecutor(4) as pool,
    ):
        first = pool.submit(server.post, "/predict", {"inputs": ["a"]})
        time.sleep(0.3)  # the first one is being computed
        second = pool.submit(server.post, "/predict", {"inputs": ["a"] * 5})
        while server.meter("queue_texts", model="single") < 5:
            time.sleep(0.01)
        answer = server.post("/predict", {"inputs": ["a"] * 3})
        assert (answer.status, answer.code) == (429, "queue-full")
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        third = pool.submit(server.post, "/predict", {"inputs": ["a"] * 2})
        while server.meter("queue_texts", model="single") < 7:
            time.sleep(0.01)
        go.set()
        assert [one.result().status for one in (first, second, third)] == [200] * 3


def test_no_answer_in_time(folder):
    with running({"single": folder}, timeout=0.3) as server, held(server) as go, ThreadPoolExecutor(2) as pool:
        answers = [one.result() for one in [pool.submit(server.post, "/predict", {"inputs": "a"}) for _ in range(2)]]
        assert [(answer.status, answer.code) for answer in answers] == [(503, "timeout")] * 2
        assert "retry-after" in answers[0].headers
        assert server.meter("queue_texts", model="single") == 0
        go.set()
        assert server.post("/predict", {"inputs": "a"}).status == 200


def test_a_request_that_fails_spoils_no_other(folder, caplog, capfd):
    with running({"single": folder}) as server:
        engine = server.models.first.predictor.engine
        logits = engine.logits

        def fail(texts, pairs):
            if any("secret" in text for text in texts):
                raise RuntimeError(f"cannot do {texts}")
            return logits(texts, pairs)

        engine.logits = fail
        with held(server) as go, ThreadPoolExecutor(9) as pool:
            texts = ["a", "a secret", "b", "c"] * 2
            waiting = [pool.submit(server.post, "/predict", {"inputs": text}) for text in texts]
            time.sleep(0.3)
            go.set()
            answers = [one.result() for one in waiting]
        assert [answer.status for answer in answers] == [200, 500, 200, 200] * 2
        assert answers[1].code == "failed"
        assert "secret" not in answers[1].body.decode()
    said = caplog.text + capfd.readouterr().err
    assert "RuntimeError at " in said
    assert "secret" not in said


def test_stopping_answers_what_is_in_flight(folder):
    with running({"single": folder}) as server, held(server) as go, ThreadPoolExecutor(9) as pool:
        waiting = [pool.submit(server.post, "/predict", {"inputs": text}) for text in TEXTS[:9]]
        time.sleep(0.3)
        server.service.should_exit = True
        time.sleep(0.3)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", server.port), timeout=1).close()
        go.set()
        assert [one.result().status for one in waiting] == [200] * 9


def test_batches_stay_within_their_budget_and_wait_only_for_company(folder):
    """Requests come while one is computed; what waits is then taken in parts of at most `batch` positions."""
    predictor, seen = Predictor(folder, threads=1), []
    logits, go = predictor.engine.logits, threading.Event()

    def look(texts, pairs):
        seen.append(len(texts))
        go.wait(10)
        return logits(texts, pairs)

    predictor.engine.logits = look
    limits = Limits(batch=100, window=0.001)

    async def scenario():
        meters = ModelMeters(Meters(), "m", predictor.labels)
        batcher = Batcher(predictor, 31, limits, meters)
        batcher.start()
        waiting = [asyncio.create_task(batcher.logits([text], None)) for text in ["a"]]
        await asyncio.sleep(0.05)
        waiting += [asyncio.create_task(batcher.logits(["x" * 30] * 3, None)) for _ in range(7)]  # 39 positions each
        await asyncio.sleep(0.05)
        asyncio.get_running_loop().call_later(0.05, go.set)
        found = await asyncio.gather(*waiting)
        stopped = asyncio.create_task(batcher.logits(["late"], None))
        await asyncio.sleep(0)
        await batcher.stop()
        with pytest.raises(Refused):
            await stopped
        return found

    found = asyncio.run(scenario())
    assert seen[:5] == [1, 6, 6, 6, 3]
    for one in found[1:]:
        np.testing.assert_array_equal(one, predictor.logits(["x" * 30] * 3))


def test_memory_is_flat(server):
    body = {"inputs": TEXTS}
    for _ in range(20):
        server.post("/predict", body)
    before = memory()
    for i in range(60):
        assert server.post("/predict", {"inputs": [f"{text} {i}" for text in TEXTS]}).status == 200
        server.post("/predict", {"inputs": i})
    assert memory() - before < 8e6


def test_no_answer_waits_for_the_clients_acknowledgement(server):
    """Where an answer is more than one packet, with Nagle's algorithm the second may wait 40 ms."""
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        while not server.service.server_state.connections:
            time.sleep(0.01)
        (accepted,) = server.service.server_state.connections
        found = accepted.transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        connection.sendall(post_bytes("/predict", ONE))
        assert status_of(read_all(connection)) == 200
    assert found
