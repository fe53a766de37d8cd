"""Short messages that a node shows on itself while the graph runs."""

from server import PromptServer


def show(text: str, node_id: str) -> None:
    """Write `text` onto the node with this id, in the browser that queued the graph."""
    server = getattr(PromptServer, "instance", None)  # absent where nodes run without a server
    if server is not None:
        server.send_progress_text(text, node_id, server.client_id)
