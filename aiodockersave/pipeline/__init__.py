"""The save: images are resolved, fetched and brought into one archive."""
