// Score against length of the output, drawn as SVG: measured points with intervals and their Pareto front; published points apart.

const CHART = { width: 460, height: 320, left: 46, right: 14, top: 14, bottom: 46, strip: 120 };

/**
 * The chart of one board.
 * points: [{label, mode, color, score: [v, low, high], length: [mean, low, high], href, group}].
 * published: [{model, mode, score, characters}].
 * size: {part: "total", unit: "chars"}.
 */
function scatter({ points, published, size, title, wide }) {
  const strips = published.filter(item => publishedLength(item, size) === null);
  const placed = published.filter(item => publishedLength(item, size) !== null);
  const box = { ...CHART, width: wide ? 820 : CHART.width, height: wide ? 420 : CHART.height, strip: strips.length ? CHART.strip : 0 };
  const plotRight = box.width - box.right - box.strip;
  const x = lengthScale(
    [...points.map(point => point.length[0]), ...placed.map(item => publishedLength(item, size))],
    box.left,
    plotRight,
  );
  const y = scoreScale([...points.flatMap(point => point.score), ...published.map(item => item.score / 100)], box);
  const labels = new Labels(box.left, plotRight, box.top, box.height - box.bottom);
  const front = paretoFront(points);
  const svg = s(
    "svg",
    {
      class: "chart",
      viewBox: `0 0 ${box.width} ${box.height}`,
      role: "group",
      "aria-label": `${title}: score against mean length of the output`,
    },
    axes(x, y, box, plotRight, size),
    points.length
      ? null
      : s(
          "text",
          { class: "empty", x: (box.left + plotRight) / 2, y: (box.top + box.height - box.bottom) / 2 },
          "no finished evaluation",
        ),
    frontPath(front, x, y, plotRight),
    joins(points, x, y),
    points.map(point => whiskers(point, x, y)),
  );
  for (const point of points) labels.block(x(point.length[0]), y(point.score[0]));
  const marks = s("g");
  const texts = s("g", { class: "point-labels", "aria-hidden": "true" });
  for (const item of placed) {
    marks.append(publishedMark(item, x(publishedLength(item, size)), y(item.score / 100)));
    labels.block(x(publishedLength(item, size)), y(item.score / 100));
  }
  for (const point of [...points].sort((a, b) => front.includes(b) - front.includes(a))) {
    marks.append(pointMark(point, x, y, front.includes(point), size));
    if (point.mode !== "high" && points.some(other => other.group === point.group && other.mode === "high")) continue; // one name per model
    const place = labels.place(x(point.length[0]), y(point.score[0]), clip(point.label, 28), front.includes(point));
    if (place) texts.append(s("text", { class: "label", x: place.x, y: place.y, "text-anchor": place.anchor }, place.text));
  }
  for (const item of placed) {
    const place = labels.place(x(publishedLength(item, size)), y(item.score / 100), clip(item.model, 24), true);
    if (place) texts.append(s("text", { class: "label published", x: place.x, y: place.y, "text-anchor": place.anchor }, place.text));
  }
  svg.append(marks, texts);
  if (strips.length) svg.append(publishedStrip(strips, y, box, plotRight));
  return svg;
}

/** Where a published point lies; null where its length in this unit is not known. */
function publishedLength(item, size) {
  return item.characters !== null && size.unit === "chars" && size.part === "total" ? item.characters : null;
}

/** The points that no other point beats: none is better or equal in both score and length. In order of length. */
function paretoFront(points) {
  const beats = (a, b) =>
    a.score[0] >= b.score[0] && a.length[0] <= b.length[0] && (a.score[0] > b.score[0] || a.length[0] < b.length[0]);
  return points.filter(point => !points.some(other => beats(other, point))).sort((a, b) => a.length[0] - b.length[0]);
}

function lengthScale(values, left, right) {
  const most = Math.max(...values, 0),
    least = Math.min(...values);
  const isLog = values.length > 0 && least > 0 && most / least >= 8;
  const scale = isLog ? logScale(least / 1.5, most * 1.6, left, right) : linearScale(0, most > 0 ? most * 1.15 : 1, left, right);
  return scale;
}

function linearScale(from, to, left, right) {
  const scale = value => left + ((value - from) / (to - from)) * (right - left);
  const step = niceStep((to - from) / 5);
  scale.ticks = [];
  for (let tick = Math.ceil(from / step) * step; tick <= to + step / 1e6; tick += step) scale.ticks.push(tick);
  scale.limits = [from, to];
  return scale;
}

