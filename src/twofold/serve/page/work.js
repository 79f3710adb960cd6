// One thing at a time in a section: a new one stops that before it, and what goes wrong is said in words.

import { ApiError } from "./api.js";

const PATIENCE = 250; // milliseconds without a change before a slider's value counts

export class Work {
  /** section: an element with a child .told (role=status) and a child .problem (role=alert). */
  constructor(section) {
    this.section = section;
    this.told = section.querySelector(".told");
    this.problem = section.querySelector(".problem");
    this.controller = null;
    this.timer = 0;
  }

  /** Stops what is under way, its request included, so that the server stops too. */
  stop() {
    clearTimeout(this.timer);
    this.controller?.abort();
    this.controller = null;
    this.section.removeAttribute("aria-busy");
  }

  /** As `run`, once nothing has changed for a moment; what is under way stops at once. */
  later(task) {
    this.stop();
    this.timer = setTimeout(() => this.run(task), PATIENCE);
  }

  /** Awaits task(signal); true if it came to its end. */
  async run(task) {
    this.stop();
    const controller = new AbortController();
    this.controller = controller;
    this.complain("");
    this.section.setAttribute("aria-busy", "true");
    try {
      await task(controller.signal);
      return !controller.signal.aborted;
    } catch (error) {
      if (!controller.signal.aborted) this.fail(error);
      return false;
    } finally {
      if (this.controller === controller) this.stop();
    }
  }

  say = (text) => {
    this.told.textContent = text;
  };

  complain(text) {
    this.problem.textContent = text;
  }

  fail(error) {
    this.say("");
    this.complain(error.message || String(error));
    if (error instanceof ApiError && error.status === 401) document.dispatchEvent(new Event("key-wanted"));
    if (!(error instanceof ApiError)) console.error(error);
  }
}
