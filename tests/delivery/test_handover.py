"""Inside the answer or as a link: what decides, and what a caller gets either way."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests
from tests.delivery.conftest import MakeFile
from tests.delivery.storage import Storage

from ltx_worker.delivery.bucket import Bucket
from ltx_worker.delivery.handover import (
    Handed,
    HandedOver,
    ResultFile,
    body_bytes,
    hand_over,
)
from ltx_worker.delivery.job_delivery import JobDelivery
from ltx_worker.delivery.kept import KeptResults
from ltx_worker.delivery.keys import key_maker, key_prefix
from ltx_worker.errors import (
    DeadlineExceeded,
    DeliveryFailed,
    InvalidRequest,
    JobError,
    OutputTooLarge,
)
from ltx_worker.raw_result import RawImageData, RawOutput, RawResult
from ltx_worker.request_fields import OutputOptions, read_fields
from ltx_worker.request_output import output_problems
from ltx_worker.result import GenerateResult, Metadata, OutputEntry, Timings
from ltx_worker.stop import StopSignal

PATTERN = "outputs/ltx2/{date}/{job_id}.{ext}"
TIMINGS = Timings(
    inputs_s=0.1, queue_s=0, comfy_s=1, stages={}, encode_s=0.1, upload_s=0, total_s=2
)
METADATA = Metadata(
    gpu=None,
    seed=1,
    mode="t2v",
    model="ltx-2",
    variant="fp8",
    quality="fast",
    width=256,
    height=128,
    fps=24,
    num_frames=9,
    duration_s=0.375,
    has_audio=True,
    enhanced_prompt="a prompt with a canary",
    audio_sample_rate=24000,
    engine="sandbox",
    worker_version="0",
)


def files_of(*paths: Path) -> list[ResultFile]:
    """A clip and, where there are more, its pictures."""
    names = [("clip.mp4", "video/mp4", ""), ("clip-thumbnail.jpg", "image/jpeg", "thumbnail")]
    return [ResultFile.of(path, *names[n]) for n, path in enumerate(paths)]


def draft_of(files: list[ResultFile]) -> GenerateResult:
    """The result of a job whose files are not handed over yet."""
    return GenerateResult(
        video="",
        outputs=[OutputEntry.of(file) for file in files],
        metadata=METADATA,
        timings=TIMINGS,
        warnings=["über"],
    )


def delivery(bucket: Bucket | None, folder: Path, **values: Any) -> JobDelivery:
    """A job's delivery with the usual limits."""
    usual: dict[str, Any] = {
        "job_id": "job-1",
        "job_input": {"prompt": "a canary in the rain"},
        "max_response_bytes": 10_000_000,
        "output_key": PATTERN,
        "bucket": bucket,
        "kept": KeptResults(folder / "kept", 3600),
        "stop": StopSignal(60),
    }
    return JobDelivery(**usual | values)


def posted(answer: dict[str, Any]) -> int:
    """The bytes of the body that RunPod's SDK makes of an answer."""
    return len(json.dumps({"output": answer}, ensure_ascii=False).encode())


@pytest.mark.parametrize("text", ["plain", 'a "quote"', "ü" * 9, "two\nlines", "back\\slash", ""])
def test_the_size_of_a_body_is_exact(text: str) -> None:
    """Whatever the texts are, also those that JSON writes longer than they are."""
    answer = {
        "video": "QUJD" * 5000,
        "images": [{"data": "QQ==", "type": "base64"}],
        "outputs": [{"data": None, "url": "https://clips.example/a?b=c%20d", "n": 1.5}],
        "texts": {"data": [text]},
        "warnings": [text, text],
        "none": None,
    }
    assert body_bytes(answer) == posted(answer)


