// The sections: where each gets its entries, how a row shows one, and what to do while there is none.

import { letterButtons } from "./actions.js";
import { badge, bytes, chip, h, span, visible, when } from "./dom.js";
import { OVERVIEW, ui } from "./state.js";

export function state(message) {
  if (message.cancelRequested && message.state !== "canceled") return badge("cancel requested", "violet");
  const retrying = message.state === "waiting" && message.retried > 0;
  const names = {
    staged: ["accepted", "grey"],
    queued: ["in queue", "grey"],
    ready: ["due, held by a limit", "amber"],
    aside: ["due, its queue is paused", "amber"],
    waiting: retrying ? ["waits to retry", "amber"] : ["delayed", "grey"],
    active: ["active", "blue"],
    delivered: ["delivered", "green"],
    failed: ["failed", "red"],
    canceled: ["cancelled", "violet"],
  };
  return badge(...(names[message.state] ?? [visible(message.state), "grey"]));
}

function target(message) {
  const url = h("span", { class: "url" }, visible(message.url));
  const under = [
    h("span", { class: "mono" }, `${visible(message.messageId).slice(0, 16)}…`),
    h("span", {}, bytes(message.bodyBytes)),
    chip("queue", message.queueName),
    chip("flow", message.flowControlKey),
    chip("group", message.topicName),
    chip("schedule", message.scheduleId),
    chip("workflow run", message.workflowRunId),
    ...(message.labels ?? []).map((label) => chip("label", label)),
  ];
  return [
    h("span", { class: "method" }, visible(message.method)),
    " ",
    h("button", { class: "plain", type: "button" }, url),
    h("div", { class: "under" }, under),
  ];
}

export function attempts(message) {
  const ended = ["delivered", "failed", "active"].includes(message.state) ? 1 : 0;
  return `${message.retried + ended} of ${message.maxRetries + 1}`;
}

const limit = (count, most) => (most ? `${count} of ${most}` : `${count}, no limit`);
const yesNo = (yes, text, otherwise) => (yes ? badge(text, "amber") : badge(otherwise, "green"));

// How the messages of a schedule's last run went; one for each endpoint where it is for a URL group.
function outcomes(states) {
  const shown = { SUCCESS: ["delivered", "green"], IN_PROGRESS: ["in progress", "blue"], FAIL: ["failed", "red"] };
  const badges = Object.entries(shown).map(([name, [text, colour]]) => {
    const count = states.filter((found) => found === name).length;
    return count > 0 && badge(states.length > 1 ? `${count} ${text}` : text, colour);
  });
  return states.length > 0 && h("div", { class: "under" }, badges);
}

const actions = (item) => h("div", { class: "row-actions" }, letterButtons(item));

