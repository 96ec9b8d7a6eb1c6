"""The way of a blob, from whatever a caller has to bytes that were verified."""
