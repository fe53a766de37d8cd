"""A vision-language model in a folder, run by Hugging Face transformers, as one that the language judge can ask."""

import hashlib
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image
from safetensors import SafetensorError

from .decision import JudgeError, same_version
from .packed_prompts import layout, shared_beginning


class TransformersModel:
    """Such as Pixtral 12B, with transformers 4.53 or later.

    It is loaded when it is first asked, from the folder alone, with the precision of its files, and no code from the
    folder is run. Methods as in language_judge.LanguageModel; they raise JudgeError where it cannot be loaded.

    Args:
        place: called with the network before it runs, to bring it to the device where it shall run, such as through
            ComfyUI's memory management; without it that is the CPU.
    """

    def __init__(self, folder: str | os.PathLike, place: Callable[[torch.nn.Module], None] | None = None):
        self.folder = Path(folder)
        self.name = self.folder.name
        self.version = _folder_version(self.folder)
        self._place = place

    def control_tokens(self) -> Collection[str]:
        tokenizer = self.processor.tokenizer
        return {*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens}

    def one_token_ids(self, words: Iterable[str]) -> set[int]:
        tokenizer = self.processor.tokenizer
        # One word at a time: what a list of words gives is not the same in transformers 4 and 5.
        encoded = [tokenizer.encode(word, add_special_tokens=False) for word in words]
        return {ids[0] for ids in encoded if len(ids) == 1} - {tokenizer.unk_token_id}

    def render(self, message: str, with_picture: bool) -> str:
        # Some templates of Pixtral read "text" and some "content"; where the key is missing they drop the question.
        content = [{"type": "text", "text": message, "content": message}]
        if with_picture:
            content.insert(0, {"type": "image"})
        chat = [{"role": "user", "content": content}]
        return self.processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)

    @torch.no_grad()
    def logits(self, prompts: Sequence[str], picture: Image.Image | None = None) -> torch.Tensor:
        network, tokenizer = self.network, self.processor.tokenizer
        if self._place is not None:
            self._place(network)
        if hasattr(network.model, "get_rope_index"):  # Qwen's positions are no plain count
            return network(**self._inputs(prompts, picture), logits_to_keep=1, use_cache=False).logits[:, -1]
        inputs = self._inputs(prompts[:1], picture)
        words = [tokenizer.encode(prompt, **self._options(prompt)) for prompt in prompts]
        rests = [one[shared_beginning(words) :] for one in words]
        beginning = inputs["input_ids"][:, : -len(rests[0])]  # with the picture, which is many words here
        read = layout(beginning.shape[1], [len(rest) for rest in rests], network.device)
        hidden = torch.full(read.sees.shape, torch.finfo(network.dtype).min, dtype=network.dtype, device=network.device)
        inputs["input_ids"] = torch.cat((beginning, beginning.new_tensor([sum(rests, [])])), 1)
        inputs |= {"attention_mask": hidden.masked_fill(read.sees, 0)[None, None], "position_ids": read.positions[None]}
        return network(**inputs, logits_to_keep=read.ends, use_cache=False).logits[0]

    def _inputs(self, prompts: Sequence[str], picture: Image.Image | None) -> dict[str, torch.Tensor]:
        inputs = self.processor(
            text=list(prompts),
            images=None if picture is None else [picture] * len(prompts),
            padding=True,
            return_tensors="pt",
            **self._options(prompts[0]),
        )
        return dict(inputs.to(self.network.device, self.network.dtype))

    def _options(self, prompt: str) -> dict[str, bool]:
        begin = self.processor.tokenizer.bos_token
        return {"add_special_tokens": not (begin and prompt.startswith(begin))}

    @cached_property
    def processor(self):
        """Its tokenizer and preprocessing of pictures."""
        processor = self._load(lambda transformers: transformers.AutoProcessor)
        processor.tokenizer.padding_side = "left"  # the answer follows the last token of every prompt of a batch
        return processor

    @cached_property
    def network(self) -> torch.nn.Module:
        """Its weights, on the CPU."""
        # "torch_dtype" is what both transformers 4.53 and 5 know.
        return self._load(
            lambda transformers: transformers.AutoModelForImageTextToText, torch_dtype="auto", use_safetensors=True
        ).eval()

    def _load(self, auto_class: Callable, **options):
        try:
            import transformers
        except ImportError as error:
            raise JudgeError(
                f'Found no usable transformers ({error}). Install the extra "language" into ComfyUI\'s Python: pip '
                "install transformers torchvision."
            ) from error
        try:
            if not (self.folder / "config.json").is_file():
                raise OSError("config.json is missing.")
            loaded = auto_class(transformers).from_pretrained(
                self.folder, local_files_only=True, trust_remote_code=False, **options
            )
        except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
            raise JudgeError(
                f"In the folder {self.name}: {error} Expected a vision-language model for transformers with its "
                "config.json, processor, tokenizer, chat template and safetensors files, such as all files of "
                "https://huggingface.co/mistral-community/pixtral-12b (25.4 GB)."
            ) from error
        same_version(self.version, _folder_version(self.folder))
        return loaded


def _folder_version(folder: Path) -> str:
    """A SHA-256 that stands for the model: of each file's name, size and first megabyte, since all of it is 25 GB."""
    digest = hashlib.sha256()
    try:
        for path in sorted(path for path in folder.iterdir() if path.is_file()):
            with open(path, "rb") as file:
                digest.update(f"{path.name} {path.stat().st_size} ".encode() + file.read(2**20))
    except OSError:
        return "missing"
    return f"sha256-start:{digest.hexdigest()}"