function logScale(from, to, left, right) {
  const scale = value => left + (Math.log(value / from) / Math.log(to / from)) * (right - left);
  const decades = Math.log10(to / from);
  const steps = decades > 3 ? [1] : decades > 1.6 ? [1, 3] : [1, 2, 5];
  scale.ticks = [];
  for (let power = Math.floor(Math.log10(from)); power <= Math.log10(to); power++) {
    for (const step of steps) if (step * 10 ** power >= from && step * 10 ** power <= to) scale.ticks.push(step * 10 ** power);
  }
  scale.limits = [from, to];
  scale.isLog = true;
  return scale;
}

function scoreScale(shares, box) {
  let low = Math.min(...shares, 1),
    high = Math.max(...shares, 0);
  if (high < low) [low, high] = [0, 1];
  const step = high - low > 0.45 ? 0.2 : high - low > 0.18 ? 0.1 : 0.05;
  low = Math.max(0, Math.floor(low / step - 0.2) * step);
  high = Math.min(1, Math.ceil(high / step + 0.2) * step);
  const bottom = box.height - box.bottom;
  const margin = 6; // a point at 0 or 100 % is not cut
  const scale = share => bottom - margin - ((share - low) / (high - low)) * (bottom - box.top - 2 * margin);
  scale.ticks = [];
  for (let tick = low; tick <= high + 1e-9; tick += step) scale.ticks.push(tick);
  return scale;
}

function niceStep(rough) {
  const power = 10 ** Math.floor(Math.log10(rough));
  return [1, 2, 5, 10].find(factor => factor * power >= rough) * power;
}

function axes(x, y, box, right, size) {
  const bottom = box.height - box.bottom;
  const unit =
    size.unit === "chars"
      ? "thousands of characters"
      : size.unit === "usage"
        ? "thousands of the server's tokens"
        : "thousands of tokens";
  const part = { total: "thinking and answer", thinking: "thinking", answer: "final answer" }[size.part];
  const digits = Math.max(0, ...x.ticks.map(tick => -Math.floor(Math.log10(tick / 1000 || 1))));
  return s(
    "g",
    { class: "axes", "aria-hidden": "true" },
    y.ticks.map(tick => [
      s("line", { class: "grid", x1: box.left, x2: right, y1: y(tick), y2: y(tick) }),
      s("text", { class: "tick", x: box.left - 7, y: y(tick) + 3.5, "text-anchor": "end" }, (100 * tick).toFixed(0)),
    ]),
    x.ticks.map(tick => [
      s("line", { class: "grid", x1: x(tick), x2: x(tick), y1: box.top, y2: bottom }),
      s(
        "text",
        { class: "tick", x: x(tick), y: bottom + 15, "text-anchor": "middle" },
        String(Number((tick / 1000).toFixed(Math.min(digits + 1, 4)))),
      ),
    ]),
    s("line", { class: "axis", x1: box.left, x2: right, y1: bottom, y2: bottom }),
    s("line", { class: "axis", x1: box.left, x2: box.left, y1: box.top, y2: bottom }),
    s(
      "text",
      { class: "axis-title", x: (box.left + right) / 2, y: bottom + 34, "text-anchor": "middle" },
      `mean length of ${part}, ${unit}${x.isLog ? " (log)" : ""}`,
    ),
    s(
      "text",
      { class: "axis-title", transform: `translate(13 ${(box.top + bottom) / 2}) rotate(-90)`, "text-anchor": "middle" },
      "score, %",
    ),
  );
}

function frontPath(front, x, y, right) {
  if (!front.length) return null;
  const [first, ...rest] = front;
  let path = `M${x(first.length[0])} ${y(first.score[0])}`;
  for (const point of rest) path += ` H${x(point.length[0])} V${y(point.score[0])}`;
  return s("path", { class: "front", d: `${path} H${right}` });
}

/** Lines between the two modes of a model. */
function joins(points, x, y) {
  const groups = new Map();
  for (const point of points) groups.set(point.group, [...(groups.get(point.group) || []), point]);
  return [...groups.values()]
    .filter(pair => pair.length === 2)
    .map(([a, b]) =>
      s("line", { class: `join c${a.color}`, x1: x(a.length[0]), y1: y(a.score[0]), x2: x(b.length[0]), y2: y(b.score[0]) }),
    );
}

function whiskers(point, x, y) {
  const [value, low, high] = point.score;
  const [mean, short, long] = point.length;
  const from = x.isLog ? Math.max(short, x.limits[0]) : Math.max(short, 0);
  const to = Math.min(long, x.limits[1]);
  return s(
    "g",
    { class: `whiskers c${point.color}`, "aria-hidden": "true" },
    s("line", { x1: x(mean), x2: x(mean), y1: y(low), y2: y(high) }),
    s("line", { x1: x(from), x2: x(to), y1: y(value), y2: y(value) }),
  );
}

