"""URLs of buckets, and the errors of stores in words."""

import sys

import pytest

from carvana_batch.cloud.urls import BucketUrl, describe, is_url, open_store
from carvana_batch.commands import group
from carvana_batch.errors import UsageError


def test_a_url_has_scheme_bucket_and_prefix():
    assert BucketUrl.parse("s3://photos/a/b/") == BucketUrl("s3", "photos", "a/b")
    assert BucketUrl.parse("GS://photos") == BucketUrl("gs", "photos", "")
    assert str(BucketUrl.parse("az://photos/a") / "b.png") == "az://photos/a/b.png"
    assert str(BucketUrl.parse("az://photos") / "b.png") == "az://photos/b.png"
    assert BucketUrl.parse("s3://photos/a b/ü").prefix == "a b/ü"


@pytest.mark.parametrize("path", ["in", "/data/s3", "./s3:/x", "C:/photos", "a/s3://b"])
def test_paths_are_no_urls(path):
    assert not is_url(path)


@pytest.mark.parametrize(
    "text",
    [
        "s3://user:geheim@photos/in",
        "s3://photos/in?X-Amz-Signature=geheim",
        "az://photos/in?sig=geheim",
        "s3://photos/in#geheim",
        "https://geheim@host/in",
    ],
)
def test_a_url_with_a_secret_is_refused_and_not_repeated(text):
    with pytest.raises(UsageError) as caught:
        BucketUrl.parse(text)
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize("text", ["s3://", "s3:///a", "s3://photos//a", "s3://photos/../a", "http://host/a"])
def test_other_urls_are_refused(text):
    with pytest.raises(UsageError, match=r"s3://|of the form"):
        BucketUrl.parse(text)


def test_below():
    photos, out = BucketUrl.parse("s3://b/photos"), BucketUrl.parse("s3://b/photos/out")
    assert out.is_below(photos) and photos.is_below(photos) and photos.is_below(BucketUrl.parse("s3://b"))
    assert not photos.is_below(out)
    assert not BucketUrl.parse("s3://b/photos2").is_below(photos)
    assert not BucketUrl.parse("gs://b/photos/out").is_below(photos)


def test_errors_are_described_in_a_line_without_signatures():
    error = ValueError(
        "Error performing GET https://acc:geheim@host/in/a.jpg?sv=1&sig=geheim in 3ms -"
        " Server returned 500: <?xml version='1.0'?><Error>\nDebug source: geheim"
    )
    said = describe(error)
    assert said == "Error performing GET https://host/in/a.jpg in 3ms - Server returned 500"


@pytest.mark.parametrize("command", ["review", "verify", "decode", "train"])
def test_other_commands_say_that_they_read_no_urls(command):
    with pytest.raises(UsageError, match=f"{command} does not read s3:// URLs. Give a local copy"):
        group.main([command, "s3://photos/out"], standalone_mode=False)


def test_true_masks_of_predict_are_local(tmp_path):
    with pytest.raises(UsageError, match="--gt has to be a local folder"):
        group.main(["predict", str(tmp_path), "out", "--gt", "s3://photos/truth"], standalone_mode=False)


@pytest.mark.parametrize("scheme", ["s3", "gs", "az"])
def test_each_scheme_has_a_client(monkeypatch, scheme):
    pytest.importorskip("obstore", reason="needs the extra cloud")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    assert open_store(BucketUrl.parse(f"{scheme}://photos/in")).prefix == "in"


def test_what_the_client_lacks_is_said_in_a_line(monkeypatch):
    pytest.importorskip("obstore", reason="needs the extra cloud")
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(UsageError, match=r"az://photos/in cannot be opened: .*Account must be specified"):
        open_store(BucketUrl.parse("az://photos/in"))


def test_without_the_library_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(UsageError, match=r"pip install 'carvana-batch\[cloud\]'"):
        open_store(BucketUrl.parse("s3://photos/in"))


@pytest.mark.parametrize("endpoint", ["localhost:8333", "secret host", "http://", "ftp://secret"])
def test_an_endpoint_that_is_no_url_is_refused_and_not_repeated(monkeypatch, endpoint):
    """The client would end the process with a panic."""
    pytest.importorskip("obstore", reason="needs the extra cloud")
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(UsageError, match=r"AWS_ENDPOINT_URL is not a URL\. Write it as") as caught:
        open_store(BucketUrl.parse("s3://photos/in"))
    assert "secret" not in str(caught.value)


def test_http_has_to_be_allowed(monkeypatch):
    pytest.importorskip("obstore", reason="needs the extra cloud")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:8333")
    monkeypatch.delenv("AWS_ALLOW_HTTP", raising=False)
    with pytest.raises(UsageError, match="needs AWS_ALLOW_HTTP=true"):
        open_store(BucketUrl.parse("s3://photos/in"))
