"""Who may connect: addresses, TLS, tokens, limits on connections."""
