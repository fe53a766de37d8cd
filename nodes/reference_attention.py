"""The model's side of style references: tokens that come and go with the schedule, and a bias on their attention.

What a reference is travels in the conditioning (its tokens behind the text, its numbers beside them), so positive and
negative prompts, areas and several nodes each keep their own. The model gets one patch that reads it.
"""

import functools
from dataclasses import dataclass, replace

import comfy.conds
import torch
import torch.nn.functional as F
from comfy.ldm.modules.attention import attention_pytorch
from comfy.patcher_extension import WrappersMP

from ..krea.guidance import SigmaInterval
from ..krea.schedule import PATCH
from ..krea.style import Keys, biased_attention

KEY = "flux_krea_references"


@dataclass(frozen=True, eq=False)
class Reference:
    """One picture's tokens in a conditioning. Two are the same only where they are one object: ComfyUI compares them.

    start, count: which text tokens they are. bias: added to their attention logits.
    start_percent, end_percent: the part of the schedule in which they are there.
    region: (H, W) of any size, 0..1, where in the result they act; None for everywhere.
    """

    start: int
    count: int
    bias: float
    start_percent: float
    end_percent: float
    region: torch.Tensor | None


class References(comfy.conds.CONDConstant):
    """References on their way through ComfyUI's batching, which adds the area (h, w, y, x) of a pass, or None."""

    def process_cond(self, batch_size, area=None, **kwargs):
        return self._copy_with((self.cond, None if area is None else tuple(area)))


def append_tokens(conditioning: list, tokens: list[torch.Tensor], biases: list[float], **settings) -> list:
    """A conditioning with the tokens, each (N, C), behind its text; `settings` are the other fields of Reference.

    ControlNets, which know neither weight nor schedule of a reference, keep the text alone.
    """
    entries = []
    for text, values in conditioning:
        values = {"cross_attn_controlnet": text} | values
        references, start = [], text.shape[1]
        for own, bias in zip(tokens, biases, strict=True):
            references.append(Reference(text.shape[1], len(own), bias, **settings))
            text = torch.cat((text, own.to(text).expand(len(text), -1, -1)), 1)
        if "attention_mask" in values:  # of StyleModelApply: over the text it knew, then image tokens
            values = values | {"attention_mask": _with_room(values["attention_mask"], start, text.shape[1] - start)}
        model_conds = values.get("model_conds", {})
        earlier = model_conds[KEY].cond if KEY in model_conds else ()
        model_conds = model_conds | {KEY: References((*earlier, *references))}
        entries.append([text, values | {"model_conds": model_conds}])
    return entries


def _with_room(mask: torch.Tensor, start: int, count: int) -> torch.Tensor:
    """An attention mask (B, L, L) with `count` unmasked tokens more at `start`."""
    nothing = True if mask.dtype == torch.bool else 0
    for axis in (1, 2):
        before, after = mask.split([start, mask.shape[axis] - start], axis)
        room = before.new_full((*before.shape[:axis], count, *before.shape[axis + 1 :]), nothing)
        mask = torch.cat((before, room, after), axis)
    return mask


def with_references(model):
    """A clone of `model` that gives the references of its conditioning their weight, and cuts them out of schedule."""
    model = model.clone()
    if not model.get_wrappers(WrappersMP.APPLY_MODEL, KEY):
        model.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, KEY, _calc_cond_batch)
        model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, _apply_model)
    return model


def _calc_cond_batch(executor, model, conds, x_in, timestep, model_options):
    """Tells _apply_model, which may get the area of a conditioning alone, how large the whole latent is."""
    options = model_options.get("transformer_options", {}) | {KEY: tuple(x_in.shape[-2:])}
    return executor(model, conds, x_in, timestep, model_options | {"transformer_options": options})


