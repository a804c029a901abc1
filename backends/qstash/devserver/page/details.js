// One message: what was published, and its attempts with the answers.

import { button, letterButtons } from "./actions.js";
import { $, badge, bytes, copyText, h, plural, visible, when } from "./dom.js";
import { attempts, state } from "./sections.js";
import { api, frame, ui } from "./state.js";

const SHOWN_BYTES = 65536;
const HEX_BYTES = 16384;

function content(key, data, what) {
  if (!data || data.bytes === 0) return h("div", { class: "content muted small" }, `${what}: empty`);
  const raw = Uint8Array.from(atob(data.base64), (sign) => sign.charCodeAt(0));
  let text = null;
  try {
    // The end may be cut within a character: `stream` takes that for no error.
    text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(raw, {
      stream: data.bytes >= SHOWN_BYTES,
    });
  } catch {
    // Not text: shown as hex only.
  }
  const place = h("div");
  const buttons = ["text", "hex"].map((view) =>
    h("button", { type: "button", disabled: view === "text" && text === null, onclick: () => show(view, true) }, view),
  );
  function show(view, chosen) {
    if (chosen) ui.views.set(key, view);
    buttons.forEach((button, index) => button.setAttribute("aria-pressed", String(["text", "hex"][index] === view)));
    place.replaceChildren(
      view === "text" ? h("pre", { class: "text" }, visible(text)) : h("pre", { class: "hex" }, hex(raw)),
    );
  }
  show(text === null ? "hex" : (ui.views.get(key) ?? "text"), false);
  const size =
    data.bytes > SHOWN_BYTES
      ? `the first 64 KiB of ${bytes(data.bytes)}`
      : data.bytes === SHOWN_BYTES
        ? "the first 64 KiB"
        : bytes(data.bytes);
  return h("div", { class: "content" }, h("div", { class: "bar" }, `${what}: ${size}`, h("span", {}, buttons)), place);
}

function hex(raw) {
  const lines = [];
  for (let at = 0; at < Math.min(raw.length, HEX_BYTES); at += 16) {
    const part = [...raw.subarray(at, at + 16)];
    const figures = part.map((byte) => byte.toString(16).padStart(2, "0")).join(" ");
    const signs = part.map((byte) => (byte >= 32 && byte < 127 ? String.fromCharCode(byte) : ".")).join("");
    lines.push(`${at.toString(16).padStart(6, "0")}  ${figures.padEnd(47)}  ${signs}`);
  }
  if (raw.length > HEX_BYTES) lines.push(`… ${plural(raw.length - HEX_BYTES, "more byte")}`);
  return lines.join("\n");
}

function headers(key, map) {
  const pairs = Object.entries(map ?? {}).flatMap(([name, values]) => values.map((value) => [name, value]));
  if (pairs.length === 0) return null;
  const node = h(
    "details",
    { open: ui.views.get(key) ?? false, ontoggle: () => ui.views.set(key, node.open) },
    h("summary", {}, plural(pairs.length, "header")),
    h(
      "dl",
      { class: "mono" },
      pairs.map(([name, value]) => [h("dt", {}, visible(name)), h("dd", {}, visible(value))]),
    ),
  );
  return node;
}

