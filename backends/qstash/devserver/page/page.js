// The frame of the page: sections, filter, pages, the user, and the refresh while the page is visible.

import { showDetails } from "./details.js";
import { $, example, h, renewTimes, setClock, visible, when } from "./dom.js";
import { SECTIONS } from "./sections.js";
import { OVERVIEW, PAGE, api, frame, query, ui } from "./state.js";

const REFRESH_MS = 3000;
// So many refreshes apart, the sections that are not shown are counted, too.
const PROBE_ROUNDS = 10;

// The list

function showRows(items) {
  const section = SECTIONS[ui.tab];
  const list = $("list");
  list.classList.remove("stale");
  if (items.length === 0) {
    const filtered = ui.filter || (ui.tab === "messages" && ui.state !== "all") || ui.cursors.length > 0;
    const more = filtered && ui.next ? " Only the newest were searched: go on with “Older”." : "";
    const [title, text, code] = section.empty;
    const clear = h("button", { type: "button", onclick: clearFilter }, "Clear the filter");
    const content = filtered
      ? [h("h2", {}, "Nothing matches"), h("p", {}, `No entry here passes the filter.${more}`), clear]
      : [h("h2", {}, title), h("p", {}, text), example(code())];
    list.replaceChildren(h("div", { class: "empty" }, content));
    ui.shown = new Map();
    ui.rowsOf = "";
    return;
  }
  if (ui.rowsOf !== ui.tab || !list.querySelector("tbody")) {
    ui.rowsOf = ui.tab;
    ui.shown = new Map();
    const heads = section.columns.map((name) => h("th", { scope: "col" }, name));
    list.replaceChildren(h("table", {}, h("thead", {}, h("tr", {}, heads)), h("tbody")));
  }
  // Rows that are as they were stay in place: so do the focus and what is selected in them.
  const rows = new Map();
  for (const item of items) {
    const text = JSON.stringify(item);
    const old = ui.shown.get(section.key(item));
    rows.set(section.key(item), old?.text === text ? old : { text, node: row(section, item) });
  }
  const nodes = [...rows.values()].map((entry) => entry.node);
  const body = list.querySelector("tbody");
  if (nodes.length !== body.children.length || nodes.some((node, index) => node !== body.children[index]))
    body.replaceChildren(...nodes);
  ui.shown = rows;
  markOpen();
}

function row(section, item) {
  const cells = section.cells(item).map((content, index) => {
    const name = section.columns[index];
    const wide = name === "Destination" || name === "Endpoints";
    return h("td", { class: wide ? "wide" : "narrow", "data-name": name || null }, content);
  });
  const opens = section.paged ? () => getSelection().isCollapsed && go(ui.tab, item.messageId) : null;
  return h(
    "tr",
    { class: opens ? "opens" : null, "data-message": opens ? item.messageId : null, onclick: opens },
    cells,
  );
}

function markOpen() {
  for (const node of document.querySelectorAll("tr[data-message]"))
    node.classList.toggle("open", node.dataset.message === ui.open);
}

function showPager(count) {
  const { paged } = SECTIONS[ui.tab];
  const first = paged ? ui.cursors.length * PAGE : ui.offset;
  $("pager").hidden = first === 0 && !ui.next;
  $("newer").disabled = first === 0;
  $("older").disabled = !ui.next;
  $("newer").textContent = paged ? "← Newer" : "← Previous";
  $("older").textContent = paged ? "Older →" : "Next →";
  // A search may pass over any number of entries between two pages: what it finds has no numbers.
  const numbered = count > 0 && !(paged && (ui.filter || ui.state !== "all"));
  $("range").textContent = numbered ? `${first + 1} – ${first + count}` : `${count} shown`;
}

