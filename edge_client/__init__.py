"""The client: it trains on data that stays here, prunes, masks and encrypts, and opens the cohort's sum."""
