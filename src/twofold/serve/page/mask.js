// A mask over an image: painted with a brush, or put together of rectangles by numbers. White is painted anew.

import { byId } from "./dom.js";

const INK = "#ff5db1"; // how the mask looks over the image

export class Mask {
  /** The canvas has the image's own pixels, so that mask and image are cropped and scaled alike. */
  constructor(changed) {
    this.canvas = byId("mask");
    this.paper = this.canvas.getContext("2d", { willReadFrequently: true });
    this.changed = changed;
    this.last = null;
    const [left, top, width, height] = (this.inputs = ["left", "top", "width", "height"].map((n) => byId(`mask-${n}`)));
    this.rectangle = () => [left, top, width, height].map((input) => Number(input.value));
    byId("mask-add").addEventListener("click", () => this.#fill(false));
    byId("mask-erase").addEventListener("click", () => this.#fill(true));
    byId("mask-clear").addEventListener("click", () => this.clear());
    this.canvas.addEventListener("pointerdown", (event) => this.#begin(event));
    this.canvas.addEventListener("pointermove", (event) => this.#draw(event));
    for (const kind of ["pointerup", "pointercancel"]) this.canvas.addEventListener(kind, () => this.#end());
  }

  /** For an image of this many pixels; the rectangle starts as its middle. */
  size(width, height) {
    Object.assign(this.canvas, { width, height });
    const [w, h] = [Math.max(1, Math.round(width / 2)), Math.max(1, Math.round(height / 2))];
    const values = [Math.floor((width - w) / 2), Math.floor((height - h) / 2), w, h];
    const most = [width - 1, height - 1, width, height];
    this.inputs.forEach((input, i) => Object.assign(input, { value: values[i], max: most[i] }));
    this.changed();
  }

  clear() {
    this.paper.clearRect(0, 0, this.canvas.width, this.canvas.height);
    this.changed();
  }

  /** Share of the image that is to be painted anew, 0 to 1. */
  share() {
    const { data } = this.paper.getImageData(0, 0, this.canvas.width, this.canvas.height);
    let painted = 0;
    for (let i = 3; i < data.length; i += 4) painted += data[i] > 127;
    return painted / (data.length / 4);
  }

  /** White where it is painted, black elsewhere, as a PNG blob. */
  png() {
    const { width, height } = this.canvas;
    const out = Object.assign(document.createElement("canvas"), { width, height });
    const paper = out.getContext("2d");
    const image = this.paper.getImageData(0, 0, width, height);
    const whole = new Uint32Array(image.data.buffer); // a pixel each: a photograph has millions
    for (let i = 0; i < whole.length; i++) whole[i] = image.data[4 * i + 3] > 127 ? 0xffffffff : 0xff000000;
    paper.putImageData(image, 0, 0);
    return new Promise((resolve) => out.toBlob(resolve, "image/png"));
  }

  #fill(erase) {
    if (this.inputs.some((input) => !input.reportValidity())) return;
    this.paper.fillStyle = INK;
    if (erase) this.paper.clearRect(...this.rectangle());
    else this.paper.fillRect(...this.rectangle());
    this.changed();
  }

  #begin(event) {
    this.canvas.setPointerCapture(event.pointerId);
    this.last = this.#place(event);
    this.#draw(event);
  }

  #draw(event) {
    if (!this.last) return;
    const [x, y] = this.#place(event);
    const { width, height } = this.canvas;
    const share = Number(byId("brush").value) / 100;
    Object.assign(this.paper, { strokeStyle: INK, lineCap: "round", lineWidth: Math.max(1, share * Math.max(width, height)) });
    this.paper.beginPath();
    this.paper.moveTo(...this.last);
    this.paper.lineTo(x + 0.01, y); // a point is a very short line
    this.paper.stroke();
    this.last = [x, y];
  }

  #end() {
    if (this.last) this.changed();
    this.last = null;
  }

  #place(event) {
    const box = this.canvas.getBoundingClientRect();
    return [
      ((event.clientX - box.left) / box.width) * this.canvas.width,
      ((event.clientY - box.top) / box.height) * this.canvas.height,
    ];
  }
}
