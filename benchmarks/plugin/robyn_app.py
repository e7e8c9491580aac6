"""The measured routes on Robyn, the same as in ``tangram_bench``: ``python robyn_app.py --port N``.

Robyn reads classes of pydantic alone; a dictionary is what it is fastest with, so the fields are unchecked.
"""

from __future__ import annotations

import sys

from robyn import Headers, Request, Response, Robyn

app = Robyn(__file__)

megabyte = bytes(range(256)) * 4096
binary = Headers({"content-type": "application/octet-stream"})


async def aircraft(request: Request) -> dict[str, object]:
    altitude = int(request.path_params["altitude"])
    return {
        "icao24": "3944ef",
        "callsign": "AFR123",
        "altitude": altitude,
        "latitude": 43.6,
        "longitude": 1.44,
    }


async def add(request: Request) -> dict[str, object]:
    body: dict[str, object] = request.json()
    return body


async def answer() -> Response:
    return Response(200, binary, megabyte)


app.get("/bench/aircraft/:altitude")(aircraft)
app.post("/bench/aircraft")(add)
app.get("/bench/answer")(answer)

if __name__ == "__main__":
    port = int(sys.argv[sys.argv.index("--port") + 1])
    sys.argv[1:] = ["--log-level", "ERROR", "--disable-openapi"]
    app.start(host="127.0.0.1", port=port)
