// Buttons that change something.

import { h } from "./dom.js";
import { api, frame, ui } from "./state.js";

export function letterButtons(item) {
  const path = encodeURIComponent(item.dlqId);
  return [
    // The server refuses to repeat a step of a workflow whose run has failed.
    item.retryable &&
      button("Retry", async () => {
        const made = await api(`/v2/dlq/retry/${path}`, { method: "POST" });
        if (ui.open === item.messageId) frame.go(ui.tab, made.messageId);
      }),
    button(
      "Delete",
      async () => {
        if (!confirm("Delete this dead letter for good?")) return;
        await api(`/v2/dlq/${path}`, { method: "DELETE" });
        if (ui.open === item.messageId) frame.go(ui.tab);
      },
      "danger",
    ),
  ];
}

export function button(label, act, colour) {
  const node = h("button", { type: "button", class: colour }, label);
  node.addEventListener("click", async (event) => {
    event.stopPropagation();
    node.disabled = true;
    try {
      await act();
      frame.notice(null);
    } catch (error) {
      frame.notice(`${label}: ${error.message}`);
    }
    node.disabled = false;
    frame.refresh();
  });
  return node;
}
