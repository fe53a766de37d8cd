"""Small vision-language models with random weights, in folders as transformers loads them; for tests and benchmarks."""

from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from krea.filters.questions import PICTURE_QUESTIONS, TEXT_QUESTIONS

PIXTRAL_TOKENS = ["[INST]", "[/INST]", "[IMG]", "[IMG_BREAK]", "[IMG_END]"]
QWEN_TOKENS = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}
_PIXTRAL_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[INST]{% for c in m.content %}"
    "{% if c.type == 'image' %}[IMG]{% else %}{{ c['KEY'] }}{% endif %}{% endfor %}[/INST]{% endfor %}"
)
_QWEN_TEMPLATE = (
    "{% for m in messages %}<|im_start|>user\n{% for c in m.content %}"
    "{% if c.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c.text }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)


def save_pixtral(folder: Path, key: str = "content", dtype: torch.dtype = torch.float32, **sizes) -> Path:
    """A Pixtral with patches of 32 px, whose chat template reads `key`; `sizes` are those of both towers."""
    words = _tokenizer(transformers.PreTrainedTokenizerFast, PIXTRAL_TOKENS, begin="<s>")
    sizes = SIZES | {"num_hidden_layers": 2} | sizes
    config = transformers.LlavaConfig(
        vision_config=transformers.PixtralVisionConfig(**sizes, patch_size=32, image_size=1024),
        text_config=transformers.MistralConfig(
            **sizes, vocab_size=len(words), num_key_value_heads=1, initializer_range=0.3
        ),
        image_token_index=words.convert_tokens_to_ids("[IMG]"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    _save(transformers.LlavaForConditionalGeneration, config, dtype, folder)
    resizing = transformers.PixtralImageProcessor(patch_size={"height": 32, "width": 32})
    template = _PIXTRAL_TEMPLATE.replace("KEY", key)
    transformers.PixtralProcessor(resizing, words, patch_size=32, chat_template=template).save_pretrained(folder)
    return folder


def save_qwen3_vl(folder: Path) -> Path:
    """A Qwen3-VL of SIZES."""
    words = _tokenizer(transformers.Qwen2TokenizerFast, QWEN_TOKENS, begin=None)
    _, _, start, end, image, video = words.convert_tokens_to_ids(QWEN_TOKENS)
    text = {"num_hidden_layers": 2, "num_key_value_heads": 1, "head_dim": 16, "initializer_range": 0.5}
    rope = {"rope_type": "default", "mrope_section": [4, 2, 2], "mrope_interleaved": True}
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "depth": 2, "out_hidden_size": 32}
    config = transformers.Qwen3VLConfig(
        text_config=SIZES | text | {"vocab_size": len(words), "rope_scaling": rope},
        vision_config=vision | {"deepstack_visual_indexes": [0]},
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
    )
    _save(transformers.Qwen3VLForConditionalGeneration, config, torch.float32, folder)
    looking = transformers.Qwen2VLImageProcessor(patch_size=16, merge_size=2), transformers.Qwen3VLVideoProcessor()
    transformers.Qwen3VLProcessor(looking[0], words, looking[1], chat_template=_QWEN_TEMPLATE).save_pretrained(folder)
    return folder


def _save(kind: type, config, dtype: torch.dtype, folder: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        kind(config).to(dtype).save_pretrained(folder)


def _tokenizer(kind: type, control: list[str], begin: str | None):
    """A byte-level BPE tokenizer that knows the words of the questions and sets `begin` before every text."""
    inner = Tokenizer(models.BPE(unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<unk>", "<s>", "</s>", *control, "<pad>"]
    trainer = trainers.BpeTrainer(special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    words = ["yes", "no", "Yes", "No", *(question.text for question in TEXT_QUESTIONS + PICTURE_QUESTIONS)]
    inner.train_from_iterator(words * 9, trainer)
    if begin is not None:
        own = [(begin, inner.token_to_id(begin))]
        inner.post_processor = processors.TemplateProcessing(single=f"{begin} $A", special_tokens=own)
    return kind(
        tokenizer_object=inner,
        bos_token=begin,
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        additional_special_tokens=control,
        model_input_names=["input_ids", "attention_mask"],
    )