async function loadList(signal) {
  const section = SECTIONS[ui.tab];
  if (section.paged) {
    const values = { search: ui.filter, count: PAGE, cursor: ui.cursors.at(-1) };
    if (ui.tab === "messages") values.state = ui.state;
    const page = await api(`${section.path}?${query(values)}`, { signal });
    ui.next = page.cursor ?? null;
    return page.messages;
  }
  const all = await api(section.path, { signal });
  ui.sizes.set(ui.tab, all.length);
  const wanted = ui.filter.toLowerCase();
  const found = wanted ? all.filter((item) => JSON.stringify(item).toLowerCase().includes(wanted)) : all;
  if (ui.offset >= found.length) ui.offset = 0;
  ui.next = found.length > ui.offset + PAGE ? "more" : null;
  return found.slice(ui.offset, ui.offset + PAGE);
}

async function loadDetails(signal) {
  if (!ui.open) return;
  try {
    showDetails(await api(`${OVERVIEW}/messages/${encodeURIComponent(ui.open)}`, { signal }));
  } catch (error) {
    if (error.status !== 404) throw error;
    showDetails(null);
  }
}

// The frame

function showCounts(counts) {
  const least = counts.countedAll ? "" : "≥ ";
  const item = (number, name, bad) =>
    h("li", { class: bad && number ? "bad" : null }, h("b", {}, `${least}${number.toLocaleString()}`), ` ${name}`);
  $("counts").replaceChildren(
    item(counts.waiting, "waiting"),
    item(counts.active, "active"),
    item(counts.delivered, "delivered in the last minute"),
    item(counts.failed, "failed in the last minute", true),
  );
  ui.sizes.set("dlq", counts.deadLetters);
  setClock(counts.now, counts.clockStopped);
  const away = Math.abs(counts.now - Date.now()) > 5000;
  $("clock").textContent =
    counts.clockStopped || away
      ? `Server time: ${new Date(counts.now).toLocaleString()}${counts.clockStopped ? ", stopped" : ""}`
      : "";
}

function showTabs() {
  $("tabs").replaceChildren(
    ...Object.entries(SECTIONS)
      .filter(([name]) => !ui.missing.has(name))
      .map(([name, section]) => {
        const size = ui.sizes.get(name);
        return h(
          "a",
          { href: `#${name}`, "aria-current": name === ui.tab ? "page" : null },
          section.title,
          size ? h("span", { class: "number" }, size.toLocaleString()) : null,
        );
      }),
  );
  const names = [...ui.missing].map((name) => `${SECTIONS[name].title} (${SECTIONS[name].path})`);
  $("hidden-sections").hidden = names.length === 0;
  $("hidden-sections").textContent = `Not shown, because this server does not have it: ${names.join(", ")}.`;
}

function notice(text) {
  $("banner").hidden = !text;
  $("banner").textContent = text ? visible(text) : "";
}

async function probe(signal) {
  for (const name of ["queues", "schedules", "topics", "flow"]) {
    try {
      ui.sizes.set(name, (await api(SECTIONS[name].path, { signal })).length);
      ui.missing.delete(name);
    } catch (error) {
      if (error.status !== 404) throw error;
      ui.missing.add(name);
    }
  }
}

async function refresh() {
  clearTimeout(ui.timer);
  ui.request?.abort();
  const request = (ui.request = new AbortController());
  if (!ui.token) return notice("Choose a user, or give a token, to see what is on this server.");
  try {
    showCounts(await api(OVERVIEW, { signal: request.signal }));
    if (ui.rounds % PROBE_ROUNDS === 0) await probe(request.signal);
    ui.rounds += 1;
    if (ui.missing.has(ui.tab)) return go("messages");
    const items = await loadList(request.signal);
    showTabs();
    showRows(items);
    showPager(items.length);
    await loadDetails(request.signal);
    renewTimes();
    if (ui.troubled) notice(null);
    ui.troubled = false;
  } catch (error) {
    if (request.signal.aborted) return;
    ui.troubled = true;
    $("list").classList.add("stale");
    if (error.status === 401) notice("The server does not accept this token.");
    else if (error.status) notice(`The server refused: ${error.message}`);
    else notice("The server does not answer. Trying again every few seconds.");
  }
  if (request === ui.request) later();
}

function later() {
  clearTimeout(ui.timer);
  if ($("live").checked && document.visibilityState === "visible") ui.timer = setTimeout(refresh, REFRESH_MS);
}

function firstPage() {
  Object.assign(ui, { cursors: [], offset: 0, next: null });
}

