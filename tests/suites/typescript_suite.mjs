// Every method of the official TypeScript client, against a running server (see typescript_suite.py).

import assert from "node:assert/strict";
import { createServer } from "node:http";
import { after, before, beforeEach, describe, test } from "node:test";

import { Client, QstashError, Receiver, custom } from "@upstash/qstash";

const client = new Client({ retry: false });
const receiver = new Receiver();
const arrivals = [];
let answers = {};
let base;
let server;

before(async () => {
  server = createServer((request, response) => {
    const chunks = [];
    request.on("data", (chunk) => chunks.push(chunk));
    request.on("end", () => {
      const arrival = { method: request.method, url: request.url, headers: request.headers };
      arrivals.push({ ...arrival, body: Buffer.concat(chunks).toString() });
      const answer = (answers[request.url] ?? []).shift() ?? { status: 200, body: "ok" };
      response.writeHead(answer.status, answer.headers ?? {});
      response.end(answer.body ?? "");
    });
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  base = `http://127.0.0.1:${server.address().port}`;
});
after(() => server.close());
beforeEach(async () => {
  arrivals.length = 0;
  answers = {};
  await client.messages.cancel({ all: true });
  await client.dlq.delete({ all: true });
});

async function until(find, what) {
  const deadline = Date.now() + 15_000;
  for (;;) {
    const found = await find();
    if (found) return found;
    if (Date.now() > deadline) throw new Error(`waited in vain for ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}
const arrived = (path) => until(() => arrivals.find(({ url }) => url === path), `a request to ${path}`);
const failed = (messageId) =>
  until(async () => (await client.dlq.listMessages({ filter: { messageId } })).messages[0], "a dead letter");
const refusedWith = (status) => (error) => error instanceof QstashError && error.status === status;
const unique = (prefix) => `${prefix}-${Math.random().toString(36).slice(2)}`;

describe("publish", () => {
  test("publish delivers body, headers and method, signed", async () => {
    const { messageId, url } = await client.publish({
      url: `${base}/plain?a=1`, body: "text", method: "PUT", headers: { "X-Mine": "1", "Content-Type": "text/plain" },
    });
    const arrival = await arrived("/plain?a=1");
    assert.match(messageId, /^msg_/);
    assert.equal(url, `${base}/plain?a=1`);
    assert.equal(arrival.method, "PUT");
    assert.equal(arrival.body, "text");
    assert.equal(arrival.headers["x-mine"], "1");
    assert.equal(arrival.headers["content-type"], "text/plain");
    assert.equal(arrival.headers["upstash-message-id"], messageId);
    assert.equal(arrival.headers["upstash-retried"], "0");
    assert.equal(arrival.headers["user-agent"], "Upstash-QStash");
    assert.ok(!Object.keys(arrival.headers).some((name) => name.startsWith("upstash-telemetry")));
    const signature = arrival.headers["upstash-signature"];
    assert.ok(await receiver.verify({ signature, body: "text", url: `${base}/plain?a=1` }));
    await assert.rejects(receiver.verify({ signature, body: "other" }));
  });

  test("publishJSON delivers JSON after its delay, with labels", async () => {
    const { messageId } = await client.publishJSON({
      url: `${base}/json`, body: { a: [1, "ü"] }, delay: 60, label: "mine", retries: 2, timeout: 7,
    });
    const message = await client.messages.get(messageId);
    assert.equal(message.maxRetries, 2);
    assert.equal(message.label, "mine");
    assert.deepEqual(JSON.parse(message.body), { a: [1, "ü"] });
    assert.ok(message.notBefore - message.createdAt >= 59_000);
    assert.deepEqual(message.header["Content-Type"], ["application/json"]);
  });

  test("notBefore, flow control, redaction and retry delay are kept", async () => {
    const notBefore = Math.floor(Date.now() / 1000) + 100;
    const key = unique("key");
    const { messageId } = await client.publishJSON({
      url: `${base}/json`, body: { secret: 1 }, notBefore, redact: { body: true, header: ["X-Secret"] },
      headers: { "X-Secret": "s" }, flowControl: { key, parallelism: 2, rate: 3, period: "1m" },
      retryDelay: "pow(2, retried) * 1000",
    });
    const message = await client.messages.get(messageId);
    assert.equal(Math.floor(message.notBefore / 1000), notBefore);
    assert.match(message.body, /^REDACTED:[0-9a-f]{64}$/);
    assert.match(message.header["X-Secret"][0], /^REDACTED:/);
    assert.equal(message.flowControlKey, key);
    assert.deepEqual([message.parallelism, message.rate, message.period], [2, 3, 60]);
    assert.equal(message.retryDelayExpression, "pow(2, retried) * 1000");
  });

  test("deduplication by id and by content", async () => {
    const deduplicationId = unique("id");
    const first = await client.publish({ url: `${base}/once`, deduplicationId });
    const second = await client.publish({ url: `${base}/once`, deduplicationId });
    assert.equal(second.messageId, first.messageId);
    assert.equal(second.deduplicated, true);
    const body = unique("content");
    const one = await client.publish({ url: `${base}/once`, body, contentBasedDeduplication: true });
    const two = await client.publish({ url: `${base}/once`, body, contentBasedDeduplication: true });
    assert.equal(one.messageId, two.messageId);
  });

  test("callback and failure callback are called", async () => {
    await client.publishJSON({ url: `${base}/good`, body: { n: 1 }, callback: `${base}/callback` });
    const callback = JSON.parse((await arrived("/callback")).body);
    assert.equal(callback.status, 200);
    assert.equal(Buffer.from(callback.body, "base64").toString(), "ok");
    answers["/bad"] = [{ status: 500, body: "no" }];
    await client.publishJSON({ url: `${base}/bad`, retries: 0, failureCallback: `${base}/failure` });
    const failure = JSON.parse((await arrived("/failure")).body);
    assert.equal(failure.status, 500);
    assert.match(failure.dlqId, /^\d+-\d+$/);
  });

  test("a bad destination, a bad cron and a wrong token are refused", async () => {
    await assert.rejects(client.publish({ url: "no-scheme:80" }), refusedWith(400));
    await assert.rejects(client.schedules.create({ destination: base, cron: "never" }), refusedWith(400));
    const stranger = new Client({ token: "wrong", baseUrl: process.env.QSTASH_URL, retry: false });
    await assert.rejects(stranger.publish({ url: base }), refusedWith(401));
  });

  test("api: an LLM of a third party is a URL with a callback", async () => {
    const { messageId } = await client.publishJSON({
      api: { name: "llm", provider: custom({ baseUrl: base, token: "t" }) },
      body: { model: "m", messages: [] }, callback: `${base}/answer`,
    });
    const arrival = await arrived("/v1/chat/completions");
    assert.equal(arrival.headers["upstash-message-id"], messageId);
    assert.equal(arrival.headers.authorization, "Bearer t");
    await arrived("/answer");
  });

  test("batch and batchJSON answer in order", async () => {
    const results = await client.batch([
      { url: `${base}/b1`, body: "1" },
      { url: `${base}/b2`, body: "2", queueName: unique("queue") },
    ]);
    assert.equal(results.length, 2);
    assert.equal((await arrived("/b1")).body, "1");
    assert.equal((await arrived("/b2")).body, "2");
    await client.batchJSON([{ url: `${base}/b3`, body: { n: 3 } }]);
    assert.deepEqual(JSON.parse((await arrived("/b3")).body), { n: 3 });
  });
});

describe("messages", () => {
  const wait = (label) => client.publish({ url: `${base}/later`, delay: 3600, label });

  test("get, delete and an unknown id", async () => {
    const { messageId } = await wait();
    assert.equal((await client.messages.get(messageId)).messageId, messageId);
    await client.messages.delete(messageId);
    await assert.rejects(client.messages.get("msg_unknown"), refusedWith(404));
  });

  test("cancel by id, by ids, by filter, and all", async () => {
    const one = await wait();
    assert.deepEqual(await client.messages.cancel(one.messageId), { cancelled: 1 });
    const two = [await wait(), await wait()].map(({ messageId }) => messageId);
    assert.equal((await client.messages.cancel(two)).cancelled, 2);
    const label = unique("label");
    await wait(label);
    await wait();
    assert.equal((await client.messages.cancel({ filter: { label } })).cancelled, 1);
    assert.equal(await client.messages.deleteAll(), 1);
    const many = [await wait(), await wait()].map(({ messageId }) => messageId);
    assert.equal(await client.messages.deleteMany(many), 2);
    await wait();
    assert.equal((await client.messages.cancel({ all: true })).cancelled, 1);
  });
});

describe("queues", () => {
  test("upsert, get, list, pause, resume, enqueue and delete", async () => {
    const queueName = unique("queue");
    const queue = client.queue({ queueName });
    await queue.upsert({ parallelism: 2 });
    const found = await queue.get();
    assert.deepEqual([found.name, found.parallelism, found.paused, found.lag], [queueName, 2, false, 0]);
    await queue.pause();
    assert.equal((await queue.get()).paused, true);
    const { messageId } = await queue.enqueueJSON({ url: `${base}/queued`, body: { n: 1 } });
    await queue.enqueue({ url: `${base}/queued2`, body: "2" });
    assert.equal((await queue.get()).lag, 2);
    assert.equal((await client.messages.get(messageId)).queueName, queueName);
    assert.equal(arrivals.length, 0);
    await queue.resume();
    assert.deepEqual(JSON.parse((await arrived("/queued")).body), { n: 1 });
    await arrived("/queued2");
    assert.ok((await client.queue().list()).some(({ name }) => name === queueName));
    await queue.delete();
    await assert.rejects(queue.get(), refusedWith(404));
  });
});

describe("schedules", () => {
  test("create, get, list, pause, resume, overwrite and delete", async () => {
    const scheduleId = unique("schedule");
    const created = await client.schedules.create({
      scheduleId, destination: `${base}/scheduled`, cron: "0 5 * * 1", body: "every monday", retries: 4, delay: 30,
      headers: { "X-Mine": "1" }, callback: `${base}/callback`, label: "weekly",
    });
    assert.equal(created.scheduleId, scheduleId);
    const found = await client.schedules.get(scheduleId);
    assert.equal(found.cron, "0 5 * * 1");
    assert.equal(found.destination, `${base}/scheduled`);
    assert.equal(found.method, "POST");
    assert.equal(found.retries, 4);
    assert.equal(found.delay, 30);
    assert.equal(found.body, "every monday");
    assert.equal(found.isPaused, false);
    assert.equal(found.callback, `${base}/callback`);
    assert.deepEqual(found.header["X-Mine"], ["1"]);
    assert.ok(found.nextScheduleTime > Date.now());
    await client.schedules.pause({ schedule: scheduleId });
    assert.equal((await client.schedules.get(scheduleId)).isPaused, true);
    await client.schedules.resume({ schedule: scheduleId });
    await client.schedules.create({ scheduleId, destination: `${base}/scheduled`, cron: "CRON_TZ=Europe/Berlin 1 2 * * *" });
    const again = await client.schedules.get(scheduleId);
    assert.equal(again.cron, "CRON_TZ=Europe/Berlin 1 2 * * *");
    assert.equal(again.body, undefined);
    assert.ok((await client.schedules.list()).some((schedule) => schedule.scheduleId === scheduleId));
    await client.schedules.delete(scheduleId);
    await assert.rejects(client.schedules.get(scheduleId), refusedWith(404));
  });

  test("a schedule into a queue", async () => {
    const queueName = unique("queue");
    const { scheduleId } = await client.schedules.create({ destination: base, cron: "0 0 1 1 *", queueName });
    assert.match(scheduleId, /^scd_/);
    assert.equal((await client.schedules.get(scheduleId)).queueName, queueName);
    await client.schedules.delete(scheduleId);
  });
});

describe("URL groups", () => {
  test("add, list, get, publish, remove and delete", async () => {
    const name = unique("group");
    await client.urlGroups.addEndpoints({
      name, endpoints: [{ url: `${base}/one`, name: "first" }, { url: `${base}/two` }],
    });
    const group = await client.urlGroups.get(name);
    assert.equal(group.name, name);
    assert.deepEqual(group.endpoints.map(({ url }) => url), [`${base}/one`, `${base}/two`]);
    assert.ok((await client.topics.list()).some((found) => found.name === name));
    const results = await client.publishJSON({ urlGroup: name, body: { n: 1 } });
    assert.deepEqual(results.map(({ url }) => url), [`${base}/one`, `${base}/two`]);
    const arrival = await arrived("/one");
    assert.equal(arrival.headers["upstash-topic-name"], name);
    await arrived("/two");
    const message = await client.messages.get(results[0].messageId);
    assert.equal(message.urlGroup, name);
    assert.equal(message.endpointName, "first");
    await client.urlGroups.removeEndpoints({ name, endpoints: [{ name: "first" }] });
    assert.equal((await client.urlGroups.get(name)).endpoints.length, 1);
    await client.urlGroups.delete(name);
    await assert.rejects(client.urlGroups.get(name), refusedWith(404));
    await assert.rejects(client.publish({ urlGroup: name }), refusedWith(404));
  });
});

describe("dead letter queue", () => {
  const fail = async (path) => {
    answers[path] = [{ status: 503, headers: { "X-Why": "because" }, body: "out of order" }];
    const { messageId } = await client.publish({ url: `${base}${path}`, retries: 0, body: "payload" });
    return failed(messageId);
  };

  test("list, filter, delete one and many", async () => {
    const letter = await fail("/broken");
    assert.equal(letter.responseStatus, 503);
    assert.equal(letter.responseBody, "out of order");
    assert.deepEqual(letter.responseHeader["X-Why"], ["because"]);
    assert.equal(letter.body, "payload");
    await client.dlq.delete(letter.dlqId);
    await assert.rejects(client.dlq.delete(letter.dlqId), refusedWith(404));
    const letters = [await fail("/broken"), await fail("/broken")].map(({ dlqId }) => dlqId);
    assert.equal((await client.dlq.deleteMany({ dlqIds: letters })).deleted, 2);
    const two = [await fail("/broken"), await fail("/broken")].map(({ dlqId }) => dlqId);
    assert.equal((await client.dlq.delete(two)).deleted, 2);
    await fail("/elsewhere");
    assert.equal((await client.dlq.delete({ filter: { url: `${base}/elsewhere` } })).deleted, 1);
  });

  test("pages end without a cursor", async () => {
    for (const path of ["/p1", "/p2", "/p3"]) await fail(path);
    const seen = [];
    let cursor;
    do {
      const page = await client.dlq.listMessages({ count: 2, cursor });
      seen.push(...page.messages.map(({ dlqId }) => dlqId));
      cursor = page.cursor;
    } while (cursor);
    assert.equal(new Set(seen).size, 3);
    assert.equal(seen.length, 3);
    assert.equal((await client.dlq.delete({ all: true })).deleted, 3);
  });

  test("retry publishes anew", async () => {
    const letter = await fail("/again");
    const { responses } = await client.dlq.retry(letter.dlqId);
    await until(() => arrivals.filter(({ url }) => url === "/again").length === 2, "the second attempt");
    assert.notEqual(responses[0].messageId, letter.messageId);
    const two = [(await fail("/again")).dlqId, (await fail("/again")).dlqId];
    assert.equal((await client.dlq.retry(two)).responses.length, 2);
    assert.equal((await client.dlq.listMessages()).messages.length, 0);
  });
});

describe("logs", () => {
  test("the states of a message, by filters, in pages", async () => {
    answers["/twice"] = [{ status: 500, body: "no" }];
    const { messageId } = await client.publish({ url: `${base}/twice`, retries: 1 });
    const states = await until(async () => {
      const { logs } = await client.logs({ filter: { messageId } });
      return logs.some(({ state }) => state === "DELIVERED") && logs.map(({ state }) => state).reverse();
    }, "the delivery");
    assert.deepEqual(states, ["CREATED", "ACTIVE", "ERROR", "RETRY", "ACTIVE", "DELIVERED"]);
    const { logs } = await client.logs({ filter: { messageId, state: "ERROR" } });
    assert.equal(logs.length, 1);
    const page = await client.logs({ filter: { messageId }, count: 4 });
    const rest = await client.logs({ filter: { messageId }, count: 4, cursor: page.cursor });
    assert.equal(page.logs.length + rest.logs.length, 6);
    assert.equal(rest.cursor, undefined);
    assert.equal((await client.events({ filter: { messageId } })).events.length, 6);
  });

  test("a cancelled message", async () => {
    const { messageId } = await client.publish({ url: `${base}/never`, delay: 100 });
    await client.messages.cancel(messageId);
    const { logs } = await client.logs({ filter: { messageId } });
    assert.deepEqual(logs.map(({ state }) => state), ["CANCELED", "CANCEL_REQUESTED", "CREATED"]);
  });
});

describe("flow control", () => {
  test("get, pause, pin, unpin, resume and resetRate", async () => {
    const key = unique("key");
    await client.publish({ url: `${base}/flow`, flowControl: { key, parallelism: 3, rate: 5, period: 60 } });
    await arrived("/flow");
    const info = await client.flowControl.get(key);
    assert.equal(info.flowControlKey, key);
    assert.deepEqual([info.parallelismMax, info.rateMax, info.ratePeriod, info.rateCount], [3, 5, 60, 1]);
    await client.flowControl.pause(key);
    await client.publish({ url: `${base}/held`, flowControl: { key, parallelism: 3, rate: 5, period: 60 } });
    const paused = await until(async () => {
      const found = await client.flowControl.get(key);
      return found.waitListSize === 1 && found;
    }, "the wait list");
    assert.equal(paused.isPaused, true);
    await client.flowControl.pin(key, { parallelism: 1, rate: 2, period: 30 });
    const pinned = await client.flowControl.get(key);
    assert.deepEqual([pinned.isPinnedParallelism, pinned.isPinnedRate, pinned.rateMax], [true, true, 2]);
    await client.flowControl.unpin(key, { parallelism: true, rate: true });
    assert.equal((await client.flowControl.get(key)).isPinnedRate, false);
    await client.flowControl.resetRate(key);
    await client.flowControl.resume(key);
    await arrived("/held");
    await assert.rejects(client.flowControl.get(unique("unknown")), refusedWith(404));
    const { parallelismMax } = await client.flowControl.getGlobalParallelism();
    assert.ok(parallelismMax >= 1);
  });
});

test("the client's development mode adopts the server that runs on its port", async () => {
  process.env.QSTASH_DEV = "true";
  process.env.QSTASH_DEV_PORT = new URL(process.env.QSTASH_URL).port;
  try {
    // Neither URL nor token nor keys are given.
    const developing = new Client({ retry: false });
    const { messageId } = await developing.publish({ url: `${base}/developed`, body: "x" });
    const arrival = await arrived("/developed");
    assert.equal(arrival.headers["upstash-message-id"], messageId);
    assert.ok(await new Receiver().verify({ signature: arrival.headers["upstash-signature"], body: "x" }));
  } finally {
    delete process.env.QSTASH_DEV;
    delete process.env.QSTASH_DEV_PORT;
  }
});

test("keys are read and rotated", async () => {
  const request = (path, method) => client.http.request({ path: ["v2", "keys", ...path], method });
  const before = await request([], "GET");
  assert.equal(before.current, process.env.QSTASH_CURRENT_SIGNING_KEY);
  const after = await request(["rotate"], "POST");
  assert.equal(after.current, before.next);
  await client.publish({ url: `${base}/rotated`, body: "x" });
  const arrival = await arrived("/rotated");
  // With the pair from before the rotation.
  assert.ok(await receiver.verify({ signature: arrival.headers["upstash-signature"], body: "x" }));
});
