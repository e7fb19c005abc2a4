"""Uploads to real S3 services: what arrives, what goes over the wire, and every way to fail."""

from __future__ import annotations

import io
import logging
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import replace

import boto3
import pytest
import requests
from tests.delivery.conftest import MakeFile, upload
from tests.delivery.storage import BUCKET, KEY_ID, SECRET, Storage, free_port, wire

from ltx_worker.delivery.bucket import PART_BYTES, Bucket
from ltx_worker.delivery.bucket_config import BucketConfig
from ltx_worker.errors import Cancelled, DeliveryFailed
from ltx_worker.stop import StopSignal

LARGE = PART_BYTES + 1_000_000
# What R2 does not take, and boto3 sends unless it is told not to.
REFUSED_BY_R2 = ("aws-chunked", "x-amz-trailer", "x-amz-sdk-checksum-algorithm")


def failure_of(config: BucketConfig, make_file: MakeFile, size: int = 1000) -> DeliveryFailed:
    """The error of an upload that must fail; it says nothing secret."""
    with pytest.raises(DeliveryFailed) as failure:
        upload(Bucket(config, attempts=2), make_file(size), "a.mp4")
    error = failure.value.to_json()
    assert failure.value.retryable
    assert not any(word in error for word in (KEY_ID, SECRET, "127.0.0.1", "http", "a.mp4"))
    return failure.value


@pytest.mark.parametrize("size", [0, 1000, PART_BYTES - 1, PART_BYTES, LARGE])
def test_a_file_arrives_whole_and_its_link_works(
    storage: Storage, make_file: MakeFile, size: int
) -> None:
    """In one request or in parts: the link gives the same bytes, as a clip."""
    path = make_file(size)
    stored = upload(Bucket(storage.config), path, f"outputs/clip-{size}.mp4")
    answer = requests.get(stored.url, timeout=10)
    assert answer.content == path.read_bytes()
    assert answer.headers["Content-Type"] == "video/mp4"
    assert (stored.key, stored.bytes) == (f"outputs/clip-{size}.mp4", size)
    assert stored.seconds > 0
    assert storage.open_uploads() == []


def test_a_link_expires_and_belongs_to_its_object(
    rclone_storage: Storage, make_file: MakeFile
) -> None:
    """A presigned link carries its expiry, and opens nothing else."""
    bucket = Bucket(replace(rclone_storage.config, link_expiry_s=600))
    url = upload(bucket, make_file(100), "one.mp4").url
    upload(bucket, make_file(100), "two.mp4")
    assert "X-Amz-Expires=600" in url
    assert requests.get(url.replace("one.mp4", "two.mp4"), timeout=10).status_code == 403


def test_a_public_bucket_is_linked_by_its_own_address(
    moto_storage: Storage, make_file: MakeFile
) -> None:
    """No signature, and no name of the bucket: its domain stands for it."""
    config = replace(moto_storage.config, public_url="https://clips.example")
    assert upload(Bucket(config), make_file(10), "a/b.mp4").url == "https://clips.example/a/b.mp4"


def test_nothing_that_r2_refuses_goes_over_the_wire(storage: Storage, make_file: MakeFile) -> None:
    """Plain signed requests, in one and in parts; the same client without settings would fail."""
    with wire(storage) as relay:
        bucket = Bucket(storage.through(relay.url))
        upload(bucket, make_file(1000), "small.mp4")
        upload(bucket, make_file(LARGE), "large.mp4")
        heads = list(relay.heads)
        usual = boto3.client(
            "s3",
            endpoint_url=relay.url,
            region_name="auto",
            aws_access_key_id=KEY_ID,
            aws_secret_access_key=SECRET,
        )
        usual.upload_fileobj(io.BytesIO(b"x"), BUCKET, "usual")
    assert len([head for head in heads if head.startswith("PUT")]) == 3
    assert not [word for word in REFUSED_BY_R2 for head in heads if word in head.lower()]
    assert all("AWS4-HMAC-SHA256" in head and "/auto/s3/" in head for head in heads)
    assert any(word in relay.heads[len(heads)].lower() for word in REFUSED_BY_R2)


