"""One way to name places: local paths and URIs walk up and down alike, and copies count only when they are whole."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cxr_ray.errors import CxrError, DataError
from cxr_ray.paths import local_copy, locate

# fsspec's view of this machine's disk: for this package as far away as any other remote storage.
REMOTE = "fsspec+file://"


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("CXR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def remote(tmp_path):
    folder = tmp_path / "far" / "bundle"
    folder.mkdir(parents=True)
    (folder / "weights").write_bytes(b"1234")
    return locate(f"{REMOTE}{folder}")


@pytest.mark.parametrize(
    ("folder", "child"),
    [
        ("/data/runs", "/data/runs/a/b"),
        ("/data/what?now", "/data/what?now/a/b"),
        ("file:///data/runs", "file:///data/runs/a/b"),
        (
            "s3://bucket/runs?region=eu-west-1&endpoint_override=localhost:9000&scheme=http",
            "s3://bucket/runs/a/b?region=eu-west-1&endpoint_override=localhost:9000&scheme=http",
        ),
        ("s3://bucket?region=eu-west-1", "s3://bucket/a/b?region=eu-west-1"),
        ("memory://runs", "memory://runs/a/b"),
        ("memory://runs/?x=1", "memory://runs/?x=1/a/b"),
    ],
)
def test_the_uri_of_a_child_leads_to_the_child_and_its_parents_back(folder, child):
    start = locate(folder)
    inner = start.child("a", "b")
    assert inner.uri == child
    again = locate(inner.uri)
    assert again.path == inner.path
    assert type(again.filesystem) is type(inner.filesystem)
    assert inner.parent.parent.path == start.path
    assert inner.parent.parent.uri == start.uri


@pytest.mark.parametrize(
    ("place", "above", "address"),
    [
        ("/runs", "/", "/"),
        ("/", "/", "/"),
        ("file:///runs", "/", "file:///"),
        ("s3://bucket/run?region=eu-west-1", "bucket", "s3://bucket?region=eu-west-1"),
        ("s3://bucket?region=eu-west-1", "bucket", "s3://bucket?region=eu-west-1"),
    ],
)
def test_roots_and_buckets_have_no_folder_above_them(place, above, address):
    parent = locate(place).parent
    assert parent.path == above
    assert parent.uri == address
    assert locate(parent.uri).path == above


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("s3://bucket/runs?endpont_override=localhost", "Unexpected query parameter in S3 URI: 'endpont_override'"),
        ("s3://bucket/my runs", "syntax error at character ' '"),
        ("s4://bucket/runs", "no file system for this address .*s4"),
        ("github://somebody", "no file system for this address"),
        ("hdfs://nohost:1/runs", r"storage does not answer \(.*\)\. Check the name, the region"),
    ],
)
def test_an_address_that_leads_nowhere_is_one_sentence(address, message):
    with pytest.raises(CxrError, match=message) as raised:
        locate(address)
    assert str(raised.value).startswith(f"{address}: ")
    assert "\n" not in str(raised.value)


def test_a_copy_is_verified_before_it_counts_and_made_anew_after_a_bad_one(remote, cache):
    def refuse(copy: Path) -> None:
        assert (copy / "weights").read_bytes() == b"1234"
        raise ValueError("not the weights that were expected")

    with pytest.raises(ValueError, match="not the weights"):
        local_copy(remote, "key", refuse)
    assert not [entry for entry in cache.iterdir() if entry.is_dir()]
    copy = local_copy(remote, "key", lambda copy: None)
    assert (copy / "weights").read_bytes() == b"1234"
    assert local_copy(remote, "key", refuse) == copy  # it counts already


def test_a_local_folder_is_used_where_it_lies(tmp_path, cache):
    assert local_copy(locate(tmp_path), "key") == tmp_path
    assert not cache.exists()


def test_several_at_once_copy_once(remote, cache):
    copies = []
    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(lambda _: local_copy(remote, "key", copies.append), range(4)))
    assert len(copies) == 1
    assert found == {cache / "key"}


def test_a_cache_that_cannot_be_written_is_named_with_its_variable(remote, cache):
    cache.write_text("a file where the folder should be")
    with pytest.raises(DataError, match=r"cache: copies of remote folders cannot be kept here .*Set CXR_CACHE"):
        local_copy(remote, "key")


def test_a_remote_folder_that_is_gone_is_one_sentence(remote, cache):
    with pytest.raises(DataError, match="cannot be copied to"):
        local_copy(remote.parent.child("other"), "key")
    assert not [entry for entry in cache.iterdir() if entry.is_dir()]