function clearFilter() {
  ui.filter = $("filter").value = "";
  ui.state = $("state").value = "all";
  firstPage();
  refresh();
}

function go(tab, message) {
  location.hash = message ? `${tab}/${encodeURIComponent(message)}` : tab;
}

function follow() {
  const [tab, message] = location.hash.slice(1).split("/");
  const wanted = Object.hasOwn(SECTIONS, tab) ? tab : "messages";
  let open = null;
  try {
    open = message ? decodeURIComponent(message) : null;
  } catch {
    // A broken address opens nothing.
  }
  if (wanted !== ui.tab) {
    ui.filter = $("filter").value = "";
    firstPage();
  }
  const newly = open !== ui.open && open !== null;
  const left = ui.open !== null && open === null ? ui.open : null;
  Object.assign(ui, { tab: wanted, open });
  if (newly) {
    ui.detail = "";
    $("details").replaceChildren(h("p", { class: "muted" }, "Loading…"));
  }
  if (!ui.troubled) notice(null);
  $("filter").placeholder = SECTIONS[wanted].filter;
  $("state").hidden = wanted !== "messages";
  $("details").hidden = open === null;
  document.querySelector(".body").classList.toggle("split", open !== null);
  markOpen();
  if (newly) $("details").focus({ preventScroll: true });
  if (left)
    [...document.querySelectorAll("tr[data-message]")]
      .find((node) => node.dataset.message === left)
      ?.querySelector("button.plain")
      ?.focus();
  refresh();
}

function chooseUser() {
  const user = ui.users[Number($("user").value)];
  $("token-label").hidden = user !== undefined;
  ui.published = user !== undefined;
  ui.token = user ? user.token : $("token").value.trim();
  Object.assign(ui, { rounds: 0, rowsOf: "", detail: "" });
  ui.sizes.clear();
  ui.missing.clear();
  firstPage();
  $("list").replaceChildren();
  $("counts").replaceChildren();
  if (!user) $("token").focus();
  if (ui.open) go(ui.tab);
  notice(null);
  refresh();
}

function page(older) {
  if (SECTIONS[ui.tab].paged) {
    if (older) ui.cursors.push(ui.next);
    else ui.cursors.pop();
  } else {
    ui.offset = Math.max(0, ui.offset + (older ? PAGE : -PAGE));
  }
  refresh();
}

async function start() {
  const states = {
    all: "all states",
    waiting: "waiting",
    active: "active",
    finished: "finished",
    delivered: "delivered",
    failed: "failed",
    canceled: "cancelled",
  };
  $("state").append(...Object.entries(states).map(([value, name]) => h("option", { value }, name)));
  $("state").addEventListener("change", () => ((ui.state = $("state").value), firstPage(), refresh()));
  $("filter").addEventListener("input", () => ((ui.filter = $("filter").value.trim()), firstPage(), refresh()));
  $("user").addEventListener("change", chooseUser);
  $("token").addEventListener("change", chooseUser);
  $("who").addEventListener("submit", (event) => event.preventDefault());
  $("live").addEventListener("change", () => ($("live").checked ? refresh() : later()));
  $("newer").addEventListener("click", () => page(false));
  $("older").addEventListener("click", () => page(true));
  document.addEventListener("visibilitychange", () =>
    document.visibilityState === "visible" && $("live").checked ? refresh() : later(),
  );
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && ui.open) go(ui.tab);
    if (event.key === "/" && !event.target.closest("input, select")) {
      event.preventDefault();
      $("filter").focus();
    }
  });
  addEventListener("hashchange", follow);
  try {
    ui.users = (await (await fetch("/_queuebridge/page/users.json")).json()).users;
  } catch {
    notice("The server does not answer. Reload the page when it runs.");
  }
  $("user").append(
    ...ui.users.map((user, index) => h("option", { value: index }, user.name)),
    h("option", { value: "other" }, "other token…"),
  );
  const first = ui.users[0];
  Object.assign(ui, { token: first?.token ?? "", published: first !== undefined });
  $("token-label").hidden = first !== undefined;
  follow();
}

Object.assign(frame, { go, refresh, notice });
start();
