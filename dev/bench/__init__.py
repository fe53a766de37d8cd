"""`python3 dev bench`: the pack against ComfyUI's own nodes, each figure a ratio measured in one run."""

import argparse
import os
import tempfile
from pathlib import Path

from dev import small_model
from dev.environment import say
from dev.host import CALM_THREADS, ComfyHost


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python3 dev bench",
        description="Measures the text-to-image workflow against the same job on ComfyUI's own nodes (time, CPU "
        "time, peak memory, identical pictures), the pack's import time, the header check of a 12 GB file, what style "
        "references cost, with the small model and at the widths of FLUX.1, what the content filter costs beside Black "
        "Forest Labs' own flow, and the client: its overhead per job, two servers against one, and the start of its "
        "command.",
    )
    parser.add_argument("--pairs", type=int, default=20, help="pictures made by each side (default 20)")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Print every figure; 1 when the two workflows did not make identical pictures."""
    pairs = parse(arguments).pairs
    os.environ.update(CALM_THREADS)  # before PyTorch is imported: a thread that spins takes CPU time, too
    # With packages that only the environment has.
    from dev.bench import client, content_filter, header_check, import_time, style_reference, text_to_image

    with tempfile.TemporaryDirectory() as folder:
        with ComfyHost(Path(folder) / "comfyui", small_model.FILES) as host:
            say(import_time.report(host))
            result = text_to_image.compare(host, pairs)
            gate = content_filter.graph_report(host)
            overhead = client.overhead(host, pairs)
            references = style_reference.small_model_report(host, "ComfyUI's choice for a CPU")
        arguments = ["--use-pytorch-cross-attention"]
        with ComfyHost(Path(folder) / "attention", small_model.FILES, arguments=arguments) as host:
            same_attention = style_reference.small_model_report(host, "PyTorch's, as on a GPU")
        say(result.report())
        say(header_check.report(Path(folder)))
        say(overhead)
        say(client.two_servers(Path(folder), 2 * pairs))
    say(references)
    say(same_attention)
    say(style_reference.report())
    say(gate)
    say(content_filter.report())
    say(client.start_of_the_command())
    return 0 if result.identical else 1
