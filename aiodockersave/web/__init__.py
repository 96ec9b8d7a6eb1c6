"""Answer HTTP requests with an archive that need not exist yet: it is made while it is sent.

::

    ranges       the answer to a request: status, headers, a range of bytes   ┐ pure: no asyncio, no framework
    fields       the header fields of an archive                              ┘
    delivery     sends one body to one client, which may leave at any moment
    aiohttp      plan_response, archive_response: for handlers of aiohttp
    asgi         PlanResponse, ArchiveResponse: for Starlette, FastAPI, or any ASGI server alone

The first of each pair knows size and ETag ahead and serves ranges; the second streams a build, chunked. A
body that fails midway never gets a regular end: the connection is closed instead, so that no client takes the
body for complete.
"""
