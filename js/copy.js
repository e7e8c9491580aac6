// Before npm packs: the client has one source, in the pages of the server.

import { copyFileSync } from "node:fs";

for (const name of ["client.js", "pause.js"]) {
  copyFileSync(new URL(`../src/tangram/web/pages/${name}`, import.meta.url), new URL(name, import.meta.url));
}
