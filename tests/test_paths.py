"""One way to name places: local paths and URIs walk up and down alike."""

from __future__ import annotations

import pytest

from cxr_ray.errors import CxrError
from cxr_ray.paths import locate


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


@pytest.mark.parametrize(
    "address",
    [
        *("s3://me:hush@bucket/films", "s3://me:hu/hush@x@bucket/films", "sftp://:hush@host/"),
        "s3://bucket/films?region=x&secret_key=hush",
    ],
)
def test_a_password_in_an_address_is_refused_and_not_repeated(address):
    with pytest.raises(CxrError, match=r"carries a password.*Give it in the environment") as raised:
        locate(address)
    assert "hush" not in str(raised.value)


def test_a_user_in_an_address_and_a_colon_in_a_name_are_no_password(tmp_path):
    assert locate(f"file://{tmp_path}/a:b@c").exists() is False
    with pytest.raises(CxrError, match=r"does not answer|no file system"):
        locate("hdfs://me@nohost:1/a@b")