def test_an_upload_that_is_refused_twice_works(storage: Storage, make_file: MakeFile) -> None:
    """A service that is busy for a moment is asked again."""
    path = make_file(1000)
    with wire(storage, refusals=2) as relay:
        upload(Bucket(storage.through(relay.url)), path, "busy.mp4")
        assert len(relay.requests("PUT")) == 3
    assert storage.content("busy.mp4") == path.read_bytes()


def test_only_the_part_that_was_cut_is_sent_again(storage: Storage, make_file: MakeFile) -> None:
    """A network that is gone within a part costs that part and not the file."""
    path = make_file(LARGE)
    with wire(storage, cuts=1, cut_after=900_000) as relay:
        stored = upload(Bucket(storage.through(relay.url)), path, "cut.mp4")
        assert len(relay.requests("PUT")) == 3
        assert len(relay.requests("POST")) == 2
        assert requests.get(stored.url, timeout=10).content == path.read_bytes()


@pytest.mark.parametrize("size", [1_000_000, LARGE])
def test_a_network_that_stays_away_is_named(
    storage: Storage, make_file: MakeFile, size: int
) -> None:
    """The upload fails, and in parts it is aborted."""
    with wire(storage, cuts=100, cut_after=300_000) as relay:
        error = failure_of(storage.through(relay.url), make_file, size)
    assert error.message == "The upload failed: the connection to the storage was lost"
    assert storage.open_uploads() == []


def test_a_service_that_stays_busy_is_named(storage: Storage, make_file: MakeFile) -> None:
    """The status is in the message."""
    with wire(storage, refusals=100) as relay:
        error = failure_of(storage.through(relay.url), make_file)
    assert "at present (status 503)" in error.message


@pytest.mark.parametrize("size", [1000, LARGE])
@pytest.mark.parametrize(
    "wrong",
    [{"secret_access_key": "canary-secret-other"}, {"access_key_id": "CANARYKEYIDOTHER"}],
    ids=["secret", "key"],
)
def test_wrong_credentials_are_named(
    rclone_storage: Storage, make_file: MakeFile, wrong: dict[str, str], size: int
) -> None:
    """Neither of them is repeated."""
    error = failure_of(replace(rclone_storage.config, **wrong), make_file, size)
    assert error.message == "The upload failed: the storage refuses the credentials"
    assert error.hint is not None
    assert "canary" not in error.to_json().lower()


@pytest.mark.parametrize("size", [1000, LARGE])
def test_a_missing_bucket_is_named(storage: Storage, make_file: MakeFile, size: int) -> None:
    """The caller learns what to correct."""
    error = failure_of(replace(storage.config, bucket="absent"), make_file, size)
    assert error.message == "The upload failed: the bucket does not exist"


def test_an_unreachable_service_is_named(moto_storage: Storage, make_file: MakeFile) -> None:
    """Nobody listens there."""
    config = moto_storage.through(f"http://127.0.0.1:{free_port()}")
    assert "could not be reached" in failure_of(config, make_file).message


def test_an_object_that_is_not_the_file_is_no_success(
    moto_storage: Storage, make_file: MakeFile
) -> None:
    """moto stores what a wire has damaged without a word; the comparison finds it."""
    with wire(moto_storage, damage=True) as relay:
        error = failure_of(moto_storage.through(relay.url), make_file)
    assert "not the file" in error.message


def test_a_private_address_of_a_job_is_not_connected_to(
    storage: Storage, make_file: MakeFile
) -> None:
    """Judged before each request: the service sees none."""
    with wire(storage) as relay:
        config = replace(storage.through(relay.url), public_only=True)
        error = failure_of(config, make_file)
        assert relay.heads == []
    assert "not public" in error.message


