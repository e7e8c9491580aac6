from __future__ import annotations

import tracemalloc
from typing import Any

import msgspec
import pytest

from tangram.channels.origins import OriginPolicy
from tangram.channels.policy import Authorizer, ConnectInfo
from tangram.gateway.channels import Channels
from tangram.gateway.tokens import MAX_BODY, TokenAnswer, issue_token, token_router
from tangram.routing import Mount, RouteTable
from tests.channels.fakes import FakeBus, Settings
from tests.http.serving import OPERATOR, make_channels

STRANGER = ConnectInfo("192.0.2.7")


async def ask(
    body: bytes,
    *,
    content_type: str | None = "application/json",
    authorization: str | None = None,
    info: ConnectInfo = ConnectInfo("127.0.0.1"),  # noqa: B008 - frozen
    channels: Channels | None = None,
) -> TokenAnswer:
    gate = (channels or make_channels(FakeBus())).gate
    return await issue_token(gate, body, content_type=content_type, authorization=authorization, info=info)


async def test_a_token_is_json() -> None:
    """The answer is 200 with channel, id and token; a random id has eight characters."""
    answer = await ask(b'{"channel":"obs"}')
    body = msgspec.json.decode(answer.body)

    assert (answer.status, answer.content_type) == (200, "application/json")
    assert set(body) == {"channel", "id", "token"}
    assert len(body["id"]) == 8
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"channel":"obs","id":"alice","unknown":[1]}', 200),
        (b'{"channel":"obs","id":null}', 200),
        (b'{"channel":"obs","id":""}', 200),
        (b'{"channel":"","id":""}', 422),
        (b"", 400),
        (b"not json", 400),
        (b'{"channel":"\xff"}', 400),
        (b"[" * 100_000, 400),
        (b"{}", 422),
        (b'{"channel":5}', 422),
        (b'{"channel":"obs","id":5}', 422),
        (b'["obs","x"]', 422),
        (b'"obs"', 422),
        (b'{"channel":"%b"}' % (b"x" * 256), 422),
        (b" " * (MAX_BODY + 1), 413),
        (b'{"channel":"admin"}', 403),
        (b'{"channel":"streaming-x","id":"y"}', 403),
    ],
)
async def test_each_error_has_its_status(body: bytes, status: int) -> None:
    """400: no JSON; 422: wrong shape; 413: too much; 403: refused by the policy."""
    answer = await ask(body)

    assert answer.status == status
    if status != 200:
        assert answer.content_type == "application/json"
        assert msgspec.json.decode(answer.body)["detail"]


async def test_other_fields_of_a_token_request_are_not_read() -> None:
    """A field that no client needs costs no objects: 200,000 arrays would take 14 MB."""
    body = b'{"channel":"obs","more":[%b[]]}' % (b"[]," * 200_000)
    tracemalloc.start()
    try:
        answer = await ask(body)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert answer.status == 200
    assert peak < 1_000_000


@pytest.mark.parametrize(
    ("body", "place", "words"),
    [
        (b'{"channel":""}', ["body", "channel"], "expected the name of a channel, got ''"),
        (b'{"channel":5}', ["body", "channel"], "expected `str`, got `int`"),
        (b"{}", ["body", "channel"], "field required"),
        (b'"obs"', ["body"], "expected `object`, got `str`"),
    ],
)
async def test_a_wrong_shape_is_reported_with_its_place(body: bytes, place: list[str], words: str) -> None:
    """422 has the form of all routes: a list of faults, each with place and expectation."""
    (fault,) = msgspec.json.decode((await ask(body)).body)["detail"]

    assert (fault["loc"], fault["msg"]) == (place, words)


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("application/json", 200),
        ("Application/JSON; charset=utf-8", 200),
        ("application/vnd.api+json", 200),
        (None, 415),
        ("text/plain", 415),
        ("application/jsonx", 415),
        ("application/x-www-form-urlencoded", 415),
    ],
)
async def test_only_json_is_read(content_type: str | None, status: int) -> None:
    """A form of a foreign page, which needs no preflight, is refused by its content type."""
    assert (await ask(b'{"channel":"obs"}', content_type=content_type)).status == status


@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        (f"Bearer {OPERATOR}", 200),
        (f"bearer {OPERATOR}", 200),
        (OPERATOR, 403),
        (f"Basic {OPERATOR}", 403),
        (None, 403),
    ],
)
async def test_admin_needs_the_operators_token(authorization: str | None, status: int) -> None:
    """Only the operator's bearer token gets a token for admin."""
    assert (await ask(b'{"channel":"admin"}', authorization=authorization)).status == status


class Translated(str):
    """A text of a class of its own, as libraries for translations return it."""

    __slots__ = ()


async def test_plugins_and_rates_refuse_with_a_reason() -> None:
    """403 with the plugin's reason; 429 with a time to retry."""
    for reason in ("members only", Translated("members only")):
        channels = make_channels(FakeBus(), authorizers=[Authorizer("p", lambda *_, text=reason: text)])
        assert (await ask(b'{"channel":"obs"}', channels=channels)).body == b'{"detail":"members only"}'

    channels = make_channels(FakeBus(), Settings(token_rate=1, token_burst=1))
    await ask(b'{"channel":"obs"}', channels=channels, info=STRANGER)
    limited = await ask(b'{"channel":"obs"}', channels=channels, info=STRANGER)
    assert limited.status == 429
    assert limited.headers["retry-after"] == "1"


