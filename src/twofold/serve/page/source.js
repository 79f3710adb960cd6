// Where the user gives an image: dropped, pasted, chosen, or handed over from another tab.

import { show } from "./dom.js";

/** The base64 text of a blob. */
export function base64(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

export class Source {
  /** zone: an element with an <img> and an <input type=file>. taken(blob): a new image. refused(text): why not. */
  constructor(zone, { taken, refused }) {
    Object.assign(this, { zone, taken, refused, blob: null, name: "image.png", url: "", most: Infinity });
    this.img = zone.querySelector("img");
    this.input = zone.querySelector("input[type=file]");
    this.input.addEventListener("change", () => this.take(this.input.files[0]));
    zone.addEventListener("dragover", (event) => this.#over(event, true));
    zone.addEventListener("dragleave", (event) => this.#over(event, false));
    zone.addEventListener("drop", (event) => {
      this.#over(event, false);
      this.take(event.dataTransfer.files[0]);
    });
    document.addEventListener("paste", (event) => {
      if (zone.checkVisibility()) this.take([...event.clipboardData.files][0]);
    });
  }

  /** file: a File or Blob; nothing happens without one. name: what to call it. */
  take(file, name) {
    if (!file) return;
    if (file.size > this.most) {
      const size = (bytes) => `${(bytes / 1e6).toFixed(1)} MB`;
      this.refused(`${file.name ?? "image"}: ${size(file.size)}; the server takes at most ${size(this.most)}`);
      return;
    }
    URL.revokeObjectURL(this.url);
    this.blob = file;
    this.name = name ?? file.name ?? "image.png";
    this.url = URL.createObjectURL(file);
    this.#name(file);
    this.img.onerror = () => (this.img.hidden = true); // the server says what is wrong with it
    show(this.img, this.url, `Your image, ${this.name}`);
    this.taken(file);
  }

  /** As multipart form data, field `images`. */
  form() {
    const form = new FormData();
    form.append("images", this.blob, this.name);
    return form;
  }

  /** The field says which image it is, also where it was dropped, pasted or handed over. */
  #name(file) {
    if (this.input.files[0] === file) return;
    const transfer = new DataTransfer();
    transfer.items.add(new File([file], this.name, { type: file.type }));
    this.input.files = transfer.files;
  }

  #over(event, inside) {
    event.preventDefault();
    this.zone.classList.toggle("over", inside);
  }
}

/** An image dropped beside a zone must not replace the page. */
export function guardDrops() {
  for (const kind of ["dragover", "drop"]) addEventListener(kind, (event) => event.preventDefault());
}
