"""ComfyUI nodes: schema, tooltips and a thin `execute`. The only room that imports ComfyUI."""
