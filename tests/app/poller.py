"""A client in another process: requests one URL every 10 ms on a new connection.

It prints "ready" after the first answer. When its input ends, it prints each answer with its time; the last
one was asked for after the end, and is a good one if the server gives any.
"""

import http.client
import sys
import threading
import time
from urllib.parse import urlsplit

MAX_TRIES = 500
"""Requests after the end of the input, if none of them gets a good answer."""


def ask(host: str, port: int, path: str) -> str:
    connection = http.client.HTTPConnection(host, port, timeout=60)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
    except ConnectionRefusedError:
        return "refused"
    except OSError as error:
        return type(error).__name__
    except http.client.HTTPException as error:
        return type(error).__name__
    else:
        return str(answer.status)
    finally:
        connection.close()


def main() -> None:
    url = urlsplit(sys.argv[1])
    assert url.hostname is not None
    assert url.port is not None
    over = threading.Event()

    def wait_for_the_end() -> None:
        sys.stdin.read()
        over.set()

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    lines = []
    ending, status, tries = False, "", 0
    while not (ending and (status == "200" or tries > MAX_TRIES)):
        ending = over.is_set()
        tries += ending
        status = ask(url.hostname, url.port, url.path)
        lines.append(f"{time.monotonic():.6f} {status}")
        if len(lines) == 1:
            sys.stdout.write("ready\n")
            sys.stdout.flush()
        time.sleep(0.01)
    sys.stdout.write("\n".join(lines))


if __name__ == "__main__":
    main()
