"""Shared by all tests."""

import warnings

with warnings.catch_warnings():
    # Flower imports a name that the newest release of one of its own dependencies calls deprecated.
    warnings.simplefilter("ignore", DeprecationWarning)
    import flwr.app
    import flwr.clientapp
    import flwr.serverapp  # noqa: F401