def test_a_clip_goes_inside_up_to_the_last_byte(make_file: MakeFile, tmp_path: Path) -> None:
    """The limit holds for what is posted, and little room is given away."""
    files = files_of(make_file(300_000), make_file(10_000))
    draft = draft_of(files)
    result = delivery(None, tmp_path).deliver(draft, files, OutputOptions())
    size = posted(result.model_dump(mode="json"))
    limit = size + 64
    fits = delivery(None, tmp_path, max_response_bytes=limit)
    assert posted(fits.deliver(draft, files, OutputOptions()).model_dump(mode="json")) <= limit
    with pytest.raises(OutputTooLarge):
        delivery(None, tmp_path, max_response_bytes=size - 1).deliver(draft, files, OutputOptions())


def test_inside_the_answer_each_file_is_once(make_file: MakeFile, tmp_path: Path) -> None:
    """The clip in `video`, the others in `data`, and no links."""
    files = files_of(make_file(1000), make_file(500))
    result = delivery(None, tmp_path).deliver(draft_of(files), files, OutputOptions())
    clip, picture = result.outputs
    assert base64.b64decode(result.video or "") == files[0].path.read_bytes()
    assert (result.video_url, clip.data, clip.url, picture.url) == (None, None, None, None)
    assert base64.b64decode(picture.data or "") == files[1].path.read_bytes()
    assert result.timings.upload_s == 0


def test_as_links_every_file_has_its_own(
    storage: Storage, make_file: MakeFile, tmp_path: Path
) -> None:
    """All of them work, the clip's is in both places, and the time is counted."""
    files = files_of(make_file(1000), make_file(500))
    job = delivery(Bucket(storage.config), tmp_path)
    result = job.deliver(draft_of(files), files, OutputOptions(delivery="url", key="mine/clip"))
    clip, picture = result.outputs
    assert result.video is None
    assert result.video_url == clip.url
    for entry, file in zip(result.outputs, files, strict=True):
        assert requests.get(entry.url or "", timeout=10).content == file.path.read_bytes()
    assert "outputs/ltx2/mine/clip.mp4" in (clip.url or "")
    assert "outputs/ltx2/mine/clip-thumbnail.jpg" in (picture.url or "")
    assert result.timings.upload_s > 0
    assert result.timings.total_s == pytest.approx(TIMINGS.total_s + result.timings.upload_s)


def test_auto_uploads_what_does_not_fit(
    moto_storage: Storage, make_file: MakeFile, tmp_path: Path
) -> None:
    """A caller who leaves it open gets a small clip inside and a large one as a link."""
    bucket = Bucket(moto_storage.config)
    small, large = files_of(make_file(1000)), files_of(make_file(9000))
    job = delivery(bucket, tmp_path, max_response_bytes=8000)
    assert job.deliver(draft_of(small), small, OutputOptions()).video is not None
    assert job.deliver(draft_of(large), large, OutputOptions()).video_url is not None


def test_what_does_not_fit_names_three_ways_out(
    moto_storage: Storage, make_file: MakeFile, tmp_path: Path
) -> None:
    """With the size and the limit; where there is a bucket, to ask for it is the first."""
    files = files_of(make_file(9_000_000))
    with pytest.raises(OutputTooLarge, match=r"9\.0 MB .* 12\.0 MB; it may have 10\.0 MB") as none:
        delivery(None, tmp_path).deliver(draft_of(files), files, OutputOptions())
    hint = none.value.hint or ""
    assert all(words in hint for words in ("R2", "shorter", "LTX2_MAX_RESPONSE_BYTES", "20 MB"))
    job = delivery(Bucket(moto_storage.config), tmp_path)
    with pytest.raises(OutputTooLarge) as asked:
        job.deliver(draft_of(files), files, OutputOptions(delivery="base64"))
    assert "delivery auto or url" in (asked.value.hint or "")


