"""Shared by all tests."""

import warnings

from hypothesis import settings

settings.register_profile("pruneseal", deadline=None)  # how long an example takes depends on what else the machine does
settings.register_profile("daily", settings.get_profile("pruneseal"), max_examples=20)  # by `make check`
settings.load_profile("pruneseal")

with warnings.catch_warnings():
    # Flower imports a name that the newest release of one of its own dependencies calls deprecated.
    warnings.simplefilter("ignore", DeprecationWarning)
    import flwr.app
    import flwr.clientapp
    import flwr.serverapp  # noqa: F401