def _apply_model(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options={}, **conds):  # noqa: B006
    references, area = conds.pop(KEY, ((), None))
    if references:
        conds.pop("crossattn_controlnet", None)  # has done its work in `control`
        references = [_in_area(r, area, transformer_options.get(KEY)) for r in references]
        c_crossattn, references, conds = _at_sigma(executor.class_obj, t, c_crossattn, references, conds)
        transformer_options = _with_bias(
            transformer_options, x, c_crossattn.shape[1], conds.get("ref_latents") or (), references
        )
    return executor(x, t, c_concat, c_crossattn, control, transformer_options, **conds)


def _in_area(reference: Reference, area: tuple[int, ...] | None, size: tuple[int, int]) -> Reference:
    """The reference as an area (h, w, y, x) of a latent of `size` (height, width) sees it: its part of the region."""
    if area is None or reference.region is None:
        return reference
    height, width, top, left = area
    whole = F.interpolate(reference.region[None, None], size, mode="area")[0, 0]
    return replace(reference, region=whole[top : top + height, left : left + width])


def _at_sigma(model, sigma: torch.Tensor, text: torch.Tensor, references, conds: dict):
    """The text, the references and the other conditions without the tokens that do not act at this sigma."""
    percent_to_sigma = model.model_sampling.percent_to_sigma
    keep = torch.ones(text.shape[1], dtype=torch.bool)
    for reference in references:
        interval = SigmaInterval(percent_to_sigma(reference.start_percent), percent_to_sigma(reference.end_percent))
        keep[reference.start : reference.start + reference.count] = sigma[0].item() in interval
    if keep.all():
        return text, references, conds
    places = (keep.cumsum(0) - 1).tolist()
    references = [replace(r, start=places[r.start]) for r in references if keep[r.start]]
    if (mask := conds.get("attention_mask")) is not None:  # of StyleModelApply: over text and image tokens
        keys = F.pad(keep, (0, mask.shape[-1] - len(keep)), value=True)
        conds = conds | {"attention_mask": mask[..., keys, :][..., keys]}
    return text[:, keep], references, conds


def _with_bias(transformer_options: dict, x: torch.Tensor, text_tokens: int, ref_latents, references) -> dict:
    """Transformer options whose attention knows the references; `x` is (B, 16, H, W).

    ref_latents: the latents of ComfyUI's ReferenceLatent, whose tokens follow those of the picture.
    """
    override = transformer_options.get("optimized_attention_override")
    after = sum(rows * columns for rows, columns in map(_token_grid, ref_latents))
    rows, columns = _token_grid(x)

    @functools.cache
    def keys(before: int) -> list[Keys]:
        shares = (_share(r.region, x, before + text_tokens, after) for r in references)
        return [Keys(before + r.start, r.count, r.bias, share) for r, share in zip(references, shares, strict=True)]

    def attention(function, q, k, v, heads, *args, mask=None, **kwargs):
        def attend(queries, mask):
            if override is not None:
                return override(function, queries, k, v, heads, *args, mask=mask, **kwargs)
            return function(queries, k, v, heads, *args, mask=mask, **kwargs)

        before = q.shape[2] - text_tokens - rows * columns - after  # tokens that other patches put before the text
        if q.shape[2] != k.shape[2] or before < 0:  # another pack's attention to something else
            return attend(q, mask)
        runs = keys(before)
        if q.device.type == "cpu" and not all(run.unbiased for run in runs):
            # ComfyUI's default there adds a mask in a pass of its own over all logits; PyTorch's takes it along.
            function = attention_pytorch
        return biased_attention(attend, q, runs, mask)

    return transformer_options | {"optimized_attention_override": attention}


def _token_grid(latent: torch.Tensor) -> tuple[int, int]:
    """Rows and columns of the tokens of a latent (..., H, W)."""
    height, width = latent.shape[-2:]
    return -(-height // PATCH), -(-width // PATCH)


def _share(region: torch.Tensor | None, x: torch.Tensor, text_tokens: int, after: int) -> torch.Tensor | None:
    """How much of a reference each query sees: an image token as much as the region has there, all others all of it."""
    if region is None:
        return None
    image = F.interpolate(region[None, None].to(x), _token_grid(x), mode="area").flatten()
    return torch.cat((image.new_ones(text_tokens), image, image.new_ones(after)))
