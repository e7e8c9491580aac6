// Requests to the server, and the live stream of one page.

const KEY = "tangram-change-key"; // all tabs share it; the cookie itself cannot be read by scripts

export class Refused extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

async function request(method, path, body, headers = {}) {
  const answer = await fetch(path, {
    method,
    headers: { "content-type": "application/json", ...headers },
    body: body === undefined ? undefined : JSON.stringify(body),
    signal: AbortSignal.timeout(30_000),
  });
  const told = await answer.json().catch(() => ({}));
  if (!answer.ok) {
    const detail = typeof told.detail === "string" ? told.detail : JSON.stringify(told.detail ?? answer.status);
    throw new Refused(answer.status, detail);
  }
  return told;
}

export async function login(given) {
  const told = await request("POST", "session", given);
  localStorage.setItem(KEY, told.change_key);
}

export async function logout() {
  await change("DELETE", "session");
  localStorage.removeItem(KEY);
}

export const isOpen = () => request("GET", "session");

export const change = (method, path, body) =>
  request(method, path, body, { "x-tangram-change": localStorage.getItem(KEY) ?? "" });

const PAUSES = [0, 250, 500, 1000, 2000]; // ms before each attempt to open the stream again
const OPEN_WITHIN = 400; // ms in which a stream that was cut by a restart opens again without a word

/** The stream of one page. `told.news(data)`, `told.away()` and `told.login()` are called. */
export class Stream {
  constructor(page, parameters, told, silence) {
    const query = new URLSearchParams(parameters).toString();
    this.url = `live/${page}${query ? `?${query}` : ""}`;
    this.told = told;
    this.silence = silence; // ms after which a stream without a word counts as lost
    this.attempt = 0;
    this.open();
  }

  open() {
    this.source = new EventSource(this.url);
    this.source.onmessage = ({ data }) => {
      this.attempt = 0;
      clearTimeout(this.suspicion);
      this.listen();
      this.told.news(JSON.parse(data));
    };
    this.source.onerror = () => this.lost();
    this.listen();
  }

  listen() {
    clearTimeout(this.patience);
    this.patience = setTimeout(() => this.lost(), this.silence);
  }

  async lost() {
    this.source.close();
    clearTimeout(this.patience);
    clearTimeout(this.suspicion);
    if (this.closed) return;
    const attempt = this.attempt;
    this.attempt += 1;
    if (attempt === 0) this.suspicion = setTimeout(() => this.told.away(), OPEN_WITHIN);
    else this.told.away();
    this.again = setTimeout(() => this.open(), PAUSES[Math.min(attempt, PAUSES.length - 1)]);
    if (attempt === 0) return;
    try {
      await isOpen();
    } catch (error) {
      if (error.status !== 401 || this.closed) return;
      this.close();
      this.told.login();
    }
  }

  close() {
    this.closed = true;
    this.source.close();
    clearTimeout(this.patience);
    clearTimeout(this.suspicion);
    clearTimeout(this.again);
  }
}
