"""`pqdiff info --backends`: which searches there are, and which one is used."""

import json

from pqdiff.quantizers.backends import BACKENDS
from tests.cli.support import assert_done, assert_refused


def test_backends_as_json_say_what_is_available_and_used(pqdiff, monkeypatch):
    monkeypatch.setenv("PQDIFF_SEARCH", "plain")
    result = pqdiff("info", "--backends", "--json")
    assert_done(result)
    report = json.loads(result.out)
    assert report["forced"] == "plain"
    rows = {row["name"]: row for row in report["backends"]}
    assert tuple(rows) == BACKENDS
    assert rows["plain"]["available"]
    assert "cpu" in rows["plain"]["serves"]
    assert rows["native"]["serves"] == []


def test_backends_as_a_table(pqdiff, monkeypatch):
    monkeypatch.delenv("PQDIFF_SEARCH", raising=False)
    result = pqdiff("info", "--backends")
    assert_done(result)
    for text in ("chosen automatically", "cpu", *BACKENDS):
        assert text in result.out


def test_an_unknown_forced_backend_is_refused(pqdiff, monkeypatch):
    monkeypatch.setenv("PQDIFF_SEARCH", "fastest")
    assert_refused(pqdiff("info", "--backends"), "fastest")


def test_backends_take_no_model(pqdiff):
    assert_refused(pqdiff("info", "some-model", "--backends"), "--backends")
