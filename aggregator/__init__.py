"""The aggregator: it adds what it cannot read. No torch, no key, nothing of the clients."""
