"""Whose bucket it is: the operator's variables, and a job's own `s3Config`."""

from __future__ import annotations

from typing import Any

import pytest

from ltx_worker.delivery.bucket_config import BucketConfig, bucket_config, bucket_from_job
from ltx_worker.errors import InvalidRequest
from ltx_worker.settings import InvalidSettings, Settings, load_settings

KEYS = {"R2_ACCESS_KEY_ID": "CANARYKEYID", "R2_SECRET_ACCESS_KEY": "canary-secret"}
R2 = KEYS | {"R2_ACCOUNT_ID": "abc123", "R2_BUCKET": "clips"}
JOB = {
    "endpointUrl": "https://1.1.1.1",
    "bucketName": "clips",
    "accessId": "CANARYKEYID",
    "accessSecret": "canary-secret",
}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment without any bucket."""
    for field in Settings.model_fields.values():
        for name in getattr(field.validation_alias, "choices", ()):
            monkeypatch.delenv(name, raising=False)
    return monkeypatch


def configured(environment: pytest.MonkeyPatch, **variables: str) -> BucketConfig | None:
    """The bucket of an environment with these variables."""
    for name, value in variables.items():
        environment.setenv(name, value)
    return bucket_config(load_settings())


def test_an_environment_without_a_bucket_has_none(environment: pytest.MonkeyPatch) -> None:
    """Then everything goes inside the answer."""
    assert configured(environment) is None


def test_an_account_gives_the_endpoint_of_r2(environment: pytest.MonkeyPatch) -> None:
    """Four variables suffice for R2."""
    config = configured(environment, **R2)
    assert config is not None
    assert config.endpoint_url == "https://abc123.r2.cloudflarestorage.com"
    assert (config.bucket, config.region, config.public_url) == ("clips", "auto", None)
    assert not config.public_only


def test_the_variables_of_the_generic_worker_are_taken(environment: pytest.MonkeyPatch) -> None:
    """Who comes from RunPod's ComfyUI worker has nothing to rename."""
    config = configured(
        environment,
        BUCKET_ENDPOINT_URL="https://s3.eu-central-1.amazonaws.com",
        BUCKET_ACCESS_KEY_ID="a",
        BUCKET_SECRET_ACCESS_KEY="b",
        BUCKET_NAME="clips",
    )
    assert config is not None
    assert config.region == "eu-central-1"


@pytest.mark.parametrize("left_out", [*R2])
def test_a_variable_that_is_missing_is_named(
    environment: pytest.MonkeyPatch, left_out: str
) -> None:
    """Half a bucket is an error at start, not with the first large clip."""
    given = {name: value for name, value in R2.items() if name != left_out}
    with pytest.raises(InvalidSettings, match=left_out) as failure:
        configured(environment, **given)
    assert "canary" not in str(failure.value).lower()
    assert not any(name in str(failure.value) for name in given)


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        ("https://s3.example/", "https://s3.example"),
        ("https://abc.r2.cloudflarestorage.com/clips", "https://abc.r2.cloudflarestorage.com"),
        ("http://10.0.0.5:9000", "http://10.0.0.5:9000"),
        ("s3.example", None),
        ("https://s3.example/other", None),
        ("ftp://s3.example", None),
        ("https://user@s3.example", None),
        ("https://[broken", None),
    ],
)
def test_the_operators_endpoint_may_be_anywhere_but_has_no_path(
    environment: pytest.MonkeyPatch, endpoint: str, expected: str | None
) -> None:
    """Cloudflare shows it with the bucket, which is taken off."""
    variables = KEYS | {"R2_BUCKET": "clips", "R2_ENDPOINT_URL": endpoint}
    if expected is None:
        with pytest.raises(InvalidSettings, match="R2_ENDPOINT_URL"):
            configured(environment, **variables)
    else:
        config = configured(environment, **variables)
        assert config is not None
        assert config.endpoint_url == expected


@pytest.mark.parametrize("address", ["clips.example", "ftp://clips.example"])
def test_a_public_address_has_to_be_one(environment: pytest.MonkeyPatch, address: str) -> None:
    """Links made of it would not open."""
    with pytest.raises(InvalidSettings, match="R2_PUBLIC_URL"):
        configured(environment, **R2, R2_PUBLIC_URL=address)