def test_a_cancelled_upload_leaves_nothing_behind(storage: Storage, make_file: MakeFile) -> None:
    """The job ends at once; what was begun in the bucket is aborted after it."""
    hold = threading.Event()
    with wire(storage, hold=hold) as relay:
        stop = StopSignal(60)
        seen: list[list[str]] = []

        def cancel() -> None:
            relay.held.wait(20)
            seen.append(storage.open_uploads())
            stop.cancel()

        cancelling = threading.Thread(target=cancel)
        cancelling.start()
        started = time.monotonic()
        with pytest.raises(Cancelled):
            upload(Bucket(storage.through(relay.url)), make_file(LARGE), "stopped.mp4", stop)
        assert time.monotonic() - started < 20
        cancelling.join()
        assert seen == [["stopped.mp4"]]
        hold.set()
        give_up = time.monotonic() + 20
        while storage.open_uploads() and time.monotonic() < give_up:
            time.sleep(0.05)
        assert storage.open_uploads() == []
        # Neither finished nor begun again.
        assert len(relay.requests("POST")) == 1


def test_a_job_that_is_cancelled_already_uploads_nothing(
    moto_storage: Storage, make_file: MakeFile
) -> None:
    """No request is made for it."""
    stop = StopSignal(60)
    stop.cancel()
    with wire(moto_storage) as relay:
        with pytest.raises(Cancelled):
            upload(Bucket(moto_storage.through(relay.url)), make_file(10), "no.mp4", stop)
        assert relay.heads == []


def test_a_hundred_uploads_all_match(
    rclone_storage: Storage,
    make_file: MakeFile,
    record_property: Callable[[str, object], None],
) -> None:
    """Each of 100 files of 2 MB arrives whole; the seconds they take are recorded."""
    bucket = Bucket(rclone_storage.config)
    seconds: list[float] = []
    for number in range(100):
        path = make_file(2_000_000)
        stored = upload(bucket, path, f"hundred/{number}.mp4")
        assert rclone_storage.content(stored.key) == path.read_bytes()
        path.write_bytes(b"")
        seconds.append(stored.seconds)
    steps = statistics.quantiles(seconds, n=20)
    record_property("upload of 2 MB, p50 s", f"{statistics.median(seconds):.4f}")
    record_property("upload of 2 MB, p95 s", f"{steps[-1]:.4f}")


def test_the_check_leaves_nothing_in_the_bucket(storage: Storage) -> None:
    """One object of each kind is uploaded, read through its link and deleted."""
    small, large = Bucket(storage.config).check("checks/")
    assert small.bytes < PART_BYTES < large.bytes
    assert min(small.upload_s, small.read_s, large.upload_s, large.read_s) > 0
    assert "Contents" not in storage.client.list_objects_v2(Bucket=BUCKET, Prefix="checks/")


def test_the_check_finds_links_that_lead_nowhere(moto_storage: Storage) -> None:
    """A public address that is not the bucket's is found, and the object deleted all the same."""
    public = f"{moto_storage.config.endpoint_url}/elsewhere"
    with pytest.raises(DeliveryFailed, match="does not give it"):
        Bucket(replace(moto_storage.config, public_url=public)).check("checks/")
    listed = moto_storage.client.list_objects_v2(Bucket=BUCKET, Prefix="checks/")
    assert "Contents" not in listed


def test_secrets_stay_out_of_logs_and_representations(
    rclone_storage: Storage, make_file: MakeFile, caplog: pytest.LogCaptureFixture
) -> None:
    """Keys and links are in no line at INFO, whether an upload works or fails."""
    caplog.set_level(logging.INFO)
    stored = upload(Bucket(rclone_storage.config), make_file(1000), "quiet.mp4")
    failure_of(replace(rclone_storage.config, bucket="absent"), make_file)
    shown = f"{caplog.text} {stored!r} {rclone_storage.config!r}"
    assert not any(word in shown for word in (KEY_ID, SECRET, "X-Amz-Signature", stored.url))
