"""The rooms that decide: no asyncio, no files, no threads, no clock."""
