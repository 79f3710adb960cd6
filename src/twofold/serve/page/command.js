// The present request as a curl command, to be copied.

import { address, getKey } from "./api.js";

const quoted = (text) => `'${String(text).replaceAll("'", "'\\''")}'`;

/** json: a JSON body; form: [[field, value]], a value "@name" being a file; out: the file the answer goes to. */
export function curl(path, { json, form = [], accept, out }) {
  const parts = [`curl ${quoted(address(path))}`];
  if (getKey()) parts.push('-H "X-API-Key: $TWOFOLD_KEY"'); // the key itself is not for pasting around
  if (accept) parts.push(`-H ${quoted(`Accept: ${accept}`)}`);
  if (json) parts.push(`-H ${quoted("Content-Type: application/json")}`, `-d ${quoted(JSON.stringify(json))}`);
  for (const [field, value] of form) parts.push(`-F ${quoted(`${field}=${value}`)}`);
  if (out) parts.push(`-o ${quoted(out)}`);
  return parts.join(" \\\n  ");
}

/** box: a <details> with a <pre>, a <button> and an <output>. write(): the command as it is now. */
export function offerCommand(box, write) {
  const [text, button, said] = ["pre", "button", "output"].map((tag) => box.querySelector(tag));
  box.addEventListener("toggle", () => (text.textContent = write()));
  button.addEventListener("click", async () => {
    text.textContent = write();
    try {
      await navigator.clipboard.writeText(text.textContent);
      said.textContent = "Copied.";
    } catch {
      getSelection().selectAllChildren(text); // no clipboard here: it is marked for Ctrl-C
      said.textContent = "Marked: press Ctrl-C to copy.";
    }
  });
  return () => {
    said.textContent = "";
    if (box.open) text.textContent = write();
  };
}
