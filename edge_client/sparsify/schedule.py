"""How sparse after which round: the cubic schedule."""


def sparsity_after(round_: int, *, final: float, first: int, rounds: int, frequency: int, exponent: float) -> float:
    """s_t, the sparsity after round t, a fraction.

    FedSparsify (Stripelis et al., arXiv:2204.12430), after Zhu and Gupta (arXiv:1710.01878), with s_0 = 0::

        s_t = S - S * (1 - (F * floor(t / F) - t0) / (T - t0)) ^ n    for t >= t0, and 0 before

    The last round always reaches S, also where F does not divide T; the published formula would stop short of it.

    Args:
        round_: t, from 1.
        final: S, in [0, 1).
        first: t0, the last round without pruning.
        rounds: T, more than t0.
        frequency: F, prune every F rounds.
        exponent: n; the paper uses 3.
    """
    step = rounds if round_ >= rounds else frequency * (round_ // frequency)
    if step <= first:
        return 0.0
    return final - final * float((1 - (step - first) / (rounds - first)) ** exponent)
