"""Looking at bundles, ledgers and graphs."""
