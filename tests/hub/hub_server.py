"""A stand-in for the Hugging Face Hub on this machine: serves repositories to `huggingface_hub` and takes its uploads.

It speaks the endpoints that downloads and one-commit uploads use, with one branch per repository and none of the Hub's
storage backends, so files travel as plain HTTP bodies. The endpoints are named in `hub_downloads.py` and `hub_uploads.py`.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path
from threading import Thread

from tests.hub.hub_downloads import Hub, Repository
from tests.hub.hub_uploads import UploadHandler


@contextmanager
def serve_hub(folders: Mapping[str, Path], tokens: Mapping[str, str] | None = None) -> Iterator[Hub]:
    """Serve `{repo id: folder}` on a free port of 127.0.0.1, to be written to by those who have a token."""
    hub = Hub({name: Repository.of_folder(Path(folder)) for name, folder in folders.items()}, tokens or {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (UploadHandler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def serve(folders: Mapping[str, Path]) -> Iterator[str]:
    """Serve `{repo id: folder}` to read; yields the address, which is what HF_ENDPOINT takes."""
    with serve_hub(folders) as hub:
        yield hub.address