@pytest.mark.parametrize(
    ("endpoint", "region"),
    [
        ("https://s3.us-west-2.amazonaws.com", "us-west-2"),
        ("https://s3-us-gov-west-1.amazonaws.com", "us-gov-west-1"),
        ("https://s3.us-west-004.backblazeb2.com", "us-west-004"),
        ("https://s3api-eu-ro-1.runpod.io", "eu-ro-1"),
        ("https://abc.eu.r2.cloudflarestorage.com", "auto"),
    ],
)
def test_the_region_is_read_from_the_endpoint(
    environment: pytest.MonkeyPatch, endpoint: str, region: str
) -> None:
    """Services that have regions refuse signatures for another; a given one is not touched."""
    variables = KEYS | {"R2_BUCKET": "clips", "R2_ENDPOINT_URL": endpoint}
    config = configured(environment, **variables)
    assert config is not None
    assert config.region == region
    given = configured(environment, R2_REGION="here")
    assert given is not None
    assert given.region == "here"


@pytest.mark.parametrize(
    "pattern", ["clips/{date}.mp4", "{job_id}{prompt}", "{job_id!r}", "{job_id.__class__}", "a b"]
)
def test_a_pattern_of_keys_that_would_not_work_is_refused(
    environment: pytest.MonkeyPatch, pattern: str
) -> None:
    """Every job needs a key of its own, from what is known of it."""
    environment.setenv("LTX2_OUTPUT_KEY", pattern)
    with pytest.raises(InvalidSettings, match="LTX2_OUTPUT_KEY"):
        load_settings()


def test_keys_are_not_in_a_representation(environment: pytest.MonkeyPatch) -> None:
    """Neither the secret nor its id."""
    assert "canary" not in repr(configured(environment, **R2)).lower()
    assert "canary" not in repr(bucket_from_job(JOB)).lower()


def test_a_jobs_bucket_is_reached_at_public_addresses_only() -> None:
    """Its four fields are taken as they are."""
    config = bucket_from_job(JOB | {"other": 1}, link_expiry_s=600)
    assert config == BucketConfig(
        "https://1.1.1.1", "clips", "CANARYKEYID", "canary-secret", "auto", None, 600, True
    )


@pytest.mark.parametrize("given", [None, [], "text", {}])
def test_a_jobs_bucket_names_every_field_it_lacks(given: Any) -> None:
    """All at once."""
    with pytest.raises(InvalidRequest) as failure:
        bucket_from_job(given)
    assert all(name in failure.value.message for name in JOB)


@pytest.mark.parametrize(
    "endpoint",
    [
        *("http://1.1.1.1", "1.1.1.1", "https://1.1.1.1/path", "https://user:pass@1.1.1.1"),
        *("https://1.1.1.1?a=b", "https://", "https://[broken", "file:///etc", "https://1.1.1.1:0"),
        *("https://127.0.0.1", "https://localhost", "https://[::1]", "https://10.1.2.3:9000"),
        *("https://169.254.169.254", "https://[::ffff:127.0.0.1]", "https://2130706433"),
        *("https://0.0.0.0", "https://100.64.0.1", "https://[fd00::1]", "https://192.168.0.1"),
        *("https://no-such-host.invalid", f"https://{'a' * 70}.example"),
    ],
)
def test_an_endpoint_that_is_not_public_https_is_refused(endpoint: str) -> None:
    """Before anything is computed, and without repeating it."""
    with pytest.raises(InvalidRequest) as failure:
        bucket_from_job(JOB | {"endpointUrl": endpoint})
    assert failure.value.details[0].field == "s3Config.endpointUrl"
    assert "canary" not in failure.value.to_json().lower()
    assert "127.0.0.1" not in failure.value.to_json()


@pytest.mark.parametrize("name", ["", "a/b", "../a", "x" * 300, 5])
def test_a_bucket_name_that_is_none_is_refused(name: Any) -> None:
    """It becomes a part of the service's URLs."""
    with pytest.raises(InvalidRequest) as failure:
        bucket_from_job(JOB | {"bucketName": name})
    assert failure.value.details[0].field == "s3Config.bucketName"
