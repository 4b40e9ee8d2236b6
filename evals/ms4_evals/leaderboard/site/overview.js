// The first page: charts of all tasks, the table of all models, and what others published, apart.

const PARTS = [
  ["total", "thinking + answer"],
  ["thinking", "thinking"],
  ["answer", "answer"],
];
const UNITS = [
  ["chars", "characters"],
  ["tokens", "tokens"],
];
const MODE_CHOICES = [
  ["", "both modes"],
  ["none", "none"],
  ["high", "high"],
];

function showOverview(main, query) {
  const state = {
    text: query.get("q") || "",
    task: query.get("task") || "",
    mode: query.get("mode") || "",
    part: choice(PARTS, query.get("part")),
    unit: choice(UNITS, query.get("unit")),
    sort: query.get("sort") || "",
  };
  const charts = h("div", { class: "charts" });
  const tables = h("div");
  const status = h("p", { class: "status", role: "status", "aria-live": "polite" });
  let table = null;

  function changed(rebuild) {
    if (rebuild) drawTable();
    filterRows();
    drawCharts();
    keepAddress(
      [],
      new Map(
        Object.entries({
          ...state,
          q: state.text,
          text: "",
          part: state.part === "total" ? "" : state.part,
          unit: state.unit === "chars" ? "" : state.unit,
        }),
      ),
    );
  }

  const boards = () => SITE.boards.filter(board => !state.task || board.id === state.task);
  const columnsOf = board =>
    board.columns.map((column, index) => ({ ...column, index })).filter(column => !state.mode || column.mode === state.mode);
  const isShown = model => words(state.text).every(word => model.label.toLowerCase().includes(word));

  function drawCharts() {
    replace(
      charts,
      boards().map(board =>
        h(
          "figure",
          { class: "chart-box" },
          h("figcaption", null, h("a", { href: makeAddress(["task", board.id]) }, board.title)),
          boardChart(board, { part: state.part, unit: state.unit }, { mode: state.mode, isShown }),
        ),
      ),
    );
  }

  function drawTable() {
    const columns = [{ label: "model", value: model => model.label, show: modelName, class: "name" }];
    const groups = [{ label: "", span: 1 }];
    for (const board of boards()) {
      const shown = columnsOf(board);
      if (!shown.length) continue;
      const hasDifference = !state.mode && board.rows.some(row => row.difference);
      shown.forEach((column, position) =>
        columns.push({
          label: column.heading,
          title: samplingText(column.sampling),
          number: true,
          first: position === 0,
          key: `${board.id}.${column.id}`,
          value: model => rowOf(board, model)?.cells[column.index]?.score?.[0] ?? null,
          show: model => overviewCell(rowOf(board, model)?.cells[column.index], state),
        }),
      );
      if (hasDifference)
        columns.push({
          label: "high \u2212 none",
          title: "paired by problem, in points, with its interval",
          number: true,
          key: `${board.id}.difference`,
          value: model => rowOf(board, model)?.difference?.[0] ?? null,
          show: model => differenceNodes(rowOf(board, model)?.difference),
        });
      groups.push({
        label: [
          h("a", { href: makeAddress(["task", board.id]) }, board.title),
          h("span", { class: "facts" }, plural(board.problems, "problem")),
        ],
        span: shown.length + (hasDifference ? 1 : 0),
        class: "first",
      });
    }
    const [key, direction] = state.sort.split("~");
    const index = columns.findIndex(column => (column.key || "model") === key);
    table = sortableTable({
      columns,
      groups,
      rows: SITE.models.filter(model => boards().some(board => rowOf(board, model))),
      caption: "Measured scores in percent, with 95 % intervals clustered by problem",
      sort: state.sort && index >= 0 ? { index, descending: direction === "down" } : null,
      onsort: sort => {
        state.sort = `${columns[sort.index].key || "model"}~${sort.descending ? "down" : "up"}`;
        changed(false);
      },
    });
    replace(tables, table.element);
  }

  function filterRows() {
    let shown = 0;
    for (const cell of table.cells) {
      cell.element.hidden = !isShown(cell.row);
      shown += cell.element.hidden ? 0 : 1;
    }
    status.textContent = shown ? `${plural(shown, "model")} of ${count(table.cells.length)}` : "No model has this in its name.";
  }

  const search = h("input", {
    type: "search",
    id: "search",
    placeholder: "model",
    value: state.text,
    autocomplete: "off",
    spellcheck: "false",
    oninput: event => {
      state.text = event.target.value;
      changed(false);
    },
  });
  const taskChoices = [["", "all tasks"], ...SITE.boards.map(board => [board.id, board.title])];
  replace(
    main,
    h("div", { class: "intro" }, h("h1", { tabindex: "-1" }, SITE.title), h("p", null, introduction())),
    h(
      "form",
      { class: "filters", onsubmit: event => event.preventDefault() },
      field("Model", search),
      field(
        "Task",
        select(taskChoices, state.task, value => {
          state.task = value;
          state.sort = "";
          changed(true);
        }),
      ),
      segmented("Mode", MODE_CHOICES, state.mode, value => {
        state.mode = value;
        changed(true);
      }),
      segmented("Length of", PARTS, state.part, value => {
        state.part = value;
        changed(true);
      }),
      segmented("in", UNITS, state.unit, value => {
        state.unit = value;
        changed(true);
      }),
    ),
    h("section", { "aria-label": "Charts" }, h("h2", null, "Score and length"), chartLegend(), charts),
    h("section", { "aria-label": "Table" }, h("h2", null, "Scores"), status, tables, h("p", { class: "facts" }, tableNote())),
    publishedSection(SITE.published, false),
  );
  drawTable();
  filterRows();
  drawCharts();
}

