"""Where a request goes. No ASGI in this folder."""