def test_links_without_a_bucket_are_a_wrong_request(make_file: MakeFile) -> None:
    """The last defence; `output_problems` says so before anything is computed."""
    files = files_of(make_file(10))
    with pytest.raises(InvalidRequest, match="no bucket"):
        hand_over(files, choice="url", rest_bytes=0, max_response_bytes=10_000, stop=StopSignal(60))


def test_raw_files_take_the_form_of_the_generic_worker() -> None:
    """Pictures are in `images` as data or link, and every other file in `outputs`."""

    def output(kind: str, data: str | None) -> RawOutput:
        return RawOutput(
            node_id="1",
            kind=kind,
            filename="a",
            subfolder="",
            mime_type="x/y",
            bytes=1,
            sha256="",
            data=data,
        )

    draft = RawResult(
        images=[RawImageData(filename="a", data="")],
        outputs=[output("audio", ""), output("images", None)],
        texts={},
        timings=TIMINGS,
        warnings=[],
    )
    inside = draft.delivered(HandedOver((Handed(data="QQ=="), Handed(data="Qg=="))))
    assert inside.images == [RawImageData(filename="a", type="base64", data="Qg==")]
    assert [(one.data, one.url) for one in inside.outputs] == [("QQ==", None), (None, None)]
    linked = draft.delivered(HandedOver((Handed(url="u1"), Handed(url="u2")), upload_s=1.5))
    assert linked.images == [RawImageData(filename="a", type="s3_url", data="u2")]
    assert [(one.data, one.url) for one in linked.outputs] == [(None, "u1"), (None, "u2")]
    assert (linked.timings.upload_s, linked.timings.total_s) == (1.5, 3.5)


@pytest.mark.parametrize("given", [{"video": "QQ==", "video_url": "u"}, {}])
def test_a_result_has_exactly_one_clip(given: dict[str, str]) -> None:
    """Neither none nor two."""
    with pytest.raises(ValueError, match="either video or video_url"):
        GenerateResult(outputs=[], metadata=METADATA, timings=TIMINGS, warnings=[], **given)


# ---- a clip that could not be uploaded ----------------------------------------------------------


def test_a_clip_that_could_not_be_uploaded_is_uploaded_the_next_time(
    moto_storage: Storage, make_file: MakeFile, tmp_path: Path
) -> None:
    """The job comes again and its clip is there; it is not made a second time, and then gone."""
    files = files_of(make_file(1000), make_file(500))
    options = OutputOptions(delivery="url")
    broken = Bucket(replace(moto_storage.config, bucket="absent"))
    with pytest.raises(DeliveryFailed):
        delivery(broken, tmp_path).deliver(draft_of(files), files, options)
    contents = [file.path.read_bytes() for file in files]
    for file in files:
        file.path.unlink()
    job = delivery(Bucket(moto_storage.config), tmp_path)
    result = job.deliver_again(GenerateResult, options)
    assert result is not None
    assert [requests.get(e.url or "", timeout=10).content for e in result.outputs] == contents
    assert "earlier attempt" in result.warnings[-1]
    assert job.deliver_again(GenerateResult, options) is None
    assert list((tmp_path / "kept").iterdir()) == []


def test_a_clip_stays_kept_while_uploads_fail(
    moto_storage: Storage, make_file: MakeFile, tmp_path: Path
) -> None:
    """Each further attempt may be the one that works."""
    files, options = files_of(make_file(1000)), OutputOptions(delivery="url")
    job = delivery(Bucket(replace(moto_storage.config, bucket="absent")), tmp_path)
    with pytest.raises(DeliveryFailed):
        job.deliver(draft_of(files), files, options)
    for _ in range(2):
        with pytest.raises(DeliveryFailed):
            job.deliver_again(GenerateResult, options)
    again = delivery(Bucket(moto_storage.config), tmp_path).deliver_again(GenerateResult, options)
    assert again is not None


