"""What holds for every test: one thread, no network, no window, nothing fetched. Set before torch is imported, and without importing it."""

import os
import socket

import pytest

# Torch, MKL and their like read these when they are imported, here and in every process a test starts; tests/cpus.py asks for more threads.
THREADS = os.environ.get("TEST_THREADS", "1")
os.environ.update(
    OMP_NUM_THREADS=THREADS, MKL_NUM_THREADS=THREADS, OPENBLAS_NUM_THREADS=THREADS, TOKENIZERS_PARALLELISM="false"
)
os.environ.update(
    HF_HUB_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    DO_NOT_TRACK="1",
)
os.environ["MPLBACKEND"] = "Agg"
# A process that a test starts has no guard like the one below; a proxy that is not there stops most clients at once.
os.environ.update(dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9"))
os.environ.update(no_proxy="localhost,127.0.0.1,::1", NO_PROXY="localhost,127.0.0.1,::1")

LOCAL = ("localhost", "127.0.0.1", "::1", "0.0.0.0", "::", "", None, socket.gethostname())


@pytest.hookimpl(tryfirst=True)  # before pytest looks at -m
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests of a file that takes its bounds from tests/accuracy.py are `numeric`: tests/cpus.py runs them as other CPUs would."""
    for item in items:
        if any(getattr(value, "__module__", None) == "tests.accuracy" for value in vars(item.module).values()):
            item.add_marker("numeric")


class NetworkUsed(BaseException):
    """Not an Exception, so that no `except Exception` around a download can hide it."""


@pytest.fixture(autouse=True, scope="session")
def no_network():
    """A test that reaches for another machine fails; sockets within this one (notebook kernels, several processes) are free."""
    connect, connect_ex, look_up = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo

    def local_only(host) -> None:
        host = host.decode() if isinstance(host, bytes) else host
        if host not in LOCAL and not str(host).startswith("127."):
            raise NetworkUsed(f"a test reached for {host}: tests run without the network")

    def guarded(original):
        def call(self, address, *rest):
            if self.family in (socket.AF_INET, socket.AF_INET6):
                local_only(address[0])
            return original(self, address, *rest)

        return call

    def guarded_look_up(host, *rest, **options):
        local_only(host)
        return look_up(host, *rest, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded(connect))
        patch.setattr(socket.socket, "connect_ex", guarded(connect_ex))
        patch.setattr(socket, "getaddrinfo", guarded_look_up)
        yield
