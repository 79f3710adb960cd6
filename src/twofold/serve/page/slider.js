// A range with an exact number beside it: <input type=range id=NAME> and <input type=number id=NAME-exact>.

import { byId } from "./dom.js";

export class Slider {
  /** changed(): called whenever the user moved or typed a valid value. The number may go beyond the range's end. */
  constructor(name, changed = () => {}) {
    this.range = byId(name);
    this.number = byId(`${name}-exact`);
    this.range.addEventListener("input", () => {
      this.number.value = this.range.value;
      changed();
    });
    this.number.addEventListener("input", () => {
      if (!this.number.checkValidity() || this.number.value === "") return;
      this.range.value = this.number.value;
      changed();
    });
    this.number.addEventListener("change", () => this.set(this.value)); // what was not valid goes back
    this.set(Number(this.range.value));
  }

  get value() {
    const typed = this.number.value !== "" && this.number.checkValidity();
    return Number(typed ? this.number.value : this.range.value);
  }

  set(value) {
    this.range.value = value;
    this.number.value = value;
  }

  /** Largest number, to which the present one is lowered; the range itself may end earlier. */
  atMost(most, rangeEnd = most) {
    this.range.max = Math.min(most, rangeEnd);
    this.number.max = most;
    if (this.value > most) this.set(most);
  }
}
