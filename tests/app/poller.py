"""A client in another process: requests one URL every 10 ms on a new connection.

It prints each answer with its time when its input ends.
"""

import http.client
import sys
import threading
import time
from urllib.parse import urlsplit


def ask(host: str, port: int, path: str) -> str:
    connection = http.client.HTTPConnection(host, port, timeout=10)
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
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    lines = []
    while not over.is_set():
        status = ask(url.hostname, url.port, url.path)
        lines.append(f"{time.monotonic():.6f} {status}")
        time.sleep(0.01)
    sys.stdout.write("\n".join(lines))


if __name__ == "__main__":
    main()
