"""One self-contained page about runs and bundles, to attach to a release."""
