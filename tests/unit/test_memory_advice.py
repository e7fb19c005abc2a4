"""What a caller is told after an out-of-memory error: values that can be asked for, and less."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ltx_worker.geometry import MIN_FRAMES, MIN_SIDE, Size, size_for
from ltx_worker.memory_advice import Advice, Gpu, advise, gpu_of
from ltx_worker.pace import work_of
from ltx_worker.request import GenerateRequest, KeyframeUse
from ltx_worker.request_fields import MediaSource, Mode, Quality

SAMPLER = "node 'Second pass' (SamplerCustomAdvanced)"
DECODER = "node 'Decode video' (VAEDecodeTiled)"
ENCODER = "node 'Prompt' (CLIPTextEncode)"
REQUEST = GenerateRequest(
    mode="t2v",
    family="ltx-2",
    quality="fast",
    prompt="A pier at dawn",
    size=Size(1280, 704),
    num_frames=121,
    fps=24,
    seed=1,
    options=frozenset({"generate_audio"}),
)
HD_WORK = work_of(REQUEST)


def gpu(gib: float) -> Gpu:
    return Gpu("NVIDIA L40S", int(gib * 2**30))


def advice(
    where: str = SAMPLER,
    on: Gpu | None = None,
    precision: str = "fp8",
    finished: float = 0,
    **changes: Any,
) -> Advice:
    """The advice for the usual request with `changes`."""
    return advise(replace(REQUEST, **changes), where, on, precision, finished)


def options(*names: str) -> frozenset[str]:
    return REQUEST.options | set(names)


def test_what_was_too_much_is_named() -> None:
    """The message has the size, the length and the GPU with its memory."""
    assert advice(on=gpu(44.99)).message == (
        "121 frames at 1280x704 were too much for the GPU (NVIDIA L40S, 45 GiB)"
    )
    assert advice().message == "121 frames at 1280x704 were too much for this worker"


def test_a_job_that_should_have_fitted_is_advised_three_quarters() -> None:
    """Below the GPU's limit, and where no limit is known, a step down is advised."""
    step = "Ask for 89 frames instead of 121, or ask for 1088x576 instead of 1280x704."
    assert advice(on=gpu(79.2)).hint == advice().hint == step


def test_a_job_beyond_the_gpus_limit_is_advised_the_limit() -> None:
    """More than a GPU of this memory is known to hold comes down to what it holds."""
    long = advice(on=gpu(31.4), num_frames=241)
    assert long.hint == "Ask for 121 frames instead of 241, or ask for 832x448 instead of 1280x704."


def test_far_too_much_comes_down_in_size_and_length() -> None:
    """Neither is given up for the other."""
    far = advice(on=gpu(23.6), size=Size(1920, 1088), num_frames=481)
    assert far.hint == "Ask for 161 frames at 1024x576 instead of 481 at 1920x1088."


def test_more_memory_never_means_less() -> None:
    """The limits rise with the GPU's memory."""
    largest = [
        frames_in(advice(on=gpu(gib), where=DECODER, num_frames=3001))
        for gib in (4, 12, 16, 24, 32, 40, 45, 80, 140)
    ]
    assert largest == sorted(largest)
    assert len(set(largest)) == len(largest)


def frames_in(given_advice: Advice) -> int:
    """The pixels times frames that a hint asks for, as frames of 1280x704."""
    match = re.search(r"for (\d+) frames(?: at (\d+)x(\d+))?", given_advice.hint)
    assert match is not None, given_advice.hint
    width, height = (int(side or 0) for side in match.groups()[1:])
    return int(match[1]) * (width * height or 1280 * 704) // (1280 * 704)


def test_what_this_worker_has_finished_counts_more_than_the_step_down() -> None:
    """A larger job that went well here is known to fit; one as large as this is no help."""
    assert "Ask for 105 frames" in advice(finished=0.9 * HD_WORK).hint
    assert "Ask for 89 frames" in advice(finished=0.1 * HD_WORK).hint
    assert "Ask for 89 frames" in advice(finished=2 * HD_WORK).hint


def test_an_upscaler_that_makes_the_difference_is_all_that_has_to_go() -> None:
    """Without it the clip is a quarter or half the work."""
    assert advice(options=options("spatial_upscale")).hint == "Turn spatial_upscale off."
    both = advice(options=options("spatial_upscale", "temporal_upscale"))
    assert both.hint == "Turn spatial_upscale and temporal_upscale off."
    assert both.message.startswith("241 frames at 2560x1408")


def test_options_go_before_size_and_quality() -> None:
    """What costs the clip least is named first, and all that helps is named."""
    assert advice(options=options("detailer"), quality="pro").hint == (
        "Turn detailer off. Also ask for 89 frames instead of 121, or ask for 1088x576 instead of "
        "1280x704. Quality fast needs less memory than pro."
    )


def test_decoding_is_advised_fewer_frames_alone() -> None:
    """Its memory goes by the frames, as it works in tiles of the picture."""
    assert advice(where=DECODER).hint == "Ask for 89 frames instead of 121."


def test_models_that_do_not_fit_are_not_blamed_on_the_clip() -> None:
    """A smaller clip does not help a text encoder that has no room."""
    told = advice(ENCODER, gpu(23.6), "fp16", options=options("enhance_prompt"))
    assert told.message == (
        "whatever the clip's size, the models need more memory than the GPU "
        "(NVIDIA L40S, 24 GiB) has"
    )
    assert told.hint == (
        "Turn enhance_prompt off, or install the fp8 model files and set LTX2_VARIANT=fp8, "
        "or use a worker with more memory."
    )
    assert advice(ENCODER).hint == "Use a worker with more memory."


