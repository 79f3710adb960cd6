// Small things about elements.

const CRISP_BELOW = 64; // pixels; smaller images are shown with sharp pixels, larger ones smoothly

export const byId = (id) => document.getElementById(id);

/** An element with these properties and children; a name with a dash is set as an attribute. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-")) element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children);
  return element;
}

/** Puts an image into an <img>; alt says what it shows. */
export function show(img, src, alt) {
  img.onload = () => img.classList.toggle("crisp", Math.max(img.naturalWidth, img.naturalHeight) < CRISP_BELOW);
  img.alt = alt;
  img.src = src;
  img.hidden = false;
}

export function picture(src, alt) {
  const img = make("img");
  show(img, src, alt);
  return img;
}

export const pngUrl = (base64) => `data:image/png;base64,${base64}`;
export const percent = (share) => `${(100 * share).toFixed(Math.abs(share - 0.5) > 0.49 ? 1 : 0).replace(/\.0$/, "")} %`;
/** What is seen: a class, or the attributes that are there, "a;b". */
export const seen = (label) => label.replaceAll(";", ", ") || "nothing it knows";
export const sure = (label, probability) => (probability === null ? seen(label) : `${label} (${percent(probability)})`);
export const named = (label) => (label === null || label === undefined ? "no class" : `class ${label}`);

/** Fills a <select>; values are strings; the chosen one stays chosen if it is still there. */
export function fillSelect(select, options) {
  const before = select.value;
  select.replaceChildren(...options.map(([value, text]) => make("option", { value, textContent: text })));
  if (options.some(([value]) => value === before)) select.value = before;
}

/** A link that saves what url holds. */
export function offerDownload(link, url, name) {
  link.href = url;
  link.download = name;
  link.hidden = false;
}

/** A file name of these parts without what file systems dislike. */
export const fileName = (...parts) => parts.filter((p) => p !== null && p !== undefined && p !== "").join("-").replace(/[^\w.+-]+/g, "_");
