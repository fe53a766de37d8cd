"""The workbench of the pack: ``python3 dev`` brings a real ComfyUI and the small model to a bare machine."""
