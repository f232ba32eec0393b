"""The start of a server: options, address, bases and packages; its end on a signal."""

import json
import subprocess
from pathlib import Path
from typing import Any, Final

import psutil
import pytest

from mav.cache_schema.errors import MismatchError, UsageError
from mav.pipeline.serving.http_server import HttpServer
from mav.pipeline.serving.options import ServeOptions
from mav.pipeline.serving.server import load_server
from tests.support.models.tiny import save_base, tiny_base
from tests.support.running.limits import PROCESS
from tests.support.running.server import CHAT, chat_body, error_of, http, port_of, running

ROOT: Final = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"host": "0.0.0.0"}, "api_key"),
        ({"host": "192.168.1.5"}, "api_key"),
        ({"host": ""}, "api_key"),
        ({"host": "0.0.0.0", "api_key": ""}, "api_key"),
        ({"port": 70000}, "port: got 70000"),
        ({"max_rows": 0}, "max_rows: got 0"),
        ({"max_queue": 0}, "max_queue: got 0"),
        ({"alpha": float("nan")}, "alpha: got nan"),
        ({"dtype": "int4"}, "dtype"),
        ({"bases": ("a", "b"), "gguf_file": "c.gguf"}, "gguf_file"),
    ],
    ids=str,
)
def test_options_are_checked(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ServeOptions(head="head", **wrong)


def test_a_port_in_use_is_refused(server: HttpServer, head: str, bases: tuple[str, str]) -> None:
    with (
        pytest.raises(UsageError, match="cannot be listened on"),
        running(head=head, bases=bases[:1], port=port_of(server)),
    ):
        pass


def test_a_base_with_another_vocabulary_is_refused_at_the_start(
    head: str, bases: tuple[str, str], tmp_path: Path
) -> None:
    other = save_base(tiny_base(vocab_size=320), tmp_path / "other")
    with (
        pytest.raises(MismatchError, match="300 tokens"),
        running(head=head, bases=(bases[0], str(other))),
    ):
        pass


def test_a_base_that_is_given_twice_is_refused(head: str, bases: tuple[str, str]) -> None:
    with pytest.raises(UsageError, match="twice"), running(head=head, bases=bases[:1] * 2):
        pass


def test_a_refused_switch_keeps_the_base_in_use(
    head: str, bases: tuple[str, str], tmp_path: Path
) -> None:
    other = save_base(tiny_base(seed=7), tmp_path / "other")
    with running(head=head, bases=(bases[0], str(other))) as server, http(server) as web:
        before = web.post(CHAT, json=chat_body()).json()["choices"]
        save_base(tiny_base(vocab_size=320), other)
        error = error_of(web.post(CHAT, json=chat_body(model="other")), 409)
        assert "300 tokens" in error["message"]
        after = web.post(CHAT, json=chat_body()).json()
        assert (after["model"], after["choices"]) == ("first", before)
        assert 'mav_base_switches_total{result="refused"} 1.0' in web.get("/metrics").text
        assert web.get("/health").json()["base"] == "first"


def open_sockets() -> int:
    return len(psutil.Process().net_connections("tcp"))


def test_the_address_is_bound_before_anything_is_loaded(server: HttpServer) -> None:
    port = port_of(server)
    with pytest.raises(UsageError, match=f"127.0.0.1:{port} cannot be listened on"):
        load_server(ServeOptions(head="nowhere", port=port))
    before = open_sockets()
    with pytest.raises(Exception, match="nowhere"):
        load_server(ServeOptions(head="/nowhere", bases=("/nowhere",), port=0))
    assert open_sockets() == before, "the address is still taken"


@pytest.fixture(scope="module")
def signalled(head: str, bases: tuple[str, str], warm_programs: Path) -> dict[str, Any]:
    """What `tests.serving.signalled_server` reports."""
    done = subprocess.run(
        [warm_programs / "python", "-m", "tests.serving.signalled_server", head, bases[0]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PROCESS,
        check=False,
    )
    assert "Traceback" not in done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_ends_the_process_with_status_0(signalled: dict[str, Any], name: str) -> None:
    assert signalled[name] == [True, 0, ""]


def test_without_its_packages_the_server_says_which_to_install(signalled: dict[str, Any]) -> None:
    assert "pip install 'mav-align[serve]'" in signalled["missing"]
