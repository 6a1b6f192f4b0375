"""An OTLP/HTTP collector of traces, of this process."""

import contextlib
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass
class Collector:
    """What has arrived.

    Attributes:
        endpoint: where it listens.
        bodies: the bodies, as they were sent.
    """

    endpoint: str
    bodies: list[bytes] = field(default_factory=list)

    @property
    def resources(self):
        """What the spans are of, as a dictionary for each body."""
        return [plain(each.resource.attributes) for each in self._sent()]

    @property
    def spans(self):
        """The spans, in the order in which they began."""
        found = [span for each in self._sent() for scope in each.scope_spans for span in scope.spans]
        return sorted(found, key=lambda span: span.start_time_unix_nano)

    def named(self, name):
        return [span for span in self.spans if span.name == name]

    def _sent(self):
        return [
            each for body in self.bodies for each in ExportTraceServiceRequest.FromString(body).resource_spans
        ]


def plain(attributes):
    """OTLP's attributes as a dictionary."""
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}


@contextlib.contextmanager
def collecting():
    """Start a collector on a free port."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            assert self.path == "/v1/traces"
            collector.bodies.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *args):
            """Requests are kept, not logged."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    collector = Collector(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield collector
    server.shutdown()
    thread.join()
    server.server_close()