function introduction() {
  const problems = SITE.boards.reduce((sum, board) => sum + board.problems, 0);
  return (
    `${plural(SITE.models.length, "model")} on ${plural(SITE.boards.length, "task")} with ${plural(problems, "problem")}, ` +
    `${plural(SITE.samples, "sample")}. Scores stand in one column only where data, prompts, grader and sampling are the same; ` +
    "the name of a task leads to all of these and to every sample."
  );
}

function tableNote() {
  return (
    `Below each score: its interval, and the mean length per sample. Tokens are counted with ${SITE.tokenizer} for all models. ` +
    "A column's heading says its sampling when pointed at. A number without score (12 of 60) is an evaluation that is not finished, " +
    "which has no score, because what comes first is short."
  );
}

function choice(choices, value) {
  return choices.some(([name]) => name === value) ? value : choices[0][0];
}

function words(text) {
  return text.toLowerCase().split(/\s+/).filter(Boolean);
}

function rowOf(board, model) {
  return board.rows.find(row => row.model === model.index);
}

function modelName(model) {
  return [h("span", { class: `chip c${model.color}`, "aria-hidden": "true" }), h("span", { class: "label-text" }, model.label)];
}

function overviewCell(cell, size) {
  if (!cell) return h("span", { class: "absent" }, "\u2013");
  return [
    cell.score ? scoreNodes(cell.score) : withoutScore(cell),
    h("span", { class: "below" }, lengthText(cell, size)),
    badges(cell.marks),
  ];
}

function lengthText(cell, { part, unit }) {
  const mean = name => cell.lengths[`${name}_${unit}`]?.[0] ?? null;
  const name = unit === "chars" ? "chars" : "tokens";
  return part === "total" ? `${length(mean("thinking"))} + ${length(mean("answer"))} ${name}` : `${length(mean(part))} ${name}`;
}

function differenceNodes(difference) {
  if (!difference) return h("span", { class: "absent" }, "\u2013");
  const [value, low, high] = difference.map(share => 100 * share);
  return [h("span", { class: "score" }, signed(value)), h("span", { class: "below" }, `[${signed(low)}, ${signed(high)}]`)];
}

function samplingText(sampling) {
  return Object.entries(sampling)
    .map(([name, value]) => `${name.replaceAll("_", " ")} ${count3(value)}`)
    .join(", ");
}

