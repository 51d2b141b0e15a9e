"""A stream behind a websocket: binary messages of 16-bit mono PCM at 16 kHz in, the same out as it gets ready.

`python examples/websocket.py` serves on port 8765 (`pip install websockets`). Every connection has a stream of its own;
the text message "end" asks for the rest and closes. The streams of one Enhancer share its network.
"""

import asyncio

import numpy as np
import websockets

import udse_fast


class Server:
    """Serves `enhancer`; computing runs in threads, so that connections do not wait for each other's network."""

    def __init__(self, enhancer: udse_fast.Enhancer) -> None:
        self.enhancer = enhancer

    async def __call__(self, connection: websockets.ServerConnection) -> None:
        """One connection."""
        stream = self.enhancer.open_stream(16000)
        async for message in connection:
            if message == "end":
                await connection.send((await asyncio.to_thread(stream.flush)).astype("<i2").tobytes())
                return
            if isinstance(message, str) or len(message) % 2:
                await connection.close(1003, 'expected whole 16-bit samples or the text "end"')
                return
            out = await asyncio.to_thread(stream.process, np.frombuffer(message, "<i2"))
            if len(out):
                await connection.send(out.astype("<i2").tobytes())


async def main() -> None:
    """Until it is interrupted."""
    async with websockets.serve(Server(udse_fast.Enhancer()), "localhost", 8765) as server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
