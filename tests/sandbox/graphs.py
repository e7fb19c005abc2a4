"""Small graphs of every mode, in API format."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Graph = dict[str, Any]
Link = list[Any]

DEV, DISTILLED = "ltx-2-19b-dev-fp8.safetensors", "ltx-2-19b-distilled-fp8.safetensors"
SPATIAL = "ltx-2-spatial-upscaler-x2-1.0.safetensors"
TEMPORAL = "ltx-2-temporal-upscaler-x2-1.0.safetensors"
FIRST_SIGMAS = "1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875, 0.0"
SECOND_SIGMAS = "0.909375, 0.725, 0.421875, 0.0"
CONTROL_LORA = "ltx-2-19b-ic-lora-union-control-ref0.5.safetensors"
W, H = 256, 128
PROMPT = "A lighthouse on a cliff at dusk, waves breaking below, gulls calling."


@dataclass(frozen=True)
class Node:
    """A node of a graph; `node[slot]` links to what it gives."""

    node_id: str

    def __getitem__(self, slot: int) -> Link:
        return [self.node_id, slot]


@dataclass
class Studio:
    """A graph that grows: the loaders and the text are there, the rest is added."""

    checkpoint: str = DISTILLED
    graph: Graph = field(default_factory=dict)

    def __post_init__(self) -> None:
        loaded = self.add("CheckpointLoaderSimple", ckpt_name=self.checkpoint)
        self.model, self.vae = loaded[0], loaded[2]
        self.audio_vae = self.add("LTXVAudioVAELoader", ckpt_name=self.checkpoint)[0]
        self.clip = self.add(
            "LTXAVTextEncoderLoader",
            text_encoder="gemma_3_12B_it_fp8_scaled.safetensors",
            ckpt_name=self.checkpoint,
            device="default",
        )[0]

    def add(self, class_type: str, **inputs: Any) -> Node:
        node = Node(str(len(self.graph) + 1))
        title = {"title": f"{class_type} {node.node_id}"}
        self.graph[node.node_id] = {"inputs": inputs, "class_type": class_type, "_meta": title}
        return node

    def text(self, prompt: Any = PROMPT, fps: float = 24.0) -> Node:
        positive = self.add("CLIPTextEncode", clip=self.clip, text=prompt)[0]
        negative = self.add("ConditioningZeroOut", conditioning=positive)[0]
        return self.add("LTXVConditioning", positive=positive, negative=negative, frame_rate=fps)

    def empty(self, width: int, height: int, frames: int) -> Link:
        size = {"width": width, "height": height, "length": frames}
        return self.add("EmptyLTXVLatentVideo", **size, batch_size=1)[0]

    def empty_audio(self, frames: int, fps: int = 24) -> Link:
        numbers = {"frames_number": frames, "frame_rate": fps, "batch_size": 1}
        return self.add("LTXVEmptyLatentAudio", **numbers, audio_vae=self.audio_vae)[0]

    def join(self, video: Link, audio: Link) -> Link:
        return self.add("LTXVConcatAVLatent", video_latent=video, audio_latent=audio)[0]

    def split(self, latent: Link) -> Node:
        return self.add("LTXVSeparateAVLatent", av_latent=latent)

    def guider(self, told: Node, model: Link | None = None, cfg: float = 1.0) -> Link:
        guidance = {"model": model or self.model, "positive": told[0], "negative": told[1]}
        return self.add("CFGGuider", **guidance, cfg=cfg)[0]

    def multimodal_guider(self, told: Node, stg: float = 1.0, perturb: bool = True) -> Link:
        chained: dict[str, Link] = {}
        for modality, cfg in (("AUDIO", 7.0), ("VIDEO", 3.0)):
            numbers = {"cfg": cfg, "stg": stg, "rescale": 0.7, "modality_scale": 3.0}
            switches = {"perturb_attn": perturb, "cross_attn": True, "skip_step": 0}
            given = self.add(
                "GuiderParameters", modality=modality, **numbers, **switches, **chained
            )
            chained = {"parameters": given[0]}
        texts = {"positive": told[0], "negative": told[1], "skip_blocks": "29"}
        return self.add("MultimodalGuider", model=self.model, **texts, **chained)[0]

    def sampling(self, guider: Link, sigmas: Any, seed: int) -> dict[str, Link]:
        """What every sampler takes beside its latent."""
        noise = self.add("RandomNoise", noise_seed=seed)[0]
        sampler = self.add("KSamplerSelect", sampler_name="euler")[0]
        if isinstance(sigmas, str):
            sigmas = self.add("ManualSigmas", sigmas=sigmas)[0]
        return {"noise": noise, "guider": guider, "sampler": sampler, "sigmas": sigmas}

    def sample(
        self, latent: Link, guider: Link, sigmas: Any = FIRST_SIGMAS, seed: int = 42
    ) -> Link:
        told = self.sampling(guider, sigmas, seed)
        return self.add("SamplerCustomAdvanced", **told, latent_image=latent)[0]

    def upsample(self, latent: Link, name: str = SPATIAL) -> Link:
        model = self.add("LatentUpscaleModelLoader", model_name=name)[0]
        inputs = {"samples": latent, "upscale_model": model, "vae": self.vae}
        return self.add("LTXVLatentUpsampler", **inputs)[0]

    def in_place(self, latent: Link, image: Link, strength: float = 1.0) -> Link:
        inputs = {"vae": self.vae, "image": image, "latent": latent}
        return self.add("LTXVImgToVideoInplace", **inputs, strength=strength, bypass=False)[0]

    def guide(
        self, told: Node, latent: Link, image: Link, frame: int, strength: float = 1.0, **more: Any
    ) -> Node:
        """Slots 0 and 1 are the conditionings, 2 the latent."""
        inputs = {"positive": told[0], "negative": told[1], "vae": self.vae, "latent": latent}
        where = {"image": image, "frame_idx": frame, "strength": strength}
        return self.add("LTXVAddGuide", **inputs, **where, **more)

    def crop(self, told: Node, latent: Link) -> Link:
        inputs = {"positive": told[0], "negative": told[1], "latent": latent}
        return self.add("LTXVCropGuides", **inputs)[2]

    def freeze(self, latent: Link) -> Link:
        mask = self.add("SolidMask", value=0.0, width=64, height=64)[0]
        return self.add("SetLatentNoiseMask", samples=latent, mask=mask)[0]

    def footage(self, name: str) -> Node:
        """Slot 0 is the frames, 1 the sound, 2 the rate."""
        return self.add("GetVideoComponents", video=self.add("LoadVideo", file=name)[0])

    def frames(self, images: Link, start: int, length: int) -> Link:
        return self.add("ImageFromBatch", image=images, batch_index=start, length=length)[0]

    def trimmed(self, audio: Link, start_s: float, duration_s: float) -> Link:
        inputs = {"audio": audio, "start_index": start_s, "duration": duration_s}
        return self.add("TrimAudioDuration", **inputs)[0]

    def encode_audio(self, audio: Link) -> Link:
        return self.add("LTXVAudioVAEEncode", audio=audio, audio_vae=self.audio_vae)[0]

    def encode(self, images: Link) -> Link:
        return self.add("VAEEncode", pixels=images, vae=self.vae)[0]

    def decode(self, latent: Link) -> Link:
        tiles = {"tile_size": 768, "overlap": 64, "temporal_size": 4096, "temporal_overlap": 4}
        return self.add("VAEDecodeTiled", samples=latent, vae=self.vae, **tiles)[0]

    def decode_audio(self, latent: Link) -> Link:
        return self.add("LTXVAudioVAEDecode", samples=latent, audio_vae=self.audio_vae)[0]

    def save(self, images: Link, audio: Link | None = None, fps: Any = 24.0) -> Graph:
        """The graph so far, with a clip as its output."""
        without = dict(self.graph)
        sound = {"audio": audio} if audio else {}
        video = self.add("CreateVideo", images=images, **sound, fps=fps)[0]
        file = {"filename_prefix": "ltx2/clip", "format": "mp4", "codec": "h264"}
        self.add("SaveVideo", video=video, **file)
        whole, self.graph = self.graph, without
        return whole


def two_passes(kind: str) -> Graph:
    """`t2v_fast`, `t2v_pro`, `i2v_fast` or `i2v_pro`: two passes, 256x128, 9 frames."""
    pro, has_image = kind.endswith("pro"), kind.startswith("i2v")
    studio = Studio(DEV if pro else DISTILLED)
    told = studio.text()
    video = studio.empty(128, 64, 9)
    image: Link = []
    if has_image:
        loaded = studio.add("LoadImage", image="example.png")[0]
        size = {"width": 256, "height": 128, "crop": "center"}
        fitted = studio.add("ImageScale", image=loaded, upscale_method="lanczos", **size)[0]
        image = studio.add("LTXVPreprocess", image=fitted, img_compression=33)[0]
        video = studio.in_place(video, image)
    latent = studio.join(video, studio.empty_audio(9))
    sigmas: Any = FIRST_SIGMAS
    model = studio.model
    if pro:
        shift = {"steps": 20, "max_shift": 2.05, "base_shift": 0.95}
        stretch = {"stretch": True, "terminal": 0.1}
        sigmas = studio.add("LTXVScheduler", **shift, **stretch, latent=latent)[0]
        lora = {"lora_name": "ltx-2-19b-distilled-lora-384.safetensors", "strength_model": 1.0}
        model = studio.add("LoraLoaderModelOnly", model=studio.model, **lora)[0]
    cfg = 4.0 if pro else 1.0
    first = studio.split(studio.sample(latent, studio.guider(told, cfg=cfg), sigmas))
    video = studio.upsample(first[0])
    video = studio.in_place(video, image) if has_image else video
    latent = studio.join(video, first[1])
    second = studio.split(studio.sample(latent, studio.guider(told, model), SECOND_SIGMAS, 43))
    return studio.save(studio.decode(second[0]), studio.decode_audio(second[1]))


def picture(studio: Studio, name: str) -> Link:
    return studio.add("LoadImage", image=f"{name}.png")[0]


def one_pass(studio: Studio, told: Node, video: Link, **options: Any) -> Link:
    """The video latent after a silent pass."""
    return studio.sample(video, studio.guider(told), **options)


def keyframed(studio: Studio, told: Node, latent: Link) -> tuple[Node, Link]:
    guide = studio.guide(told, latent, picture(studio, "one"), 0, 0.7)
    guide = studio.guide(guide, guide[2], picture(studio, "two"), 12)
    return (last := studio.guide(guide, guide[2], picture(studio, "three"), -1)), last[2]


def controlled(studio: Studio, control: Link, *, lora: str = CONTROL_LORA) -> Link:
    """A silent clip of one pass along a control, decoded."""
    loaded = {"lora_name": lora, "strength_model": 1.0}
    model = studio.add("LoraLoaderModelOnly", model=studio.model, **loaded)[0]
    parameters = studio.add("GetICLoRAParameters", iclora_model=model)[0]
    guide = studio.guide(
        studio.text(), studio.empty(W, H, 25), control, 0, iclora_parameters=parameters
    )
    video = studio.sample(guide[2], studio.guider(guide, model))
    return studio.decode(studio.crop(guide, video))


def retaken(studio: Studio, start_s: float, end_s: float, **options: Any) -> tuple[Link, Link]:
    """The source with a window drawn anew: video and audio latent."""
    source, told = studio.footage("source.mp4"), studio.text()
    latent = studio.join(studio.encode(source[0]), studio.encode_audio(source[1]))
    window = {"start_time": start_s, "end_time": end_s, "video_fps": 24.0, "slope_len": 3}
    window |= {"mask_video": True, "mask_audio": True, **options}
    window |= {"mask_init_value_video": 0.0, "mask_init_value_audio": 0.0}
    loaded = {"model": studio.model, "vae": studio.vae, "audio_vae": studio.audio_vae}
    texts = {"positive": told[0], "negative": told[1]}
    masked = studio.add(
        "LTXVSetAudioVideoMaskByTime", av_latent=latent, **texts, **loaded, **window
    )
    split = studio.split(studio.sample(masked[2], studio.guider(masked)))
    return split[0], split[1]


def extended(studio: Studio, context: int, new: int) -> Link:
    """The last frames of the source as context, and what comes after, in two passes."""
    told = studio.text()
    start = studio.frames(studio.footage("source.mp4")[0], 49 - context, context)
    video = studio.in_place(studio.empty(128, 64, context + new), start)
    video = studio.upsample(one_pass(studio, told, video))
    return one_pass(studio, told, studio.in_place(video, start), sigmas=SECOND_SIGMAS)
