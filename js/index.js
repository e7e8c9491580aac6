// The client of the server's own pages, over npm's "phoenix".

import { Socket } from "phoenix";

import { Client } from "./client.js";

export { Channel, ChannelError, Client, Observable } from "./client.js";

/** Connect to the server that the page came from, or to `url`. */
export const connect = (options = {}) =>
  new Client({ Socket, url: globalThis.location?.origin, ...options }).connect();
