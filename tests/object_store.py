"""An object store that speaks S3, in this process: moto's."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "tests",
    "AWS_SECRET_ACCESS_KEY": "key-of-the-object-store",
    "AWS_EC2_METADATA_DISABLED": "true",
}
"""What a process needs to use it."""


@contextmanager
def object_store(address: str = "127.0.0.1") -> Iterator[str]:
    """Yield the URI of an empty bucket, which all who reach the address can use."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it logs each request
    server = ThreadedMotoServer(address, port=0, verbose=False)
    server.start()
    try:
        _, port = server.get_host_and_port()
        httpx.put(f"http://{address}:{port}/bucket").raise_for_status()
        yield f"s3://bucket?endpoint_override={address}:{port}&scheme=http&region=us-east-1"
    finally:
        server.stop()