function history(message) {
  const lines = [];
  const started = message.events.filter((event) => event.state === "ACTIVE").length;
  const made = message.retried + (["delivered", "failed", "active"].includes(message.state) ? 1 : 0);
  let number = message.state === "canceled" ? 0 : Math.max(0, made - Math.max(started, 1));
  let begun = null;
  const line = (title, event, ...more) => h("li", {}, h("div", { class: "line" }, title, when(event.time)), more);
  for (const [index, event] of message.events.entries()) {
    if (event.state === "ACTIVE") {
      number += 1;
      begun = event;
      const next = message.events.slice(index + 1).find((later) => ["ERROR", "DELIVERED"].includes(later.state));
      if (!next) lines.push(line([h("b", {}, `Attempt ${number}`), badge("in flight", "blue")], event));
    } else if (event.state === "ERROR" || event.state === "DELIVERED") {
      const good = event.state === "DELIVERED";
      const result = event.status
        ? badge(`${good ? "delivered" : "failed"}: ${event.status}`, good ? "green" : "red")
        : badge(good ? "delivered" : "failed: no answer", good ? "green" : "red");
      const took = begun
        ? h("span", { class: "muted small" }, `took ${(event.time - begun.time).toLocaleString()} ms`)
        : null;
      const key = `${message.messageId}/${number}`;
      const answer = event.status ? [headers(key, event.header), content(key, event.body, "Answer")] : null;
      lines.push(
        line(
          [h("b", {}, begun ? `Attempt ${number}` : "Last attempt"), result, took],
          begun ?? event,
          event.error && h("div", { class: "url" }, visible(event.error)),
          answer,
        ),
      );
      begun = null;
    } else {
      const names = {
        CREATED: "Created",
        RETRY: "Next attempt set",
        FAILED: "Given up: moved to the dead letter queue",
        CANCEL_REQUESTED: "Cancel requested",
        CANCELED: "Cancelled",
      };
      const next = event.nextDeliveryTime
        ? h("div", { class: "muted small" }, "for ", new Date(event.nextDeliveryTime).toLocaleTimeString())
        : null;
      lines.push(line(names[event.state] ?? visible(event.state), event, next));
    }
  }
  return lines.length
    ? h("ol", { class: "history" }, lines)
    : h("p", { class: "muted" }, "The log no longer holds the history of this message.");
}

export function showDetails(message) {
  const text = JSON.stringify(message);
  if (ui.detail === text) return;
  ui.detail = text;
  const close = h("button", { type: "button", class: "close", onclick: () => frame.go(ui.tab) }, "Close");
  if (message === null) {
    $("details").replaceChildren(
      h("div", { class: "head" }, close),
      h("h2", {}, "This message is not there any more"),
      h(
        "p",
        { class: "muted" },
        "A finished message is forgotten when the log is full, and when the server starts again.",
      ),
    );
    return;
  }
  const facts = [
    ["Created", when(message.createdAt)],
    ["Next attempt", when(message.due)],
    ["Ended", when(message.finishedAt ?? message.failedAt)],
    ["Attempts", attempts(message)],
    ["Retry delay", message.retryDelayExpression],
    ["Timeout", message.timeoutSeconds && `${message.timeoutSeconds} s`],
    ["Queue", message.queueName],
    ["Flow control", message.flowControlKey],
    ["URL group", message.topicName],
    ["Schedule", message.scheduleId],
    ["Workflow run", message.workflowRunId],
    ["Labels", message.labels?.join(", ")],
    ["Callback", message.callback],
    ["Failure callback", message.failureCallback],
    ["Caller", message.callerIP],
    ["Dead letter", message.dlqId],
  ]
    .filter(([, value]) => value)
    .map(([name, value]) => [h("dt", {}, name), h("dd", {}, typeof value === "string" ? visible(value) : value)]);
  const live = !["delivered", "failed", "canceled"].includes(message.state) && !message.cancelRequested;
  const copy = h(
    "button",
    { type: "button", class: "plain small", onclick: () => copyText(copy, message.messageId) },
    "Copy",
  );
  const key = `${message.messageId}/request`;
  if (!ui.views.has(key)) ui.views.set(key, true);
  $("details").replaceChildren(
    h(
      "div",
      { class: "head" },
      state(message),
      message.dlqId && letterButtons(message),
      live &&
        button(
          "Cancel",
          () => api(`/v2/messages/${encodeURIComponent(message.messageId)}`, { method: "DELETE" }),
          "danger",
        ),
      close,
    ),
    h(
      "h2",
      {},
      h("span", { class: "method" }, visible(message.method)),
      " ",
      h("span", { class: "url" }, visible(message.url)),
    ),
    h("div", { class: "id mono" }, h("span", {}, visible(message.messageId)), copy),
    h("h3", {}, "Message"),
    h("dl", {}, facts),
    h("h3", {}, "Request"),
    headers(key, message.header) ?? h("div", { class: "muted small" }, "No headers of its own."),
    content(`${key}/body`, message.body, "Body"),
    h("h3", {}, "Attempts"),
    history(message),
  );
}
