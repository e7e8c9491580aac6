"""Mutants of guards without a number: admission, cost of a client, bugs that were fixed."""

from __future__ import annotations

from tests.mutants.workshop import Mutant

__all__ = ["OTHERS"]

POLICY = "channels/policy.py"
POLICIES = "tests/channels/test_policy.py::"
ENGINE = "http/engine.py"
BOUNDS = "tests/http/test_http_bounds.py::"
PENDING = "tests/http/test_pending.py::"
START_STOP = "tests/supervision/test_twins_start_stop.py::"
PROMISES = "tests/mutants/test_promises.py::"

GATE = (
    Mutant(
        "gate",
        "admin-needs-the-operator",
        "anybody gets a token for the topic admin",
        POLICY,
        "if refusal is None and channel == ADMIN and not self.is_operator(bearer):",
        "if False:",
        (f"{POLICIES}test_tokens_are_minted_by_the_policy",),
    ),
    Mutant(
        "gate",
        "no-operator-without-a-token",
        "an empty token is the operator's where none is set",
        POLICY,
        "if bearer is None or not self._operator_token:\n            return False\n"
        "        return hmac.compare_digest(bearer.encode(), self._operator_token.encode())",
        "return hmac.compare_digest((bearer or '').encode(), (self._operator_token or '').encode())",
        (f"{POLICIES}test_without_an_operator_token_there_is_no_operator",),
    ),
    Mutant(
        "gate",
        "token-names-its-topic",
        "a token is good for every topic",
        POLICY,
        "        if claims.channel != topic:\n            return WRONG_CHANNEL\n",
        "",
        (f"{POLICIES}test_a_join_needs_a_token_for_its_topic",),
    ),
    Mutant(
        "gate",
        "own-stream",
        "a browser may join another's stream",
        POLICY,
        "if topic.startswith(STREAMING) and topic != STREAMING + id_:",
        "if False:",
        (f"{POLICIES}test_a_join_needs_a_token_for_its_topic",),
    ),
    Mutant(
        "gate",
        "a-plugin-that-cannot-answer",
        "a join passes where a plugin's authorize raises",
        POLICY,
        "error=type(error).__name__)\n                return UNAVAILABLE",
        "error=type(error).__name__)\n                return None",
        (f"{POLICIES}test_sync_authorize_functions_allow_or_refuse",),
    ),
    Mutant(
        "gate",
        "origin",
        "a page of any origin may open a WebSocket",
        POLICY,
        'return None if self.origins.allows(info.origin, info.headers.get("host")) else ORIGIN',
        "return None",
        (f"{POLICIES}test_origins_are_checked_for_tokens_and_upgrades",),
    ),
    Mutant(
        "gate",
        "rebinding",
        "a name that equals the Host header is ours",
        "channels/origins.py",
        "            return False\n        return address.is_loopback",
        '            return _host_of(f"http://{host}") == name\n        return address.is_loopback',
        ("tests/channels/test_origins.py::test_own_hosts_and_loopback_are_allowed",),
    ),
    Mutant(
        "gate",
        "rate",
        "an address may do as much as it likes",
        "channels/limits.py",
        "        allowed = level >= 1.0\n",
        "        allowed = True\n",
        ("tests/channels/test_limits.py::test_a_burst_then_the_rate",),
    ),
    Mutant(
        "gate",
        "restart-needs-the-token",
        "anybody may restart a plugin over HTTP",
        "web/operator.py",
        "        access.require_token(request)\n",
        "",
        ("tests/web/test_operator.py::test_a_restart_needs_the_token_from_everywhere",),
    ),
    Mutant(
        "files",
        "traversal",
        "a path may lead out of its folder",
        "routing/files.py",
        "    if base not in path.parents:\n        raise HTTPException(404)\n",
        "",
        ("tests/routing/test_files.py::test_paths_outside_the_root_are_not_found",),
        raises=("JSONDecodeError",),
    ),
)

