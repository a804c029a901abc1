// What the page knows, and how it asks the server.

export const OVERVIEW = "/_queuebridge/overview";
export const PAGE = 25;

export const ui = {
  users: [],
  token: "",
  published: true,
  tab: "messages",
  open: null,
  filter: "",
  state: "all",
  cursors: [],
  offset: 0,
  next: null,
  missing: new Set(),
  sizes: new Map(),
  shown: new Map(),
  views: new Map(),
  request: null,
  timer: 0,
  rounds: 0,
  troubled: false,
  rounds: 0,
  rowsOf: "",
  detail: "",
};

// What page.js does for the other modules.
export const frame = { go: null, refresh: null, notice: null };

class Failed extends Error {
  constructor(status, text) {
    super(text);
    this.status = status;
  }
}

export async function api(path, { method = "GET", signal } = {}) {
  const response = await fetch(path, {
    method,
    signal,
    headers: { Authorization: `Bearer ${ui.token}` },
    cache: "no-store",
  });
  const text = await response.text();
  let data = null;
  try {
    data = JSON.parse(text);
  } catch {
    // No JSON: some answers have no body.
  }
  if (!response.ok) throw new Failed(response.status, data?.error ?? `HTTP ${response.status}`);
  return data;
}

export const query = (values) => new URLSearchParams(Object.entries(values).filter(([, value]) => value)).toString();
