"""The metrics as text for Prometheus and OpenMetrics, by ``prometheus-client``.

1. Names and labels are in this file, and each has a heading in ``docs/metrics.md``.
2. Nothing is counted here: a collector reads one `Moment` at each scrape.
3. A label has few values. Topics have none, unless ``[metrics] topics`` names them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from tangram.metrics.histogram import HistogramValues
from tangram.metrics.moment import Moment, ProcessNumbers, TopicNumbers

__all__ = ["MomentCollector", "write_metrics"]

_HTTP_LABELS: Final = ("http_request_method", "http_route", "http_response_status_code", "url_scheme")


def write_metrics(moment: Moment, accept: str) -> tuple[str, bytes]:
    """Return the content type and the text of the metrics.

    Args:
        moment: the numbers.
        accept: the request's header, which chooses between Prometheus and OpenMetrics.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(MomentCollector(lambda: moment))
    encode, content_type = choose_encoder(accept)
    return content_type, encode(registry)


class MomentCollector(Collector):
    """Collects the metrics of a server, for a registry of ``prometheus-client``.

    Args:
        read: returns the numbers; called at each scrape.
    """

    def __init__(self, read: Callable[[], Moment]) -> None:
        self._read = read

    def describe(self) -> Iterable[Metric]:
        """Return nothing: names are known at the scrape."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield every metric."""
        moment = self._read()
        yield InfoMetricFamily("tangram_build", "Version of the server and of Python.", dict(moment.build))
        yield from _channels(moment)
        yield from _supervision(moment)
        yield from _nodes(moment)
        yield from _named_topics(moment.named_topics)
        yield _requests(moment)
        yield _forwards(moment)
        yield from _process(moment.process)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value)


def _labelled(
    family: GaugeMetricFamily | CounterMetricFamily, values: Iterable[tuple[Iterable[object], float]]
) -> Metric:
    for labels, value in values:
        family.add_metric([str(label) for label in labels], value)
    return family


def _buckets(values: HistogramValues) -> list[tuple[str, float]]:
    found, total = [], 0
    for bound, count in zip((*values.bounds, float("inf")), values.counts, strict=True):
        total += count
        found.append(("+Inf" if bound == float("inf") else repr(bound), float(total)))
    return found


def _histogram(name: str, text: str, values: HistogramValues) -> Metric:
    return HistogramMetricFamily(name, text, buckets=_buckets(values), sum_value=values.total)


def _channels(moment: Moment) -> Iterator[Metric]:
    yield _gauge("tangram_connections", "Connections of the channels.", moment.connections)
    yield _counter("tangram_connections_accepted", "Connections of the channels so far.", moment.accepted)
    yield _labelled(
        CounterMetricFamily("tangram_disconnects", "Ended connections.", labels=("code", "reason")),
        moment.disconnects.items(),
    )
    yield _gauge("tangram_memberships", "Memberships in topics.", moment.memberships)
    yield _gauge("tangram_topics", "Topics with members.", moment.topics)
    yield _counter("tangram_messages_received", "Frames from clients.", moment.received)
    yield _counter("tangram_deliveries", "Messages times members.", moment.deliveries)
    yield _counter("tangram_sent_bytes", "Bytes of the delivered messages.", moment.sent_bytes)
    yield _gauge("tangram_backlog_bytes", "Bytes that wait for clients.", moment.backlog_bytes)
    yield _counter("tangram_conflated", "Messages replaced by a newer one of the same key.", moment.conflated)
    yield _histogram(
        "tangram_delivery_lag_seconds", "From Redis' hand-over to the sockets.", moment.delivery_lag
    )
    yield _labelled(
        CounterMetricFamily("tangram_pushes", "Pushes of clients.", labels=("result",)),
        (((result,), count) for result, count in moment.pushes.items()),
    )
    yield _labelled(
        CounterMetricFamily(
            "tangram_declared_pushes", "Answered pushes of declared channels.", labels=("plugin", "result")
        ),
        moment.declared_pushes.items(),
    )
    yield _handlers(moment)
    yield _labelled(
        CounterMetricFamily("tangram_joins", "Joins of clients.", labels=("result",)),
        (((result,), count) for result, count in moment.joins.items()),
    )
    yield _labelled(
        CounterMetricFamily("tangram_recoveries", "Joins that asked for positions.", labels=("result",)),
        (((result,), count) for result, count in moment.recoveries.items()),
    )