COSTS = (
    Mutant(
        "bounds",
        "backlog",
        "a client that does not read fills the memory",
        "channels/outbox.py",
        "        self._keys.clear()\n        self.close(OVERLOAD)\n        return False",
        "        return True",
        ("tests/channels/test_outbox.py::test_an_overflow_closes_with_overload",),
    ),
    Mutant(
        "bounds",
        "connections",
        "connections are taken without bound",
        ENGINE,
        "full = self._open >= self._max_connections",
        "full = False",
        (f"{BOUNDS}test_connections_over_the_bound[native]",),
    ),
    Mutant(
        "bounds",
        "head",
        "a request's head may be of any size",
        "http/native/connection.py",
        "                if len(stream.buffer) > settings.max_header_bytes:\n",
        "                if False:\n",
        (f"{BOUNDS}test_head_over_the_bound[native]",),
    ),
    Mutant(
        "bounds",
        "head-time",
        "a request's head may take for ever",
        "http/native/connection.py",
        "                timeout = max(0.0, started + settings.header_timeout - _now())\n",
        "",
        (f"{BOUNDS}test_one_byte_a_second_costs_its_own_connection[native]",),
    ),
    Mutant(
        "bounds",
        "body",
        "a declared body may be of any size",
        "http/native/exchange.py",
        "        if self.request.length > self._limit > 0:\n",
        "        if False:\n",
        (f"{BOUNDS}test_declared_body_over_the_bound[native]",),
        raises=("RemoteProtocolError",),
    ),
    Mutant(
        "bounds",
        "pending",
        "unfinished messages of all clients together have no bound",
        "http/pending.py",
        "        if ledger.total > ledger.bound > 0:\n",
        "        if False:\n",
        (f"{PENDING}test_old_and_large_items_go_first",),
    ),
    Mutant(
        "bounds",
        "body-time",
        "a body as a whole may take for ever",
        "http/native/exchange.py",
        "data = await self._stream.read(min(pause, left))",
        "data = await self._stream.read(pause)",
        (f"{PENDING}test_a_body_has_a_time_limit_as_a_whole[native-0]",),
    ),
    Mutant(
        "bounds",
        "message-time",
        "pings extend the time of an unfinished message",
        "http/pending.py",
        "return self.size > 0 and now - self.since > self._ledger.time_for(self.size)",
        "return False",
        (f"{PENDING}test_a_finished_item_counts_no_longer",),
    ),
    Mutant(
        "bounds",
        "inflated",
        "a compressed frame inflates to the largest message",
        "http/native/message_assembly.py",
        "min(size, MAX_INFLATED) if self.protocol.extensions else size",
        "size",
        ("tests/http/native/test_hold.py::test_a_compression_bomb_is_closed_with_1009",),
        raises=("TooSlowError",),
    ),
    Mutant(
        "bounds",
        "close-within-a-message",
        "a close frame between two fragments is an error of the protocol",
        "http/native/handshake.py",
        "            self.current_size = None\n",
        "            pass\n",
        ("tests/http/native/test_websocket.py::test_client_closes_in_the_middle_of_a_message",),
    ),
)

MENDED = (
    Mutant(
        "mended",
        "temporary-is-never-retried",
        "a temporary child whose requested restart fails is retried",
        "supervision/decide.py",
        "        if entry.asked is not None or once:\n",
        "        if entry.asked is not None:\n",
        (f"{START_STOP}test_a_temporary_child_whose_requested_restart_fails_is_not_retried",),
    ),
    Mutant(
        "mended",
        "gap-is-told",
        "members are not told that a bus which restarted alone has a gap",
        "gateway/channels.py",
        "            self.hub.interrupted()\n",
        "            pass\n",
        ("tests/app/test_strategies.py::test_a_bus_that_restarts_alone_sends_phx_error_to_members",),
    ),
    Mutant(
        "mended",
        "old-connections-are-not-heard",
        "what a client still says to an incarnation that has ended is published by the next",
        "gateway/session.py",
        "if outbox.disconnect is not None or owner.ended:",
        "if outbox.disconnect is not None:",
        ("tests/app/test_incarnations.py::test_messages_on_an_old_connection_are_ignored",),
    ),
    Mutant(
        "mended",
        "secrets",
        "the operator's token is shown with its record",
        "app/tree.py",
        "    operator: str = attrs.field(repr=False)",
        "    operator: str = attrs.field()",
        (f"{PROMISES}test_secrets_do_not_show",),
    ),
)

OTHERS = (*GATE, *COSTS, *MENDED)
