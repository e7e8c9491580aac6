// The channel client for pages without a build: import { connect } from "/static/tangram.js".
// With a build, use the npm package tangram-channels, which has the same interface over npm's "phoenix".

import { Client } from "./client.js";
import { Socket } from "./socket.js";

export { Channel, ChannelError, Client, Observable } from "./client.js";

/** Connect to the server that this module came from, or to `url`. */
export const connect = (options = {}) =>
  new Client({ Socket, url: new URL("..", import.meta.url).href, ...options }).connect();
