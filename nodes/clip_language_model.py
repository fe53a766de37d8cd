"""A vision-language text encoder that ComfyUI itself loads (Qwen3-VL), as a model that the language judge can ask."""

import hashlib
from collections.abc import Collection, Iterable, Sequence

import comfy.model_management
import comfy.sd
import numpy as np
import torch
from PIL import Image

from ..krea.filters.decision import JudgeError

_HASHED = 64  # values of each tensor


class ClipLanguageModel:
    """A CLIP of ComfyUI's as krea.filters.language_judge.LanguageModel; ComfyUI's memory management moves it.

    It is asked with Qwen3-VL's own chat template, whichever one the CLIP has for making pictures.

    Raises:
        ValueError: the CLIP has no Qwen3-VL with its vision tower, or a LoRA changes it.
    """

    def __init__(self, clip: comfy.sd.CLIP):
        whole, self.name = clip.cond_stage_model, getattr(clip.tokenizer, "clip_name", "unknown")
        self._encoder = getattr(whole, getattr(whole, "clip", ""), None)
        if not hasattr(getattr(self._encoder, "transformer", None), "build_image_inputs"):
            raise ValueError(
                f"language_clip is a text encoder of the kind {self.name}, which cannot look at pictures and answer. "
                "Expected Qwen3-VL, such as qwen3vl_4b with type krea2 in Load CLIP (ComfyUI 0.30 or newer). Wire "
                "another CLIP, or none."
            )
        if clip.patcher.patches:
            raise ValueError(
                "language_clip is changed by a LoRA, so nobody knows what it answers. Wire it as Load CLIP gives it."
            )
        self._clip = clip
        self._words = getattr(clip.tokenizer, clip.tokenizer.clip).tokenizer
        self.version = _version(whole)

    def control_tokens(self) -> Collection[str]:
        # ComfyUI's tokenizer puts an embedding from the disk in the place of "embedding:name".
        return {*self._words.get_added_vocab(), *self._words.all_special_tokens, "embedding:"}

    def one_token_ids(self, words: Iterable[str]) -> set[int]:
        encoded = [self._words.encode(word, add_special_tokens=False) for word in words]
        return {ids[0] for ids in encoded if len(ids) == 1} - {self._words.unk_token_id}

    def render(self, message: str, with_picture: bool) -> str:
        # ComfyUI leaves a text that begins so as it is.
        picture = "<|vision_start|><|image_pad|><|vision_end|>" if with_picture else ""
        return f"<|im_start|>user\n{picture}{message}<|im_end|>\n<|im_start|>assistant\n"

    @torch.no_grad()
    def logits(self, prompts: Sequence[str], picture: Image.Image | None = None) -> torch.Tensor:
        shown = [] if picture is None else [torch.from_numpy(np.asarray(picture, np.float32) / 255)[None]]
        # One by one: ComfyUI's positions and visual features are those of one sequence.
        return torch.cat([self._next_word(prompt, shown) for prompt in prompts])

    def _next_word(self, prompt: str, pictures: list[torch.Tensor]) -> torch.Tensor:
        """(1, vocabulary). What Qwen3VLClipModel.generate in comfy/text_encoders/qwen3vl.py does for its first word."""
        tokens = self._clip.tokenize(prompt, images=pictures)
        (row,) = next(iter(tokens.values()))
        ids = [word for word, *_ in row]
        if sum(isinstance(word, dict) for word in ids) != len(pictures):
            raise JudgeError(f"ComfyUI's tokenizer for {self.name} does not take the picture in. Choose another CLIP")
        device = self._clip.load_model(tokens).load_device
        with comfy.model_management.cuda_device_context(device):
            embeds, _, _, info = self._encoder.process_tokens([ids], device)
            if comfy.model_management.should_use_bf16(device):
                embeds = embeds.bfloat16()
            hidden = self._encoder.transformer(None, embeds=embeds, embeds_info=info)[0]
            return self._encoder.transformer.logits(hidden)[:, -1]


def _version(model: torch.nn.Module) -> str:
    """A SHA-256 that stands for the weights: of each tensor's name, form and first values, since all of it is 8 GB."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        start = tensor.detach().reshape(-1)[:_HASHED].cpu().contiguous().view(torch.uint8)
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode() + start.numpy().tobytes())
    return f"sha256-start:{digest.hexdigest()}"
