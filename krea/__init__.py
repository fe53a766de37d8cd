"""The engine of Flux Krea: schedules, noise, prompt words, file identification.

Knows no ComfyUI, no node and no screen. Importing this package imports no torch.
"""

VERSION = "0.1.0"