def _supervision(moment: Moment) -> Iterator[Metric]:
    yield _labelled(
        GaugeMetricFamily(
            "tangram_service_up", "1 while a service runs or has returned.", labels=("plugin", "service")
        ),
        moment.services.items(),
    )
    yield _labelled(
        CounterMetricFamily("tangram_restarts", "Crashes and requested restarts.", labels=("child", "cause")),
        moment.restarts.items(),
    )
    yield _gauge("tangram_quarantined", "Plugins in quarantine.", moment.quarantined)
    yield _histogram("tangram_loop_lag_seconds", "Lateness of the event loop.", moment.loop_lag)
    yield _gauge("tangram_bus_up", "1 while Redis is connected and subscribed.", moment.bus_up)
    yield _counter(
        "tangram_bus_reconnects", "Connections to Redis opened again after a loss.", moment.bus_reconnects
    )


def _nodes(moment: Moment) -> Iterator[Metric]:
    yield _gauge("tangram_nodes", "Nodes of the cluster.", moment.nodes)
    yield _gauge(
        "tangram_nodes_differing", "Nodes that differ from this one in a setting.", moment.nodes_differing
    )
    yield _labelled(
        GaugeMetricFamily(
            "tangram_lease_held", "1 while this node holds the lease of a placed plugin.", labels=("plugin",)
        ),
        (((name,), held) for name, held in moment.leases.items()),
    )


def _named_topics(topics: Iterable[TopicNumbers]) -> Iterator[Metric]:
    listed = list(topics)
    if not listed:
        return
    labels = ("topic",)
    members = GaugeMetricFamily("tangram_topic_members", "Members of a named topic.", labels=labels)
    yield _labelled(members, (((one.topic,), one.members) for one in listed))
    messages = CounterMetricFamily("tangram_topic_messages", "Messages of a named topic.", labels=labels)
    yield _labelled(messages, (((one.topic,), one.messages) for one in listed))
    deliveries = CounterMetricFamily(
        "tangram_topic_deliveries", "Messages times members of a named topic.", labels=labels
    )
    yield _labelled(deliveries, (((one.topic,), one.deliveries) for one in listed))
    sent = CounterMetricFamily(
        "tangram_topic_sent_bytes", "Bytes of the delivered messages of a named topic.", labels=labels
    )
    yield _labelled(sent, (((one.topic,), one.sent_bytes) for one in listed))


def _requests(moment: Moment) -> Metric:
    family = HistogramMetricFamily(
        "http_server_request_duration_seconds", "Duration of HTTP requests.", labels=_HTTP_LABELS
    )
    for key, values in moment.requests.items():
        labels = [key.method, key.route, str(key.status), key.scheme]
        family.add_metric(labels, _buckets(values), values.total)
    return family


def _handlers(moment: Moment) -> Metric:
    family = HistogramMetricFamily(
        "tangram_declared_handler_duration_seconds",
        "Duration of the handlers of declared channels.",
        labels=("plugin", "channel", "event"),
    )
    for labels, values in moment.handler_durations.items():
        family.add_metric(labels, _buckets(values), values.total)
    return family


def _forwards(moment: Moment) -> Metric:
    return _labelled(
        CounterMetricFamily(
            "tangram_forwarded_requests", "Requests for plugins on other nodes.", labels=("result",)
        ),
        (((result,), count) for result, count in moment.forwards.items()),
    )


def _process(numbers: ProcessNumbers) -> Iterator[Metric]:
    yield _counter("process_cpu_seconds", "User and system CPU time.", numbers.cpu_seconds)
    yield _gauge("process_resident_memory_bytes", "Resident memory.", numbers.resident_bytes)
    yield _gauge("process_virtual_memory_bytes", "Virtual memory.", numbers.virtual_bytes)
    yield _gauge("process_open_fds", "Open file descriptors.", numbers.open_fds)
    yield _gauge("process_max_fds", "The limit on open file descriptors.", numbers.max_fds)
    yield _gauge(
        "process_start_time_seconds", "Start of the process, seconds since the epoch.", numbers.start_time
    )
