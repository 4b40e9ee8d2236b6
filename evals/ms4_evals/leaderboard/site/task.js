// The page of one task: chart, scores, lengths, what went wrong, breakdowns, problems, and every identity in full.

const LENGTH_ROWS = [
  ["thinking_chars", "thinking", "characters"],
  ["answer_chars", "answer", "characters"],
  ["total_chars", "both", "characters"],
  ["thinking_tokens", "thinking", "tokens"],
  ["answer_tokens", "answer", "tokens"],
  ["total_tokens", "both", "tokens"],
  ["usage_tokens", "generated", "tokens, as the server counts"],
  ["prompt_tokens", "prompt", "tokens, as the server counts"],
];

async function showTask(main, board, query) {
  const state = { part: choice(PARTS, query.get("part")), unit: choice(UNITS, query.get("unit")) };
  const chart = h("figure", { class: "chart-box wide" });
  const contents = h(
    "nav",
    { class: "contents", "aria-label": "On this page" },
    h("a", { class: "button strong", href: makeAddress(["task", board.id, "samples"]) }, "Every sample"),
  );
  const rest = h("div", null, h("p", { class: "status" }, "Loading \u2026"));
  const draw = () => {
    replace(chart, boardChart(board, state, { wide: true }));
    keepAddress(
      ["task", board.id],
      new Map([
        ["part", state.part === "total" ? "" : state.part],
        ["unit", state.unit === "chars" ? "" : state.unit],
      ]),
    );
  };
  replace(
    main,
    h(
      "nav",
      { class: "crumbs", "aria-label": "Breadcrumbs" },
      h("a", { href: "#/" }, SITE.title),
      " / ",
      h("span", { "aria-current": "page" }, board.title),
    ),
    h("h1", { tabindex: "-1" }, board.title),
    h(
      "p",
      { class: "facts" },
      `${plural(board.problems, "problem")}, grader ${board.grader}`,
      board.second ? `, second grader ${board.second}` : "",
      ". ",
      badges(board.marks),
    ),
    contents,
    h(
      "section",
      { "aria-label": "Chart" },
      h("h2", null, "Score and length"),
      h(
        "form",
        { class: "filters" },
        segmented("Length of", PARTS, state.part, value => {
          state.part = value;
          draw();
        }),
        segmented("in", UNITS, state.unit, value => {
          state.unit = value;
          draw();
        }),
      ),
      chartLegend(),
      chart,
    ),
    rest,
  );
  draw();
  const details = await load(board.file);
  const entries = cellEntries(board, details);
  replace(
    rest,
    scoreSection(board, entries),
    lengthSection(entries),
    countSection(entries),
    secondSection(board, entries),
    breakdownSections(entries),
    problemSection(board, details, entries),
    costSection(entries),
    publishedSection(
      board.published.map(index => SITE.published[index]),
      true,
    ),
    identitySection(board, details),
  );
  const sections = [...main.querySelectorAll("section > h2")];
  contents.append(
    ...sections.map(title =>
      h(
        "button",
        {
          type: "button",
          class: "button",
          onclick: () => {
            title.tabIndex = -1;
            title.focus({ preventScroll: true });
            title.scrollIntoView({ block: "start" });
          },
        },
        title.textContent,
      ),
    ),
  );
}

/** Every cell with its model, its column, what the overview holds and the details. */
function cellEntries(board, details) {
  return board.rows
    .flatMap((row, rowIndex) =>
      board.columns.map((column, index) => ({
        model: SITE.models[row.model],
        column,
        cell: row.cells[index],
        row,
        rowIndex,
        index,
        details: details.cells[`${rowIndex}-${index}`],
      })),
    )
    .filter(entry => entry.cell);
}

const entryColumns = () => [
  { label: "model", value: entry => entry.model.label, show: entry => modelName(entry.model), class: "name" },
  { label: "mode", value: entry => entry.column.heading },
];

function numberColumn(label, value, show, more) {
  return { label, number: true, value, show: show ? entry => show(value(entry), entry) : entry => count(value(entry)), ...more };
}

function section(title, ...content) {
  return h("section", { "aria-label": title }, h("h2", null, title), content);
}

function scoreSection(board, entries) {
  const ks = [...new Set(entries.flatMap(entry => Object.keys(entry.details.pass_at).map(Number)))]
    .sort((a, b) => a - b)
    .filter(k => k > 1);
  const votes = ks.filter(k => entries.some(entry => entry.details.cons_at[k] !== undefined));
  const error = name =>
    numberColumn(
      name === "standard_error" ? "SE, problems" : "SE, runs",
      entry => entry.details.score?.[name] ?? null,
      value => percent(value),
    );
  const columns = [
    ...entryColumns(),
    {
      label: "score %",
      number: true,
      value: entry => entry.cell.score?.[0] ?? null,
      show: entry => [entry.cell.score ? scoreNodes(entry.cell.score) : withoutScore(entry.cell), badges(entry.cell.marks)],
    },
    error("standard_error"),
    error("standard_error_runs"),
    ...ks.map(k =>
      numberColumn(
        `pass@${k} %`,
        entry => entry.details.pass_at[k] ?? null,
        value => percent(value),
      ),
    ),
    ...votes.map(k =>
      numberColumn(
        `cons@${k} %`,
        entry => entry.details.cons_at[k] ?? null,
        value => percent(value),
      ),
    ),
    numberColumn("samples each", entry => entry.details.samples_per_problem),
    numberColumn(
      "graded",
      entry => entry.cell.graded,
      (value, entry) => `${count(value)} of ${count(entry.cell.planned)}`,
    ),
    { label: "look at", value: () => null, show: entry => h("a", { href: samplesAddress(board, entry) }, "samples") },
  ];
  const differences = board.rows.filter(row => row.difference);
  return section(
    "Scores",
    sortableTable({ columns, rows: entries, caption: "Scores and repeats" }).element,
    differences.length ? differenceTable(differences) : null,
  );
}

