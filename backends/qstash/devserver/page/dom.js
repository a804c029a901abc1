// Building the document. Whatever was published is hostile: it reaches the document as text (`append`,
// `textContent`) and as nothing else; the Content-Security-Policy refuses the rest.

export const $ = (id) => document.getElementById(id);

export function h(tag, properties, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

// Characters that hide or turn around what is around them are spelled out.
const HIDDEN = /[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g;
export const visible = (text) =>
  String(text).replace(HIDDEN, (sign) => `\\u${sign.charCodeAt(0).toString(16).padStart(4, "0")}`);

export const badge = (text, colour) => h("span", { class: `badge ${colour}` }, text);
// One that does not fit is cut by the style; its title has all of it.
export function chip(name, value) {
  const text = visible(`${name} ${value}`.trim());
  return value && h("span", { class: "chip", title: text }, text);
}
export const plural = (number, word) => `${number.toLocaleString()} ${word}${number === 1 ? "" : "s"}`;
export const bytes = (number) => (number < 1024 ? plural(number, "byte") : `${(number / 1024).toFixed(1)} KiB`);

// A length of time as options give it: 5400 is 1h30m.
export function span(seconds) {
  const sizes = [86400, 3600, 60, 1];
  const parts = sizes.map((size, index) => Math.floor((index ? seconds % sizes[index - 1] : seconds) / size));
  return parts.map((part, index) => (part ? `${part}${"dhms"[index]}` : "")).join("") || "0s";
}

// Times: the server's clock can be stopped and moved, so "now" is the server's.

let clock = { server: 0, seen: 0, stopped: false };

export function setClock(server, stopped) {
  clock = { server, seen: Date.now(), stopped };
}

function now() {
  if (clock.seen === 0) return Date.now();
  return clock.stopped ? clock.server : clock.server + Date.now() - clock.seen;
}

function relative(ms) {
  const seconds = Math.round((ms - now()) / 1000);
  const size = Math.abs(seconds);
  if (size < 2) return "now";
  const [unit, name] = size < 90 ? [1, "s"] : size < 5400 ? [60, "min"] : size < 129600 ? [3600, "h"] : [86400, "d"];
  const text = `${Math.round(size / unit)} ${name}`;
  return seconds < 0 ? `${text} ago` : `in ${text}`;
}

export function when(ms) {
  if (!Number.isFinite(ms) || Number.isNaN(new Date(ms).getTime())) return null;
  const moment = new Date(ms);
  const today = moment.toDateString() === new Date(now()).toDateString();
  const local = today ? moment.toLocaleTimeString() : moment.toLocaleString();
  const iso = moment.toISOString();
  return h("time", { datetime: iso, title: iso, "data-ms": ms }, local, h("span", { class: "muted" }, relative(ms)));
}

export function renewTimes() {
  for (const node of document.querySelectorAll("time[data-ms] .muted")) {
    node.textContent = relative(Number(node.parentNode.dataset.ms));
  }
}

export function example(text) {
  const copy = h("button", { type: "button", onclick: () => copyText(copy, text) }, "Copy");
  return h("div", { class: "example" }, h("pre", {}, text), copy);
}

export async function copyText(button, text) {
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Select and copy by hand";
  }
  setTimeout(() => (button.textContent = "Copy"), 1500);
}
