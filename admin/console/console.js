// The console: how one node sees itself and its cluster, kept up by /api/v1/stream.
// Everything is drawn from what the node says last; texts go into the page as text only.

const svgNS = "http://www.w3.org/2000/svg";
const $ = (id) => document.getElementById(id);

// h makes an element: h("td.n", {title: "…"}, children…). Children are nodes, texts, lists of
// them, or nothing.
function h(what, attributes, ...children) {
  const [name, ...classes] = what.split(".");
  const svg = ["svg", "g", "path", "rect", "line", "text", "title"].includes(name);
  const element = svg ? document.createElementNS(svgNS, name) : document.createElement(name);
  if (classes.length > 0) element.setAttribute("class", classes.join(" "));
  for (const [key, value] of Object.entries(attributes || {})) {
    if (value === undefined || value === null || value === false) continue;
    element.setAttribute(key, value === true ? "" : String(value));
  }
  for (const child of children.flat(4)) {
    if (child === undefined || child === null || child === false || child === "") continue;
    element.append(child);
  }
  return element;
}

// show makes children what element holds, and touches only what differs: focus, selected
// text, scroll positions and open details stay.
function show(element, ...children) {
  const fresh = children.flat(4).filter((c) => c !== undefined && c !== null && c !== false && c !== "");
  morph(element, fresh.map((c) => (typeof c === "string" ? document.createTextNode(c) : c)));
}

function morph(element, fresh) {
  const old = [...element.childNodes];
  fresh.forEach((node, i) => {
    const was = old[i];
    if (!was) {
      element.append(node);
    } else if (was.nodeType !== node.nodeType || was.nodeName !== node.nodeName || (was.dataset && was.dataset.key) !== (node.dataset && node.dataset.key)) {
      was.replaceWith(node);
    } else if (node.nodeType === Node.TEXT_NODE) {
      if (was.data !== node.data) was.data = node.data;
    } else {
      for (const { name, value } of node.attributes) {
        if (was.getAttribute(name) !== value) was.setAttribute(name, value);
      }
      for (const { name } of [...was.attributes]) {
        if (!node.hasAttribute(name) && name !== "open") was.removeAttribute(name);
      }
      morph(was, [...node.childNodes]);
    }
  });
  old.slice(fresh.length).forEach((node) => node.remove());
}

// Figures, as people say them.

function count(n) {
  if (n < 10 && n % 1 >= 0.05) return n.toFixed(1);
  return n < 10000 ? String(Math.round(n)) : scaled(n, "");
}
function scaled(n, unit) {
  const prefixes = ["", "k", "M", "G", "T", "P", "E"];
  let i = 0;
  for (; n >= 999.5 && i < prefixes.length - 1; i++) n /= 1000;
  const digits = i === 0 && n >= 10 ? Math.round(n) : n < 9.95 && n > 0 ? n.toFixed(1) : Math.round(n);
  const suffix = prefixes[i] + unit;
  return suffix ? `${digits} ${suffix}` : String(digits);
}
function percent(part) {
  if (!(part > 0)) return "0 %";
  return part < 0.01 ? "<1 %" : `${Math.round(part * 100)} %`;
}
function span(seconds) {
  const s = Math.max(0, Math.floor(seconds));
  if (s >= 86400) return `${Math.floor(s / 86400)}d${Math.floor((s % 86400) / 3600)}h`;
  if (s >= 3600) return `${Math.floor(s / 3600)}h${Math.floor((s % 3600) / 60)}m`;
  if (s >= 60) return `${Math.floor(s / 60)}m${s % 60}s`;
  return `${s}s`;
}
const between = (from, to) => span((new Date(to) - new Date(from)) / 1000);
const clock = (time) => new Date(time).toTimeString().slice(0, 8);
const plural = (n, one) => `${n} ${one}${n === 1 ? "" : "s"}`;

// Rates come from the counters of the statuses of the last seconds.

const past = []; // {at, status}, the oldest first
const memory = 6000; // ms