function differenceTable(rows) {
  const columns = [
    { label: "model", value: row => SITE.models[row.model].label, show: row => modelName(SITE.models[row.model]), class: "name" },
    { label: "high \u2212 none, points", number: true, value: row => row.difference[0], show: row => differenceNodes(row.difference) },
    ...(rows.some(row => row.tests)
      ? [
          numberColumn("only high solves", row => row.tests?.[0] ?? null),
          numberColumn("only none solves", row => row.tests?.[1] ?? null),
          numberColumn("McNemar, exact p", row => row.tests?.[2] ?? null, pValue, { title: "of the first sample of every problem" }),
          numberColumn("sign flips, exact p", row => row.tests?.[3] ?? null, pValue, {
            title: "of the differences of all problems, every sample counted",
          }),
        ]
      : []),
  ];
  return sortableTable({ columns, rows, caption: "Both modes compared, paired by problem" }).element;
}

function pValue(value) {
  if (value === null) return "\u2013";
  return value < 0.0001 ? value.toExponential(1) : value.toFixed(4);
}

function samplesAddress(board, entry, more) {
  return makeAddress(
    ["task", board.id, "samples"],
    new Map([["model", entry.model.key], ["mode", entry.column.mode], ...Object.entries(more || {})]),
  );
}

function lengthSection(entries) {
  const known = LENGTH_ROWS.filter(([name]) => entries.some(entry => entry.details.lengths[name]?.all));
  if (!known.length) return null;
  const holder = h("div");
  const draw = wanted => {
    const of = (entry, group, name) => entry.details.lengths[wanted]?.[group]?.[name] ?? null;
    const columns = [
      ...entryColumns(),
      ...[
        ["mean", "mean"],
        ["median", "median"],
        ["p90", "90th percentile"],
        ["maximum", "longest"],
      ].map(([name, label]) => numberColumn(label, entry => of(entry, "all", name))),
      {
        label: "interval of the mean",
        value: () => null,
        show: entry =>
          of(entry, "all", "mean") === null
            ? "\u2013"
            : `${count(of(entry, "all", "mean_low"))} to ${count(of(entry, "all", "mean_high"))}`,
        class: "number",
      },
      ...[
        ["correct", "mean, correct"],
        ["not_correct", "mean, not correct"],
      ].map(([group, label]) => numberColumn(label, entry => of(entry, group, "mean"))),
      numberColumn("samples", entry => of(entry, "all", "count")),
    ];
    replace(holder, sortableTable({ columns, rows: entries, caption: "Lengths per sample" }).element);
  };
  const choices = known.map(([name, what, unit]) => [name, `${what}, ${unit}`]);
  const first = known.some(([name]) => name === "total_chars") ? "total_chars" : known[0][0];
  draw(first);
  return section(
    "Lengths",
    h("p", { class: "facts" }, `Tokens without another remark are counted with ${SITE.tokenizer} for all models.`),
    h("form", { class: "filters" }, field("Length of", select(choices, first, draw))),
    holder,
  );
}

function countSection(entries) {
  const verdicts = [
    ["correct", "correct"],
    ["wrong", "wrong"],
    ["no-answer", "no answer"],
    ["truncated", "cut off"],
    ["error", "errors"],
  ];
  const classes = [...new Set(entries.flatMap(entry => Object.keys(entry.details.error_classes || {})))].sort();
  const failures = [...new Set(entries.flatMap(entry => Object.keys(entry.details.failure_classes || {})))].sort();
  const columns = [
    ...entryColumns(),
    ...verdicts.map(([verdict, label]) => numberColumn(label, entry => entry.details.verdicts[verdict] ?? 0)),
    ...classes.map(name => numberColumn(`error: ${name}`, entry => entry.details.error_classes?.[name] ?? 0)),
    ...failures.map(name =>
      numberColumn(name, entry => entry.details.failure_classes?.[name] ?? 0, null, {
        title: "noted by the grader of samples that are not correct",
      }),
    ),
    numberColumn("missing", entry => entry.details.missing),
    numberColumn("ungraded", entry => entry.details.ungraded),
    numberColumn("at the token limit", entry => entry.details.at_token_limit, null, {
      title: "ended by the limit, whatever the verdict",
    }),
    numberColumn("thinking left open", entry => entry.details.open_thinking),
  ];
  return section("What became of the samples", sortableTable({ columns, rows: entries, caption: "Verdicts, errors and limits" }).element);
}