function pointMark(point, x, y, isFront, size) {
  const [value, low, high] = point.score;
  const cx = x(point.length[0]),
    cy = y(value);
  const unit = size.unit === "chars" ? "characters" : "tokens";
  const words =
    `${point.label}, ${point.mode}: score ${percent(value)} % [${percent(low)}, ${percent(high)}], ` +
    `${count(Math.round(point.length[0]))} ${unit}${isFront ? ", on the Pareto front" : ""}`;
  const mark =
    point.mode === "high" ? s("circle", { cx, cy, r: 5.5 }) : s("rect", { x: cx - 4.8, y: cy - 4.8, width: 9.6, height: 9.6, rx: 1.2 });
  return s(
    "a",
    { href: point.href, class: `point c${point.color}`, "aria-label": words },
    s("title", null, words),
    s("circle", { class: "target", cx, cy, r: 12 }),
    mark,
  );
}

function publishedMark(item, cx, cy) {
  const words = `${item.model} (${item.mode}), published, not measured here: ${item.score} %. ${item.source}`;
  return s(
    "g",
    { class: "published-mark", role: "img", "aria-label": words },
    s("title", null, words),
    s("path", { d: `M${cx} ${cy - 6} L${cx + 6} ${cy} L${cx} ${cy + 6} L${cx - 6} ${cy} Z` }),
  );
}

/** Published points without a length stand in a strip of their own, outside the plot. */
function publishedStrip(items, y, box, right) {
  const left = right + 10,
    bottom = box.height - box.bottom;
  const group = s(
    "g",
    { class: "strip" },
    s("rect", { class: "strip-back", x: left, y: box.top, width: box.strip - 6, height: bottom - box.top }),
  );
  group.append(
    s("text", { class: "axis-title", x: left + (box.strip - 6) / 2, y: bottom + 15, "text-anchor": "middle" }, "published,"),
    s("text", { class: "axis-title", x: left + (box.strip - 6) / 2, y: bottom + 27, "text-anchor": "middle" }, "no length"),
  );
  let last = -Infinity;
  for (const item of [...items].sort((a, b) => b.score - a.score)) {
    const cy = y(item.score / 100);
    group.append(publishedMark(item, left + 9, cy));
    if (cy - last >= 11) {
      group.append(s("text", { class: "label published", x: left + 18, y: cy + 3.5 }, clip(shortName(item), 17)));
      last = cy;
    }
  }
  return group;
}

function shortName(item) {
  const name = item.model.replace("Mistral ", "").replace("Magistral ", "Mag. ").replace(" (AA)", "");
  return item.mode === "low" ? `${name} low` : name;
}

function clip(text, most) {
  const letters = [...text];
  return letters.length <= most ? text : letters.slice(0, most - 1).join("") + "\u2026";
}

/** Finds room for labels beside points: right, left, above, below; one that has no room is left out. */
class Labels {
  constructor(left, right, top, bottom) {
    this.limits = { left, right, top, bottom };
    this.taken = [];
  }

  block(x, y) {
    this.taken.push({ x: x - 7, y: y - 7, width: 14, height: 14 });
  }

  place(x, y, text, isImportant) {
    const width = 5.6 * [...text].length,
      height = 11;
    const places = [
      { anchor: "start", x: x + 9, y: y + 3.5, left: x + 9 },
      { anchor: "end", x: x - 9, y: y + 3.5, left: x - 9 - width },
      { anchor: "middle", x, y: y - 10, left: x - width / 2 },
      { anchor: "middle", x, y: y + 18, left: x - width / 2 },
      { anchor: "start", x: x + 7, y: y - 9, left: x + 7 },
      { anchor: "start", x: x + 7, y: y + 17, left: x + 7 },
      { anchor: "end", x: x - 7, y: y - 9, left: x - 7 - width },
      { anchor: "end", x: x - 7, y: y + 17, left: x - 7 - width },
    ];
    for (const place of places) {
      const box = { x: place.left, y: place.y - 9, width, height };
      const isInside =
        box.x >= this.limits.left &&
        box.x + width <= this.limits.right + 4 &&
        box.y >= this.limits.top - 8 &&
        box.y + height <= this.limits.bottom + 2;
      if (isInside && !this.taken.some(other => overlaps(box, other))) {
        this.taken.push(box);
        return { ...place, text };
      }
    }
    return isImportant && text.length > 14 ? this.place(x, y, clip(text, 14), false) : null;
  }
}

function overlaps(a, b) {
  return a.x < b.x + b.width && b.x < a.x + a.width && a.y < b.y + b.height && b.y < a.y + a.height;
}
