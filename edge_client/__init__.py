"""The client: it trains on data that stays here, prunes, blinds and encrypts, and opens the cohort's sum."""