function remember(status) {
  const at = Date.parse(status.time);
  if (past.length > 0 && status.node.started !== past[0].status.node.started) past.length = 0;
  past.push({ at, status, counters: counters(status) });
  while (past.length > 2 && at - past[1].at >= memory) past.shift();
}

function counters(status) {
  const all = new Map();
  for (const v of status.verdicts) all.set(`v/${v.verdict}`, v);
  for (const s of status.services) for (const b of s.backends) all.set(`b/${s.name}/${b.name}`, b);
  return all;
}

// rate is how much a second a counter grew, of packets or bytes.
function rate(key, what) {
  const last = past[past.length - 1];
  const first = past.find((p) => p.counters.has(key));
  if (!first || !last.counters.has(key)) return 0;
  const seconds = (last.at - first.at) / 1000;
  const grown = last.counters.get(key)[what] - first.counters.get(key)[what];
  return seconds > 0 && grown > 0 ? grown / seconds : 0;
}

// States: a shape by its class, and always the word.

const classes = {
  ok: "good", up: "good", established: "good", alive: "good",
  draining: "warn", drained: "idle", unknown: "warn", suspect: "warn", off: "idle",
};
const state = (word, kind) => h(`span.s.${kind || classes[word] || "bad"}`, null, word);

// table is one: columns are [title, class]; a cell is a node, a text, or a list of them.
function table(label, columns, rows) {
  const kinds = columns.map(([, kind]) => (kind ? `.${kind}` : ""));
  return h("table.cards", { "aria-label": label, role: "table" },
    h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, columns.map(([title], i) => h(`th${kinds[i]}`, { scope: "col", role: "columnheader" }, title)))),
    h("tbody", { role: "rowgroup" }, rows.map(({ key, cells }) => h("tr", { role: "row", "data-key": key },
      cells.map((cell, i) => h(`td${kinds[i]}`, { role: "cell", "data-label": columns[i][0] || undefined }, cell))))));
}

