"""HTTP answers whose body is an archive that need not exist yet.

::

    ranges       the answer to a request: status, headers, a range of bytes   ┐ pure: no asyncio, no framework
    fields       the header fields that go with an archive                    ┘
    delivery     one body on its way to one client that may leave at any moment
    aiohttp      plan_response, archive_response: for handlers of aiohttp
    asgi         PlanResponse, ArchiveResponse: for Starlette, FastAPI, or any ASGI server alone

The first of each pair knows size and ETag ahead and serves ranges; the second streams a build, chunked. A body that
breaks off is never ended: the connection is closed instead, so that no client takes it for complete.
"""