def test_a_clip_whose_upload_took_too_long_is_kept(
    moto_storage: Storage, make_file: MakeFile, tmp_path: Path
) -> None:
    """The time of this attempt is up, and the next one has its own."""
    files, options = files_of(make_file(1000)), OutputOptions(delivery="url")
    bucket = Bucket(moto_storage.config)
    with pytest.raises(DeadlineExceeded):
        delivery(bucket, tmp_path, stop=StopSignal(1e-9)).deliver(draft_of(files), files, options)
    assert delivery(bucket, tmp_path).deliver_again(GenerateResult, options) is not None


def test_a_clip_that_is_too_large_is_not_kept(make_file: MakeFile, tmp_path: Path) -> None:
    """Another attempt would not fit either."""
    files = files_of(make_file(9000))
    with pytest.raises(JobError):
        delivery(None, tmp_path, max_response_bytes=8000).deliver(
            draft_of(files), files, OutputOptions()
        )
    assert not (tmp_path / "kept").exists()


# ---- keys ---------------------------------------------------------------------------------------


def file_named(name: str, part: str = "") -> ResultFile:
    """A file of which only the name matters."""
    return ResultFile(Path("x"), name, "video/mp4", 1, "", part)


@pytest.mark.parametrize(
    ("job_id", "name", "part", "key"),
    [
        ("ab-c", "clip.mp4", "", "ab-c.mp4"),
        ("ab-c", "still.JPG", "thumbnail", "ab-c-thumbnail.jpg"),
        ("../../etc/x y", "clip.webm", "", ".._.._etc_x_y.webm"),
        ("a", "no suffix", "", "a.mp4"),
        ("a", "x.mp4/../../y", "2", "a-2.mp4"),
    ],
)
def test_a_key_comes_from_the_pattern(job_id: str, name: str, part: str, key: str) -> None:
    """Nothing in an id or a name leads elsewhere."""
    pattern = "outputs/{job_id}.{ext}"
    assert key_maker(pattern, job_id)(file_named(name, part)) == f"outputs/{key}"


def test_the_day_of_a_key_is_that_of_utc() -> None:
    """All files of a job have the same."""
    key = key_maker(PATTERN, "j")(file_named("a.mp4"))
    assert key.count("-") == 2
    assert key.startswith("outputs/ltx2/2")


@pytest.mark.parametrize(
    ("own", "part", "key"),
    [
        ("mine/clip", "", "outputs/ltx2/mine/clip.mp4"),
        ("mine/clip.mp4", "", "outputs/ltx2/mine/clip.mp4"),
        ("v1.2", "", "outputs/ltx2/v1.2.mp4"),
        ("outputs/ltx2/clip", "", "outputs/ltx2/clip.mp4"),
        ("clip.mp4", "last-frame", "outputs/ltx2/clip-last-frame.mp4"),
    ],
)
def test_a_callers_key_stays_below_the_prefix(own: str, part: str, key: str) -> None:
    """With the suffix of the file, given or not."""
    assert key_prefix(PATTERN) == "outputs/ltx2/"
    assert key_maker(PATTERN, "j", own)(file_named("a.mp4", part)) == key


@pytest.mark.parametrize(
    "key",
    ["", "/a", "a/", "a//b", "..", "a/../b", "./a", "a b", "a?b", "ä", "a\\b", "x" * 513, 5],
)
def test_a_key_that_could_lead_elsewhere_is_refused(key: Any) -> None:
    """As every other field, by its name."""
    _, problems = read_fields({"prompt": "x", "output": {"key": key}})
    assert [problem.field for problem in problems] == ["output.key"]


def test_an_output_that_this_worker_cannot_make_is_named() -> None:
    """Before anything is computed."""
    options = OutputOptions(delivery="url", key="a.webm")
    problems = output_problems(options, "mp4", has_bucket=False)
    assert [problem.field for problem in problems] == ["output.delivery", "output.key"]
    assert output_problems(options, "webm", has_bucket=True) == []
    assert output_problems(OutputOptions(), "mp4", has_bucket=False) == []
