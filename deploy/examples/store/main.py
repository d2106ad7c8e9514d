"""Lines in, lines out: `set KEY VALUE`, `get KEY`, `keys`."""
import asyncio
import os

KEYS_MAX = 10000
values = {}


def answer(words):
    if words[:1] == ["set"] and len(words) == 3:
        if words[1] not in values and len(values) >= KEYS_MAX:
            return "full"
        values[words[1]] = words[2]
        return "ok"
    if words[:1] == ["get"] and len(words) == 2:
        return values.get(words[1], "")
    if words == ["keys"]:
        return " ".join(sorted(values))
    return "what? set KEY VALUE, get KEY, keys"


async def client(reader, writer):
    try:
        async for line in reader:
            writer.write((answer(line.decode(errors="replace").split(None, 2)).strip() + "\n").encode())
            await writer.drain()
    except (ConnectionError, ValueError):  # it left; a line was too long
        pass
    finally:
        writer.close()


async def main():
    server = await asyncio.start_server(client, "127.0.0.1", int(os.environ["PORT"]))
    await server.serve_forever()

asyncio.run(main())