async def call(
    channels: Channels | None, method: str, body: bytes = b"", path: str = "/token"
) -> tuple[int, dict[bytes, bytes], bytes]:
    """Send one request through a route table."""
    table = RouteTable([Mount(token_router(lambda: channels), "tangram", lambda _: None)])
    scope: dict[str, Any] = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(b"content-type", b"application/json"), (b"host", b"localhost")],
        "client": ("127.0.0.1", 9),
    }
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    await table(scope, receive, send)
    return (
        sent[0]["status"],
        dict(sent[0]["headers"]),
        b"".join(message.get("body", b"") for message in sent[1:]),
    )


async def test_the_route_answers_token_requests() -> None:
    """POST /token is answered; other methods are 405; without an incarnation it is 503."""
    channels = make_channels(FakeBus())

    status, headers, body = await call(channels, "POST", b'{"channel":"obs","id":"alice"}')
    assert status == 200
    assert headers[b"content-type"].startswith(b"application/json")
    assert msgspec.json.decode(body)["id"] == "alice"
    assert (await call(channels, "POST", b"{}"))[0] == 422
    status, headers, _ = await call(channels, "GET")
    assert status == 405
    assert b"POST" in headers[b"allow"]
    assert (await call(None, "POST", b'{"channel":"obs"}'))[0] == 503


PAGE = ConnectInfo("192.0.2.7", {"host": "maps.example:2346"}, origin="http://maps.example:2346")
ELSEWHERE = ConnectInfo("192.0.2.8", {"host": "maps.example:2346"})


def page(answer: TokenAnswer, **headers: str) -> ConnectInfo:
    """Return the next request of a page that keeps the cookie of an answer."""
    cookie = answer.headers["set-cookie"].partition(";")[0]
    return ConnectInfo(
        PAGE.address, {**PAGE.headers, "cookie": f"other=1; {cookie}", **headers}, origin=PAGE.origin
    )


async def test_a_page_of_our_origin_has_its_stream_alone() -> None:
    """Its public id gets another client no token; its own requests need no change."""
    channels = make_channels(FakeBus(), origins=OriginPolicy(hosts=["maps.example"]))
    first = await ask(b'{"channel":"system"}', channels=channels, info=PAGE)
    id_ = msgspec.json.decode(first.body)["id"]
    wanted = msgspec.json.encode({"channel": f"streaming-{id_}", "id": id_})

    stolen = await ask(wanted, channels=channels, info=ELSEWHERE)
    assert (stolen.status, stolen.body) == (403, b'{"detail":"id of another client"}')
    for info in (PAGE, ConnectInfo("192.0.2.8", {**PAGE.headers, "cookie": "tangram_ids=x.y"})):
        assert (await ask(wanted, channels=channels, info=info)).status == 403
    assert (await ask(wanted, channels=channels, info=page(first))).status == 200
    assert set(msgspec.json.decode(first.body)) == {"channel", "id", "token"}
    assert "HttpOnly; SameSite=Strict" in first.headers["set-cookie"]


async def test_a_browser_keeps_the_proofs_of_several_pages() -> None:
    """Sixteen tabs of one browser have an id each."""
    channels = make_channels(FakeBus(), origins=OriginPolicy(hosts=["maps.example"]))
    answers = [await ask(b'{"channel":"system"}', channels=channels, info=PAGE)]
    for _ in range(15):
        answers.append(await ask(b'{"channel":"system"}', channels=channels, info=page(answers[-1])))

    for answer in answers:
        id_ = msgspec.json.decode(answer.body)["id"]
        again = msgspec.json.encode({"channel": "weather", "id": id_})
        assert (await ask(again, channels=channels, info=page(answers[-1]))).status == 200


@pytest.mark.parametrize(
    ("headers", "origin"),
    [
        ({"host": "maps.example:2347"}, "http://maps.example:2346"),
        ({"host": "maps.example", "sec-fetch-site": "same-site"}, "http://maps.example"),
        ({"host": "maps.example"}, None),
    ],
)
async def test_clients_that_cannot_keep_a_cookie_have_open_ids(
    headers: dict[str, str], origin: str | None
) -> None:
    """The published front end on another port sends its id without a proof, and still works."""
    info = ConnectInfo("192.0.2.7", headers, origin=origin)
    channels = make_channels(FakeBus(), origins=OriginPolicy(hosts=["maps.example"]))
    first = await ask(b'{"channel":"system"}', channels=channels, info=info)
    id_ = msgspec.json.decode(first.body)["id"]

    assert "set-cookie" not in first.headers
    wanted = msgspec.json.encode({"channel": f"streaming-{id_}", "id": id_})
    assert (await ask(wanted, channels=channels, info=info)).status == 200


@pytest.mark.parametrize("mode", ["auto", "proven"])
async def test_a_program_asks_for_a_proof(mode: Any) -> None:
    """With the field ``proof`` it gets one, and sends it with the next request."""
    channels = make_channels(FakeBus(), Settings(ids=mode))
    first = msgspec.json.decode((await ask(b'{"channel":"a","proof":null}', channels=channels)).body)
    again = {"channel": "b", "id": first["id"], "proof": first["proof"]}

    assert (await ask(msgspec.json.encode(again), channels=channels)).status == 200
    for proof in (None, "wrong"):
        body = msgspec.json.encode({**again, "proof": proof})
        assert (await ask(body, channels=channels)).status == 403
    as_operator = await ask(
        msgspec.json.encode({"channel": "b", "id": first["id"]}),
        channels=channels,
        authorization=f"Bearer {OPERATOR}",
    )
    assert as_operator.status == 200