@pytest.mark.parametrize(
    ("mode", "shorter"), [("extend", "Ask for fewer frames"), ("retake", "Give a shorter source")]
)
def test_a_length_that_follows_from_the_source_is_not_named(mode: Any, shorter: str) -> None:
    """The caller did not ask for that number of frames."""
    assert advice(mode=mode).hint == f"{shorter}, or ask for 1088x576 instead of 1280x704."
    assert advice(mode=mode, size=Size(128, 128)).hint == f"{shorter}."


def test_pictures_keep_their_frames() -> None:
    """No clip is advised that ends before a keyframe; the last picture moves with the end."""

    def with_picture_at(frame: int, field: str) -> str:
        use = KeyframeUse(field, MediaSource(url="https://a.example/p.png", base64=None), frame, 1)
        return advice(mode="keyframes", keyframes=(use,)).hint

    assert "frames" not in with_picture_at(100, "keyframes.0.image")
    assert "89 frames" in with_picture_at(88, "keyframes.0.image")
    assert "89 frames" in with_picture_at(120, "last_image")


def test_the_smallest_clip_cannot_be_made_smaller() -> None:
    """Then only another worker helps."""
    least = advice(size=Size(128, 128), num_frames=9, quality="pro")
    assert least.hint == "Use a worker with more memory. Quality fast needs less memory than pro."


SIZES = st.builds(
    lambda grid, width, height: (grid, Size(grid * width, grid * height)),
    st.sampled_from([32, 64]),
    st.integers(4, 60),
    st.integers(4, 60),
)


@given(
    SIZES,
    st.integers(1, 124).map(lambda latents: 8 * latents + 1),
    st.sampled_from(get_args(Mode)),
    st.sampled_from(get_args(Quality)),
    st.frozensets(st.sampled_from(["detailer", "spatial_upscale", "temporal_upscale"])),
    st.none() | st.floats(1, 200).map(gpu),
    st.sampled_from([SAMPLER, DECODER, ENCODER, "a node", ""]),
    st.floats(0, 5000),
)
def test_all_that_is_named_can_be_asked_for_and_is_less(
    sized: tuple[int, Size],
    frames: int,
    mode: Mode,
    quality: Quality,
    chosen: frozenset[str],
    on: Gpu | None,
    where: str,
    finished: float,
) -> None:
    """Sizes and lengths are on the grid and below what was asked; an option named was on."""
    grid, size = sized
    request = replace(
        REQUEST,
        size=size,
        grid=grid,
        num_frames=frames,
        mode=mode,
        quality=quality,
        options=chosen,
    )
    hint = advise(request, where, on, "fp8", finished).hint
    assert re.fullmatch(r"([A-Z][^.]+\.)( [A-Z][^.]+\.)*", hint)
    wanted = re.split(r" instead of \S+(?: at \S+?)?(?=[,. ])", hint)
    for count in re.findall(r"for (\d+) frames", " ".join(wanted)):
        assert MIN_FRAMES <= int(count) < frames
        assert int(count) % 8 == 1
    for width, height in re.findall(r"(?:for|at) (\d+)x(\d+)", " ".join(wanted)):
        assert int(width) % grid == int(height) % grid == 0
        assert MIN_SIDE <= int(width) <= size.width
        assert MIN_SIDE <= int(height) <= size.height
        assert int(width) * int(height) < size.width * size.height
    named = re.search(r"Turn (.+?) off", hint)
    assert set(named[1].split(" and ") if named else []) <= chosen


@given(st.sampled_from(["9:16", "16:9", "4:3", "1:1"]), st.integers(3, 40))
def test_a_smaller_size_keeps_the_shape(shape: str, latents: int) -> None:
    """The clip is not squeezed: the ratio stays within a fifth."""
    width, height = map(int, shape.split(":"))
    size = size_for("1080p", width / height, 64)
    hint = advice(size=size, num_frames=8 * latents + 1).hint
    match = re.search(r"for (\d+)x(\d+) instead", hint)
    assert match is not None
    assert int(match[1]) / int(match[2]) == pytest.approx(size.ratio, rel=0.2)


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("cuda:0 NVIDIA GeForce RTX 3090 : cudaMallocAsync", "NVIDIA GeForce RTX 3090"),
        ("cuda:0 NVIDIA A100-SXM4-80GB : native", "NVIDIA A100-SXM4-80GB"),
        ("NVIDIA L4", "NVIDIA L4"),
        ("cuda:0 /dev/nvidia0 <odd>", "unnamed"),
    ],
)
def test_the_gpu_is_named_as_people_name_it(name: str, plain: str) -> None:
    """Without ComfyUI's index and allocator, and without anything that is no name."""
    device = {"name": name, "type": "cuda", "index": 0, "vram_total": 24 * 2**30}
    assert gpu_of({"devices": [device]}) == Gpu(plain, 24 * 2**30)


@pytest.mark.parametrize(
    "stats",
    [
        {},
        {"devices": []},
        {"devices": [{"name": "cpu", "type": "cpu", "vram_total": 8 * 2**30}]},
        {"devices": [{"name": "cuda:0 X", "type": "cuda", "vram_total": None}]},
        {"devices": [{"name": None, "type": "cuda", "vram_total": 1}]},
    ],
)
def test_a_machine_without_a_known_gpu_has_none(stats: dict[str, Any]) -> None:
    """The memory of a CPU's machine is no GPU's, and a broken answer is no reason to fail."""
    assert gpu_of(stats) is None
