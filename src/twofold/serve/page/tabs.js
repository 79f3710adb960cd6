// Tabs by the ARIA pattern: arrow keys, Home and End move and open; the address names the open one.

export class Tabs {
  /** list: the element with role=tablist. opened(name), closed(name): told when a panel appears or goes. */
  constructor(list, { opened, closed }) {
    Object.assign(this, { opened, closed, current: null });
    this.tabs = [...list.querySelectorAll("[role=tab]")];
    for (const tab of this.tabs) tab.addEventListener("click", () => this.open(nameOf(tab)));
    list.addEventListener("keydown", (event) => this.#move(event));
    addEventListener("hashchange", () => this.open(location.hash.slice(1)));
  }

  /** Only these can be opened. */
  offer(names) {
    for (const tab of this.tabs) tab.hidden = !names.includes(nameOf(tab));
  }

  offered() {
    return this.tabs.filter((tab) => !tab.hidden).map(nameOf);
  }

  open(name) {
    if (!this.offered().includes(name) || name === this.current) return;
    const before = this.current;
    this.current = name;
    for (const tab of this.tabs) {
      const chosen = nameOf(tab) === name;
      tab.setAttribute("aria-selected", String(chosen));
      tab.tabIndex = chosen ? 0 : -1;
      panelOf(tab).hidden = !chosen;
      if (chosen) tab.scrollIntoView({ block: "nearest", inline: "nearest" });
    }
    history.replaceState(null, "", `#${name}`);
    if (before) this.closed(before);
    this.opened(name);
  }

  #move(event) {
    const names = this.offered();
    const at = names.indexOf(this.current);
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: names.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    const name = names.at(to % names.length);
    this.open(name);
    this.tabs.find((tab) => nameOf(tab) === name).focus();
  }
}

const panelOf = (tab) => document.getElementById(tab.getAttribute("aria-controls"));
const nameOf = (tab) => tab.getAttribute("aria-controls");
