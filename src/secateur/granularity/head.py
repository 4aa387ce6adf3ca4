"""Head: attention heads, with all that makes their queries, keys and values."""

from secateur.errors import ConfigError
from secateur.granularity.channel import channel
from secateur.granularity.registry import Elements, Units, granularity
from secateur.graph import Graph


@granularity("head")
def head(parameters: Elements, graph: Graph | None = None, *, equal: bool = False) -> Units:
    """The free classes of heads of a graph; with grouped queries a key head and all its queries.

    Args:
        parameters: Name -> weight.
        graph: Of the model.
        equal: Each head counts as one where all compete, however many weights it has.

    Raises:
        ConfigError: The model has no heads that can go.

    Example:
        >>> from torch import nn
        >>> from secateur.graph import trace
        >>> net = nn.TransformerEncoderLayer(8, 4, 16, batch_first=True).eval()
        >>> found = head(dict(net.named_parameters()), trace(net, torch.randn(2, 3, 8)))
        >>> list(found.counts.values())
        [4]
    """
    assert graph is not None
    if not any(c.kind == "head" for c in graph.free.values()):
        raise ConfigError(
            "the graph has no attention heads that can go: look at the trace, or use "
            "granularity='channel'"
        )
    return channel(parameters, graph, equal=equal, kinds=("head",))
