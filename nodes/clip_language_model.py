"""A vision-language text encoder that ComfyUI itself loads (Qwen3-VL), as a model that the language judge can ask."""

import hashlib
from collections.abc import Collection, Iterable, Sequence

import comfy.model_management
import comfy.sd
import numpy as np
import torch
from PIL import Image

from ..krea.filters.decision import JudgeError
from ..krea.filters.packed_prompts import layout, shared_beginning

_HASHED = 64  # values of each tensor
_PICTURE = -1  # no word's token


class ClipLanguageModel:
    """A CLIP of ComfyUI's as krea.filters.language_judge.LanguageModel; ComfyUI's memory management moves it.

    It is asked with Qwen3-VL's own chat template, whichever one the CLIP has for making pictures.

    Raises:
        ValueError: the CLIP has no Qwen3-VL with its vision tower, or a LoRA changes it.
    """

    def __init__(self, clip: comfy.sd.CLIP):
        whole, self.name = clip.cond_stage_model, getattr(clip.tokenizer, "clip_name", "unknown")
        self._encoder = dict(whole.named_children()).get(getattr(whole, "clip", ""))
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
        self._words = vars(clip.tokenizer)[clip.tokenizer.clip].tokenizer
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
        # What Qwen3VLClipModel.generate in comfy/text_encoders/qwen3vl.py does for its first word, for all at once.
        shown = [] if picture is None else [torch.from_numpy(np.asarray(picture, np.float32) / 255)[None]]
        words = [self._tokens(prompt, shown) for prompt in prompts]
        beginning = shared_beginning([[_PICTURE if isinstance(word, dict) else word for word in one] for one in words])
        rests = [one[beginning:] for one in words]
        device, network = self._clip.load_model().load_device, self._encoder.transformer
        with comfy.model_management.cuda_device_context(device):
            embeds, _, _, info = self._encoder.process_tokens([words[0][:beginning] + sum(rests, [])], device)
            if comfy.model_management.should_use_bf16(device):
                embeds = embeds.bfloat16()
            start = embeds.shape[1] - sum(map(len, rests))  # of the rests; a picture is many words here
            read = layout(start, [len(rest) for rest in rests], device)
            positions, visual, deepstack = network.build_image_inputs(embeds, info)
            if positions is None:
                positions = read.positions[None]
            else:  # (3, S): what follows on a picture goes on from its longer side
                positions[:, start:] = positions[:, start - 1 : start] + 1 + read.positions[start:] - start
            hidden, *_ = network(
                None,
                attention_mask=read.sees[None],
                embeds=embeds,
                position_ids=positions,
                visual_pos_masks=visual,
                deepstack_embeds=deepstack,
            )
            return network.logits(hidden[0, read.ends, None])[:, -1]

    def _tokens(self, prompt: str, pictures: list[torch.Tensor]) -> list:
        """The tokens of a prompt, a dict in the place of a picture."""
        (row,) = next(iter(self._clip.tokenize(prompt, images=pictures).values()))
        words = [word for word, *_ in row]
        if sum(isinstance(word, dict) for word in words) != len(pictures):
            raise JudgeError(f"ComfyUI's tokenizer for {self.name} does not take the picture in. Choose another CLIP")
        return words


def _version(model: torch.nn.Module) -> str:
    """A SHA-256 that stands for the weights: of each tensor's name, form and first values, since all of it is 8 GB."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        start = tensor.detach().reshape(-1)[:_HASHED].cpu().contiguous().view(torch.uint8)
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode() + start.numpy().tobytes())
    return f"sha256-start:{digest.hexdigest()}"