function bar(part, kind) {
  const width = Math.max(0, Math.min(1, part || 0)) * 100;
  return h("svg.bar", { viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" },
    h("rect.bg", { width: 100, height: 10 }), h(`rect.fg${kind ? `.${kind}` : ""}`, { width: width.toFixed(1), height: 10 }));
}

// What needs a person.

function problems(st) {
  const list = [];
  const bad = (text) => list.push({ text });
  const note = (text) => list.push({ text, note: true });
  if (st.node.health.status !== "ok") bad(`This node is ${st.node.health.status}: ${st.node.health.reasons.join("; ")}`);
  for (const s of st.services) {
    if (!s.announced) bad(`${s.name} is not announced: ${s.reason}`);
    if (s.panic) bad(`${s.name} ignores health and uses all backends: ${s.panic}`);
    for (const b of s.backends) {
      if (b.state === "down") bad(`${s.name}: ${b.name} is down${b.order ? ` (${b.order})` : b.last_error ? `: ${b.last_error}` : ""}`);
      else if (b.state === "unknown") note(`${s.name}: ${b.name} is not judged yet`);
    }
    if (s.table_differs.length > 0) bad(`${s.name}: the table differs on ${s.table_differs.join(", ")}`);
  }
  for (const p of st.bgp) {
    if (p.state !== "established") bad(`Router ${p.peer} is ${p.state}${p.last_error ? `: ${p.last_error}` : ""}`);
    else if (p.bfd === "down") bad(`Router ${p.peer}: BFD is down`);
  }
  if (st.cluster.frozen) bad("Verdicts stay as they were: too few members in sight for a majority");
  for (const m of st.cluster.blind) bad(`${m} is blind: it sees most backends down that the others see up`);
  for (const m of st.members) if (m.state !== "alive") bad(`Member ${m.name} is ${m.state}`);
  if (st.config_differs.length > 0) bad(`The configuration differs on ${st.config_differs.join(", ")}`);
  if (st.node.draining) note("This node is draining");
  for (const o of st.orders) note(`Order: ${ordered(o)} by ${o.by} on ${o.member}`);
  return [...list.filter((p) => !p.note), ...list.filter((p) => p.note)];
}

const ordered = (o) => (o.action === "weigh" ? `weight ${o.weight} of ${o.kind} ${o.name}` : `${o.action} of ${o.kind} ${o.name}`);

function glance(st) {
  const found = problems(st);
  const trouble = found.filter((p) => !p.note).length;
  const most = 12;
  const backends = st.services.flatMap((s) => s.backends);
  const of = (list, good) => `${list.filter(good).length} / ${list.length}`;
  const dropped = st.verdicts.filter((v) => v.fate === "dropped").reduce((sum, v) => sum + rate(`v/${v.verdict}`, "packets"), 0);
  show($("problems"),
    h(`p.verdict.${trouble ? "trouble" : "ok"}`, null, trouble ? plural(trouble, "thing") + " to look at" : "Nothing to look at"),
    found.length > 0 && h("ul.problems", null, found.slice(0, most).map((p) => h(p.note ? "li.note" : "li", null, h("span", null, p.text))),
      found.length > most && h("li.note", null, h("span", null, `and ${found.length - most} more`))),
    h("dl.figures", null, [
      ["packets/s", count(rate("v/forwarded", "packets"))],
      ["bit/s", scaled(rate("v/forwarded", "bytes") * 8, "")],
      ["dropped/s", count(dropped)],
      ["services", of(st.services, (s) => s.announced)],
      ["backends up", of(backends, (b) => b.state === "up")],
      ["members", `${st.cluster.in_sight} / ${Math.max(st.cluster.size, st.members.length)}`],
      ["routers", of(st.bgp, (p) => p.state === "established")],
    ].map(([term, figure]) => h("div", null, h("dt", null, term), h("dd", null, figure)))));
  document.title = `${trouble ? `(${trouble}) ` : ""}${st.node.name} · halfproxy`;
}

// The last minutes: packets forwarded, and those dropped below the line.

const samples = []; // [ms, forwarded a second, bits a second, dropped a second]
const window10 = 10 * 60 * 1000;

function drawTraffic() {
  if (samples.length === 0) return;
  const [W, H, low] = [600, 150, 32]; // low: the room of what is dropped
  const end = samples[samples.length - 1][0];
  const shown = samples.filter((s) => s[0] > end - window10);
  const top = nice(Math.max(10, ...shown.map((s) => s[1])));
  const bottom = nice(Math.max(10, ...shown.map((s) => s[3])));
  const x = (at) => W - ((end - at) / window10) * W;
  const y = (v) => (H - low) * (1 - v / top) + 1;
  const points = shown.map((s) => `${x(s[0]).toFixed(1)},${y(s[1]).toFixed(1)}`);
  const ground = H - low + 1;
  const drops = shown.filter((s) => s[3] > 0).map((s) => {
    const height = Math.max(1.5, (s[3] / bottom) * (low - 3));
    return `M${(x(s[0]) - 1.9).toFixed(1)} ${ground + 1}h1.9v${height.toFixed(1)}h-1.9z`;
  });
  const last = shown[shown.length - 1];
  const peak = Math.max(...shown.map((s) => s[1]));
  const lost = shown.reduce((sum, s, i) => sum + s[3] * (i > 0 ? (s[0] - shown[i - 1][0]) / 1000 : 0), 0);
  const said = `Packets forwarded in the last 10 minutes: ${count(last[1])} a second now, ${count(peak)} at most; ${count(lost)} dropped.`;
  show($("traffic"),
    h("figcaption", null, h("span.key", null, `forwarded: ${count(last[1])} packets/s, peak ${count(peak)}`),
      h("span.key.dropped", null, `dropped: ${count(lost)} in all`), h("span", null, "last 10 minutes")),
    h("svg", { viewBox: `0 0 ${W} ${H}`, preserveAspectRatio: "none", role: "img", "aria-label": said },
      [0, 0.5].map((part) => h("line.chart-grid", { x1: 0, x2: W, y1: y(top * part), y2: y(top * part) })),
      [2, 4, 6, 8].map((m) => h("line.chart-grid", { x1: (m * W) / 10, x2: (m * W) / 10, y1: 0, y2: ground })),
      h("path.chart-area", { d: `M${points[0]}L${points.join(" ")}L${W},${ground}L${points[0].split(",")[0]},${ground}z` }),
      h("path.chart-line", { d: `M${points.join("L")}` }),
      drops.length > 0 && h("path.chart-drop", { d: drops.join("") })),
    h("figcaption", { "aria-hidden": "true" }, h("span", null, `scale: ${count(top)} packets/s above, ${count(bottom)} dropped/s below; a line every 2 minutes`)));
}

function nice(n) {
  const unit = 10 ** Math.floor(Math.log10(n));
  return [1, 2, 5, 10].map((k) => k * unit).find((v) => v >= n);
}

// Services.

const inTable = (s, b) => (s.panic ? !b.order.startsWith("fail") && b.state !== "draining" && b.state !== "drained" : b.state === "up");
const unfolded = new Set(); // services of which all backends are shown
const few = 24;

function shares(s) {
  const slots = s.backends.map((b) => (inTable(s, b) ? b.weight_now : 0));
  const traffic = s.backends.map((b) => rate(`b/${s.name}/${b.name}`, "packets"));
  const part = (list) => {
    const sum = list.reduce((a, b) => a + b, 0);
    return list.map((v) => (sum > 0 ? v / sum : 0));
  };
  return { slots: part(slots), traffic: part(traffic), rates: traffic };
}

function strip(label, s, parts) {
  let at = 0;
  const said = s.backends.map((b, i) => `${b.name} ${percent(parts[i])}`).slice(0, 40).join(", ");
  return [h("span", null, label),
    h("svg", { viewBox: "0 0 1000 10", preserveAspectRatio: "none", role: "img", "aria-label": `${label} of ${s.name}: ${said}` },
      h("rect.share-none", { width: 1000, height: 10 }),
      parts.map((part, i) => {
        const x = at;
        at += part * 1000;
        const width = Math.max(0, part * 1000 - (part < 1 ? 2 : 0));
        return part > 0 && h(`rect.share${i % 3}`, { x: x.toFixed(1), width: width.toFixed(1), height: 10 }, h("title", null, `${s.backends[i].name} ${percent(part)}`));
      }))];
}

// eyes is who sees a backend how: the members as columns while they are few.
function eyes(st, b) {
  return st.members.map((m) => {
    const seen = b.seen[m.name];
    return h("span", null, seen ? state(seen) : h("span.s.idle", { title: `${m.name} has no opinion` }, "–"));
  });
}

function service(st, s) {
  const { slots, traffic, rates } = shares(s);
  const matrix = st.members.length <= 7;
  const rank = { down: 0, unknown: 1, draining: 2, drained: 3 };
  let order = s.backends.map((b, i) => i);
  const all = unfolded.has(s.name) || order.length <= few;
  if (!all) {
    order.sort((a, b) => (rank[s.backends[a].state] ?? 4) - (rank[s.backends[b].state] ?? 4) || a - b);
    order = order.slice(0, few);
  }
  const columns = [["State"], ["Backend"], ["Address", "n"], ["Weight", "n"], ["Table", "n"], ["Traffic now", "n"], ["Flows", "n"],
    ...(matrix ? st.members.map((m) => [`${m.name} sees`, "name"]) : [["Seen up by", "n"]])];
  const rows = order.map((i) => {
    const b = s.backends[i];
    const weight = b.weight_now < b.weight ? `${b.weight_now}/${b.weight}` : String(b.weight);
    return { key: b.name, cells: [
      state(b.state),
      [h("strong", null, b.name), b.order && h("span.note", null, b.order), b.last_error && h(b.state === "down" ? "span.err" : "span.note", null, b.last_error),
        b.safe_to_stop && h("span.note", null, "no flows are at it: safe to stop"),
        !b.safe_to_stop && b.held_by.length > 0 && h("span.note", null, `${plural(b.flow_records, "flow")} left here; held by ${b.held_by.join(", ")}: not safe to stop`)],
      b.address, weight, percent(slots[i]),
      [`${count(rates[i])}/s`, bar(traffic[i])], count(b.flows),
      ...(matrix ? eyes(st, b) : [`${b.healthy_observers}/${b.observers}`]),
    ] };
  });
  const t = s.transition;
  const more = h("button.more", { type: "button", "data-unfold": s.name }, all ? "Show fewer" : `Show all ${s.backends.length} backends`);
  return h("article.service", { "data-key": s.name, "aria-label": `Service ${s.name}` },
    h("div.service-head", null, h("h3", null, s.name), state(s.announced ? "announced" : "not announced", s.announced ? "good" : "bad"),
      h("span.muted", null, `${s.backends.filter((b) => b.state === "up").length} of ${plural(s.backends.length, "backend")} up`),
      h("span.muted", null, `${count(rates.reduce((a, b) => a + b, 0))} packets/s`)),
    h("p.where.mono", null, `${s.vips.join(", ")} · ${s.ports.join(" ")} · ${s.forward} · table ${s.table_digest.slice(0, 8) || "none"}`),
    !s.announced && h("p.why", null, h("span.s.bad", null, `not announced: ${s.reason}`)),
    s.held_back.filter((held) => !held.reason.endsWith(s.reason)).map((held) => h("p.why", null, h("span.s.bad", null, `${held.vip} held back: ${held.reason}`))),
    s.panic && h("p.why", null, h("span.s.bad", null, `health is ignored and all backends are used: ${s.panic}`)),
    t && h("p.why.muted", null, `In transition for ${between(t.since, st.time)}: ${plural(t.slots, "slot")} after ${plural(t.changes, "change")}; older flows are kept for ${between(st.time, t.until)} at most.`),
    s.backends.length > 0 && h("div.shares", null, strip("table", s, slots), strip("traffic", s, traffic)),
    table(`Backends of ${s.name}`, columns, rows),
    s.backends.length > few && more);
}

function drawServices(st) {
  show($("services-body"), st.services.length > 0 ? st.services.map((s) => service(st, s)) : h("p.muted", null, "No services are configured."));
}

// The cluster.

function drawCluster(st) {
  const services = st.services.slice(0, 8);
  const columns = [["Member"], ["State"], ["Address", "n"], ["Configuration"], ...services.map((s) => [`Table of ${s.name}`, "name"])];
  const agrees = (theirs, ours) => (!theirs ? h("span.s.idle", null, "not told") : h("span", null, state(theirs === ours ? "same" : "differs", theirs === ours ? "good" : "bad"), " ", h("span.mono.muted", null, theirs.slice(0, 8))));
  const rows = st.members.map((m) => ({ key: m.name, cells: [
    [h("strong", null, m.name), m.name === st.node.name && " (this one)"],
    [state(m.state), st.cluster.blind.includes(m.name) && h("span.err", null, "blind: does not vote")],
    m.address || "–", agrees(m.config_digest, st.config_digest), ...services.map((s) => agrees(m.tables[s.name], s.table_digest)),
  ] }));
  show($("cluster-body"), h("div.panel", null, table("Members", columns, rows),
    h("p.muted", null, `${st.cluster.in_sight} of ${Math.max(st.cluster.size, st.members.length)} in sight`,
      st.services.length > services.length && `; tables of the first ${services.length} of ${st.services.length} services`)));
}

function drawRouters(st) {
  const rows = st.bgp.map((p) => ({ key: p.peer, cells: [
    [h("strong.mono.address", null, p.peer), h("span.note", null, `AS ${p.asn}`)],
    [state(p.state), p.since && h("span.note", null, `for ${between(p.since, st.time)}`)],
    state(p.bfd),
    [h("span", null, `${plural(p.announced, "route")} `), p.routes.slice(0, 40).map((r) => h(r.going_away ? "span.tag.leaving" : "span.tag", null, r.prefix, r.going_away && " going away")),
      p.routes.length > 40 && `and ${p.routes.length - 40} more`, p.state !== "established" && p.last_error && h("span.err", null, p.last_error)],
  ] }));
  const around = st.aggregates.map((a) => ({ key: a.prefix, cells: [
    h("strong.mono", null, a.prefix), state(a.announced ? "announced" : "held back", a.announced ? "good" : "bad"),
    [`${a.serving} of ${plural(a.vips, "VIP")}`, a.reason && h("span.note", null, a.reason)]] }));
  show($("routers-body"), h("div.panel", null,
    rows.length > 0 ? table("Routers", [["Router"], ["BGP"], ["BFD"], ["Is told"]], rows) : h("p.muted", null, "No router is configured: nothing is announced."),
    around.length > 0 && table("Aggregates", [["Aggregate"], ["State"], ["Serving"]], around)));
}

function drawFlows(st) {
  const { held, room } = st.node.flow_records;
  const moving = st.services.filter((s) => s.transition);
  show($("flows-body"), h("div.panel", null,
    h("p", null, h("span.mono", null, `${held.toLocaleString("en")} of ${room.toLocaleString("en")}`), " flow records", bar(room > 0 ? held / room : 0, held > room * 0.9 && "bad")),
    h("p.muted", null, moving.length > 0 ? `In transition: ${moving.map((s) => `${s.name} (${plural(s.transition.slots, "slot")})`).join(", ")}.` : "No table is in transition: every flow is where its slot says."),
    st.orders.length > 0
      ? table("Orders in force", [["Order"], ["By"], ["For", "n"], ["Ends", "n"]], st.orders.map((o) => ({ key: `${o.kind} ${o.name}`, cells: [
          h("strong", null, ordered(o)), `${o.by} on ${o.member}`, o.at ? between(o.at, st.time) : "", o.until ? `in ${between(st.time, o.until)}` : "when undone"] })))
      : h("p.muted", null, "No orders are in force.")));
}

function drawPackets(st) {
  const seen = st.verdicts.filter((v) => v.packets > 0);
  const most = Math.max(1, ...seen.map((v) => v.packets));
  const kinds = { forwarded: "good", answered: "good", passed: "idle", dropped: "bad" };
  const rows = seen.map((v) => ({ key: v.verdict, cells: [
    h("span.mono", null, v.verdict), state(v.fate, kinds[v.fate]), `${count(rate(`v/${v.verdict}`, "packets"))}/s`,
    [scaled(v.packets, ""), bar(Math.log10(v.packets + 1) / Math.log10(most + 1), v.fate === "dropped" && "bad")]] }));
  const none = st.verdicts.length - seen.length;
  show($("packets-body"), h("div.panel", null,
    rows.length > 0 ? table("Packets by verdict", [["Verdict"], ["Fate"], ["Now", "n"], ["In all", "n"]], rows) : h("p.muted", null, "No packet has come yet."),
    h("p.muted", null, `${plural(none, "verdict")} without a packet. Bars are logarithmic.`)));
}

// Events.

const happened = []; // the newest first
const mostEvents = 500;
const levels = { info: 0, warn: 1, error: 2 };

function drawEvents() {
  const words = $("filter-text").value.toLowerCase().split(/\s+/).filter(Boolean);
  const least = levels[$("filter-level").value];
  const text = (e) => `${e.part} ${e.message} ${Object.entries(e.attributes).map(([k, v]) => `${k}=${v}`).join(" ")}`.toLowerCase();
  const found = happened.filter((e) => levels[e.level] >= least && words.every((w) => text(e).includes(w)));
  const kinds = { info: "idle", warn: "warn", error: "bad" };
  let list = $("log");
  if (!list) {
    list = h("ol.log.panel", { id: "log", tabindex: 0, "aria-label": "Events, the newest first" });
    $("events-body").append(list, h("p.muted", { id: "log-note" }));
  }
  show(list, found.slice(0, 200).map((e) => h("li", { "data-key": e.number },
    h("time", { datetime: e.time, title: new Date(e.time).toString() }, clock(e.time)), state(e.level, kinds[e.level]), h("span.part", null, e.part),
    h("span.what", null, e.message, Object.entries(e.attributes).map(([k, v]) => h("span.attr", null, `${k} `, h("b", null, v)))))));
  $("log-note").textContent = happened.length === 0 ? "Nothing has happened yet." : found.length === 0 ? "No event matches." :
    `${Math.min(found.length, 200)} of ${happened.length} events here; halfproxy events has the others.`;
}

// The stream.

let current; // the last status
let heard = 0; // when it came, ms
let longest = 1000; // the longest time between two
let source;

function draw(st) {
  show($("node"), st.node.name);
  show($("facts"), state(st.node.health.status === "ok" ? "healthy" : st.node.health.status, st.node.health.status === "ok" ? "good" : "bad"),
    st.node.ready.status === "ok" ? state("ready", "good") : h("span.s.warn", { title: st.node.ready.reasons.join("; ") }, st.node.ready.status),
    st.node.draining && state("draining"), h("span", null, `version ${st.node.version}`), h("span", null, `up ${between(st.node.started, st.time)}`),
    st.node.interfaces.map((i) => h("span", null, `${i.name} ${i.attached ? i.xdp_mode : "not attached"}`)),
    h("span.mono", { title: "digest of the configuration" }, `config ${st.config_digest.slice(0, 8)}`));
  glance(st);
  drawServices(st);
  drawCluster(st);
  drawRouters(st);
  drawFlows(st);
  drawPackets(st);
}

function connect() {
  const last = happened.length > 0 ? `?after=${happened[0].number}` : "";
  source = new EventSource(`api/v1/stream${last}`);
  source.addEventListener("status", (message) => {
    const now = performance.now();
    if (heard && now - heard < 60000) longest = Math.max(1000, longest * 0.9, now - heard);
    heard = now;
    current = JSON.parse(message.data);
    remember(current);
    draw(current);
    watch();
  });
  source.addEventListener("traffic", (message) => {
    const fresh = JSON.parse(message.data).filter((s) => samples.length === 0 || s[0] > samples[samples.length - 1][0]);
    samples.push(...fresh);
    while (samples.length > 0 && samples[0][0] < samples[samples.length - 1][0] - window10) samples.shift();
    drawTraffic();
  });
  source.addEventListener("events", (message) => {
    const newest = happened.length > 0 ? happened[0].number : 0;
    for (const e of JSON.parse(message.data)) if (e.number > newest) happened.unshift(e);
    happened.length = Math.min(happened.length, mostEvents);
    drawEvents();
  });
  // The browser tries again by itself after a lost connection, but not after an answer that
  // it does not like, such as that of a node with too many onlookers.
  source.addEventListener("error", () => {
    if (source.readyState === EventSource.CLOSED) setTimeout(connect, 2000);
  });
}

// watch says how fresh the page is, and when the node is gone.
function watch() {
  const silent = heard ? (performance.now() - heard) / 1000 : 0;
  const gone = heard > 0 && silent * 1000 > Math.max(4000, 3 * longest);
  show($("link"), !heard ? "connecting…" : gone ? `silent for ${span(silent)}` : `live · ${clock(current.time)}`);
  $("main").classList.toggle("stale", gone);
  $("gone").hidden = !gone;
  const said = gone ? `${current.node.name} does not answer: what follows is from ${clock(current.time)}. Trying again.` : "";
  if ($("gone").textContent !== said) $("gone").textContent = said;
}

// Keys.

function go(section) {
  $(section).scrollIntoView();
  $(section).focus({ preventScroll: true });
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, dialog")) {
    if (event.key === "Escape" && event.target === $("filter-text")) event.target.blur();
    return;
  }
  const sections = [...document.querySelectorAll("nav a")].map((a) => a.hash.slice(1));
  if (sections[event.key - 1]) go(sections[event.key - 1]);
  else if (event.key === "?") $("keys").showModal();
  else if (event.key === "/") {
    event.preventDefault();
    $("filter-text").focus();
  }
});
$("keys-button").addEventListener("click", () => $("keys").showModal());
$("filter").addEventListener("input", drawEvents);
$("filter").addEventListener("submit", (event) => event.preventDefault());
document.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-unfold]");
  if (!button) return;
  const name = button.getAttribute("data-unfold");
  if (!unfolded.delete(name)) unfolded.add(name);
  drawServices(current);
});

drawEvents();
connect();
setInterval(watch, 1000);
