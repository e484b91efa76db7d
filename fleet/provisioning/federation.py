"""What the operator keeps of a federation: ``federation.json`` in the operator's kit."""

from protocol.documents import Count, Document, Items, Table
from protocol.errors import ConfigError


class Federation(Document):
    """The content of ``federation.json``.

    Attributes:
        plan: The digest of the plan, in hex.
        hosts: The aggregator's hosts.
        port: Its port.
        numbers: The number of every client that there ever was, by name; none is used again.
        enrolled: The names of those whose own keys nobody else has ever had.
    """

    refusal = ConfigError
    format: str = "pruneseal-federation"
    version: str = "1.0"
    plan: str
    hosts: Items[str]
    port: Count
    numbers: Table[Count]
    enrolled: Items[str]