export const SECTIONS = {
  messages: {
    title: "Messages",
    paged: true,
    path: `${OVERVIEW}/messages`,
    key: (item) => item.messageId,
    columns: ["State", "Destination", "Attempts", "Created", "Next / ended"],
    cells: (item) => [
      state(item),
      target(item),
      attempts(item),
      when(item.createdAt),
      when(item.finishedAt ?? item.due),
    ],
    filter: "Filter: URL, message id, queue, label, …",
    empty: [
      "No messages yet",
      "Publish one, and it appears here with every attempt to deliver it:",
      () => curl("/v2/publish/https://example.com/hook", ["Content-Type: application/json"], '{"hello": "world"}'),
    ],
  },
  dlq: {
    title: "Dead letters",
    paged: true,
    path: `${OVERVIEW}/dlq`,
    key: (item) => item.dlqId,
    columns: ["Failed", "Destination", "Attempts", ""],
    cells: (item) => [
      when(item.failedAt),
      [target(item), h("div", { class: "failure" }, visible(item.failure))],
      attempts(item),
      actions(item),
    ],
    filter: "Filter: URL, id, queue, label, failure, …",
    empty: [
      "No dead letters",
      "A message comes here when its last attempt failed. Nobody listens on port 9, so this one fails at once:",
      () => curl("/v2/publish/http://127.0.0.1:9/nobody", ["Upstash-Retries: 0"], "hello"),
    ],
  },
  queues: {
    title: "Queues",
    path: "/v2/queues",
    key: (item) => item.name,
    columns: ["Queue", "State", "Not delivered yet", "Parallelism", "Created"],
    cells: (item) => [
      visible(item.name),
      yesNo(item.paused, "paused", "running"),
      String(item.lag),
      String(item.parallelism),
      when(item.createdAt),
    ],
    filter: "Filter: name",
    empty: [
      "No queues",
      "A queue is made when a message is put into it:",
      () => curl("/v2/enqueue/my-queue/https://example.com/hook", [], "hello"),
    ],
  },
  schedules: {
    title: "Schedules",
    path: "/v2/schedules",
    key: (item) => item.scheduleId,
    columns: ["Schedule", "State", "Destination", "Last run", "Next run"],
    cells: (item) => [
      [
        h("div", { class: "mono" }, visible(item.cron)),
        h("div", { class: "under" }, h("span", {}, visible(item.scheduleId))),
      ],
      [yesNo(item.isPaused, "paused", "running"), item.error && h("div", { class: "under" }, visible(item.error))],
      [
        h("span", { class: "method" }, visible(item.method)),
        " ",
        /^https?:/.test(item.destination)
          ? h("span", { class: "url" }, visible(item.destination))
          : chip("group", item.destination),
        h(
          "div",
          { class: "under" },
          chip("queue", item.queueName),
          chip("flow", item.flowControlKey),
          chip("delay", item.delay && span(item.delay)),
          ...(item.labels ?? []).map((label) => chip("label", label)),
        ),
      ],
      [when(item.lastScheduleTime), outcomes(Object.values(item.lastScheduleStates ?? {}))],
      item.isPaused ? null : when(item.nextScheduleTime),
    ],
    filter: "Filter: cron, destination, id",
    empty: [
      "No schedules",
      "A schedule publishes a message at the times of a cron expression (UTC), here every minute:",
      () => curl("/v2/schedules/https://example.com/hook", ["Upstash-Cron: * * * * *"], "hello"),
    ],
  },
  topics: {
    title: "URL groups",
    path: "/v2/topics",
    key: (item) => item.name,
    columns: ["Group", "Endpoints", "Updated"],
    cells: (item) => [
      visible(item.name),
      [
        (item.endpoints ?? []).map((end) =>
          h("div", { class: "url" }, end.name && chip("", end.name), " ", visible(end.url)),
        ),
        item.headers &&
          h(
            "div",
            { class: "under" },
            Object.entries(item.headers).map(([name, values]) => chip(`default ${name}:`, values.join(", "))),
          ),
      ],
      when(item.updatedAt),
    ],
    filter: "Filter: name, URL",
    empty: [
      "No URL groups",
      "What is published to a group goes to each of its endpoints:",
      () =>
        curl(
          "/v2/topics/my-group/endpoints",
          ["Content-Type: application/json"],
          '{"endpoints": [{"url": "https://example.com/hook"}]}',
        ),
    ],
  },
  flow: {
    title: "Flow control",
    path: "/v2/flowControl",
    key: (item) => item.flowControlKey,
    columns: ["Key", "State", "Waiting", "In flight", "Calls in this window", "Window"],
    cells: (item) => [
      visible(item.flowControlKey),
      [
        yesNo(item.isPaused, "paused", "running"),
        " ",
        (item.isPinnedRate || item.isPinnedParallelism) && badge("pinned", "violet"),
      ],
      String(item.waitListSize),
      limit(item.parallelismCount, item.parallelismMax),
      limit(item.rateCount, item.rateMax),
      item.rateMax ? span(item.ratePeriod) : null,
    ],
    filter: "Filter: key",
    empty: [
      "No flow-control keys",
      "Messages with the same key share a limit, here two calls in ten seconds:",
      () =>
        curl(
          "/v2/publish/https://example.com/hook",
          ["Upstash-Flow-Control-Key: my-key", "Upstash-Flow-Control-Value: rate=2, period=10s"],
          "hello",
        ),
    ],
  },
};

function curl(path, headers, body) {
  const token = ui.published ? ui.token : "$QSTASH_TOKEN";
  const lines = [
    `curl -X POST '${location.origin}${path}'`,
    `-H "Authorization: Bearer ${token}"`,
    ...headers.map((text) => `-H '${text}'`),
    `-d '${body}'`,
  ];
  return lines.join(" \\\n     ");
}
