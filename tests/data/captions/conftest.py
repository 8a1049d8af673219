"""No test of this folder may reach the Hub."""

import socket

import datasets
import huggingface_hub
import pytest


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """The Hub's libraries offline, and a list of the connections that are tried in spite of it."""
    tried = []
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(socket.socket, "connect", lambda self, address: tried.append(address))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: tried.append(args))
    datasets.disable_progress_bars()
    yield tried
    assert tried == []
