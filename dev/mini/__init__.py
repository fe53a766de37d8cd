"""krea-mini: a FLUX-shaped model of a few MB, trained on drawn pictures so that prompts mean something to it."""
