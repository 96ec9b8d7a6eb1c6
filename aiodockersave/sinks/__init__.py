"""The places that an archive is written to: what callers pass, and files that appear when they are whole."""