function count3(value) {
  return typeof value === "number" && Number.isInteger(value) ? count(value) : String(value);
}

/** The chart of a board as it stands in the overview and on the board's own page. */
function boardChart(board, size, { mode = "", isShown = () => true, wide = false } = {}) {
  const points = [];
  for (const row of board.rows) {
    const model = SITE.models[row.model];
    if (!isShown(model)) continue;
    board.columns.forEach((column, index) => {
      const cell = row.cells[index];
      const lengths = cell?.lengths[`${size.part}_${size.unit}`];
      if (!cell?.score || !lengths || (mode && column.mode !== mode)) return;
      points.push({
        label: model.label,
        mode: column.mode,
        color: model.color,
        score: cell.score,
        length: lengths,
        group: row.model,
        href: makeAddress(
          ["task", board.id, "samples"],
          new Map([
            ["model", model.key],
            ["mode", column.mode],
          ]),
        ),
      });
    });
  }
  const published = board.published.map(index => SITE.published[index]).filter(item => !mode || item.mode === mode);
  return scatter({ points, published, size, title: board.title, wide });
}

function chartLegend() {
  const sample = (mark, text) =>
    h("span", { class: "legend-item" }, s("svg", { viewBox: "0 0 16 16", "aria-hidden": "true" }, mark), text);
  return h(
    "p",
    { class: "legend" },
    sample(s("circle", { class: "ink", cx: 8, cy: 8, r: 5 }), "high: thinks first"),
    sample(s("rect", { class: "ink", x: 3.5, y: 3.5, width: 9, height: 9, rx: 1 }), "none: answers directly"),
    sample(s("path", { class: "front", d: "M1 12 H6 V5 H15" }), "Pareto front of what was measured"),
    SITE.published.length
      ? sample(s("path", { class: "hollow", d: "M8 2 L14 8 L8 14 L2 8 Z" }), "published elsewhere, not measured here")
      : null,
    h("span", { class: "legend-item" }, "bars: 95 % intervals"),
  );
}

function publishedSection(items, isOpen) {
  if (!items.length) return null;
  const table = sortableTable({
    columns: [
      { label: "model", value: item => item.model },
      { label: "mode", value: item => item.mode },
      { label: "task", value: item => item.family },
      { label: "score %", number: true, value: item => item.score, show: item => item.score.toFixed(1) },
      {
        label: "characters",
        number: true,
        value: item => item.characters,
        show: item => (item.characters === null ? "not published" : count(item.characters)),
      },
      { label: "source", value: item => item.source, class: "prose" },
      { label: "before comparing", value: item => item.note, class: "prose" },
    ],
    rows: items,
    caption: "Published by others, not measured here",
  });
  return h(
    "section",
    { "aria-label": "Published scores" },
    h("h2", null, "Published by others"),
    h(
      "p",
      null,
      "Not measured here: prompts, samples and windows differ from those above and from each other, " +
        "so these numbers are in no column and on no front.",
    ),
    h("details", { open: isOpen }, h("summary", null, `${plural(items.length, "number")} with their sources`), table.element),
  );
}

// Controls

function field(label, control) {
  return h("label", { class: "field" }, h("span", { class: "field-label" }, label), control);
}

function select(choices, value, onchange) {
  return h(
    "select",
    { onchange: event => onchange(event.target.value) },
    choices.map(([name, text]) => h("option", { value: name, selected: name === value }, text)),
  );
}

let groupNumber = 0;

/** Radio buttons that look like one button with parts. */
function segmented(label, choices, value, onchange) {
  const group = `group-${groupNumber++}`;
  return h(
    "fieldset",
    { class: "field segmented" },
    h("legend", { class: "field-label" }, label),
    h(
      "div",
      { class: "segments" },
      choices.map(([name, text]) =>
        h(
          "label",
          null,
          h("input", { type: "radio", name: group, value: name, checked: name === value, onchange: () => onchange(name) }),
          h("span", null, text),
        ),
      ),
    ),
  );
}
