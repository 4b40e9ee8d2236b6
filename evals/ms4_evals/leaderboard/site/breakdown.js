// The rest of a task's page: second grader, breakdowns, problems, speed and cost, and every identity in full.

function secondSection(board, entries) {
  const rows = entries.filter(entry => Object.values(entry.details.second_opinion).some(Boolean));
  if (!rows.length) return null;
  const columns = [
    ...entryColumns(),
    ...(rows.some(entry => entry.details.second_grader)
      ? [
          {
            label: "second grader's score %",
            number: true,
            value: entry => entry.details.second_grader?.score?.value ?? null,
            show: entry => pairNodes(entry.details.second_grader?.score),
          },
          {
            label: "first grader's, same samples",
            number: true,
            value: entry => entry.details.second_grader?.first_score?.value ?? null,
            show: entry => pairNodes(entry.details.second_grader?.first_score),
          },
          numberColumn(
            "kappa",
            entry => entry.details.second_grader?.kappa ?? null,
            value => (value === null ? "\u2013" : value.toFixed(3)),
          ),
        ]
      : []),
    ...["agree", "disagree", "failed"].map(name =>
      numberColumn(
        { agree: "agree", disagree: "disagree", failed: "second failed" }[name],
        entry => entry.details.second_opinion[name] ?? 0,
      ),
    ),
    {
      label: "look at",
      value: () => null,
      show: entry =>
        entry.details.second_opinion.disagree
          ? h("a", { href: samplesAddress(board, entry, { verdict: "disputed" }) }, "disputed samples")
          : null,
    },
  ];
  return section(
    "Second grader",
    h("p", null, `${board.second || "The second grader"} looks at the same answers and never changes a verdict.`),
    sortableTable({ columns, rows, caption: "Second grader beside the first" }).element,
  );
}

function pairNodes(score) {
  return score ? scoreNodes([score.value, score.low, score.high]) : "\u2013";
}

const MOST_PROBLEMS = 40; // until all are asked for
const ABSENT = "(none)"; // problems without the fact
const BREAKDOWN_TITLES = { output_tokens: "length of the output, tokens", errata: "errata" };

function breakdownSections(entries) {
  const names = [...new Set(entries.flatMap(entry => Object.keys(entry.details.breakdowns || {})))];
  const withoutErrata = entries.filter(entry => entry.details.without_errata);
  if (!names.length && !withoutErrata.length) return null;
  return section(
    "Breakdowns",
    withoutErrata.length
      ? sortableTable({
          caption: "Without problems that have errata",
          columns: [
            ...entryColumns(),
            {
              label: "all problems",
              number: true,
              value: entry => entry.cell.score?.[0] ?? null,
              show: entry => (entry.cell.score ? scoreNodes(entry.cell.score) : withoutScore(entry.cell)),
            },
            {
              label: "without errata",
              number: true,
              value: entry => entry.details.without_errata.value,
              show: entry => pairNodes(entry.details.without_errata),
            },
          ],
          rows: withoutErrata,
        }).element
      : null,
    names.map(name =>
      breakdownTable(
        name,
        entries.filter(entry => entry.details.breakdowns?.[name]),
      ),
    ),
  );
}

function breakdownTable(name, entries) {
  const values = inOrder([...new Set(entries.flatMap(entry => entry.details.breakdowns[name].map(slice => slice.value)))]);
  const sliceOf = (entry, value) => entry.details.breakdowns[name].find(slice => slice.value === value);
  const title = `By ${BREAKDOWN_TITLES[name] || name.replaceAll("_", " ")}`;
  const columns = [
    { label: (BREAKDOWN_TITLES[name] || name).replaceAll("_", " "), value: row => row.order, show: row => row.value, class: "name" },
    ...entries.map(entry => ({
      label: `${clip(entry.model.label, 24)}, ${entry.column.heading}`,
      number: true,
      first: true,
      value: row => sliceOf(entry, row.value)?.score.value ?? null,
      show: row => sliceNodes(sliceOf(entry, row.value)),
    })),
  ];
  return h(
    "details",
    { class: "breakdown", open: true },
    h("summary", null, title),
    sortableTable({ columns, rows: values.map((value, order) => ({ value, order })), caption: title }).element,
  );
}

/** Bands and numbers by size, months by time, words as they come; rows may lack some, so that joining them loses the order. */
function inOrder(values) {
  const size = value => (/^[\d,]+( to |$)/.test(value) ? Number(value.split(" ")[0].replaceAll(",", "")) : NaN);
  const named = values.filter(value => value !== ABSENT);
  if (named.every(value => !Number.isNaN(size(value)))) named.sort((a, b) => size(a) - size(b));
  else if (named.every(value => /^\d{4}-\d\d/.test(value))) named.sort();
  return values.includes(ABSENT) ? [...named, ABSENT] : named;
}

function sliceNodes(slice) {
  if (!slice) return h("span", { class: "absent" }, "\u2013");
  const facts =
    `${plural(slice.problems, "problem")}, ${plural(slice.samples, "sample")}, ${count(slice.correct)} correct; ` +
    `${count(slice.mean_chars)} characters, ${count(slice.mean_tokens)} tokens on average`;
  return [
    scoreNodes([slice.score.value, slice.score.low, slice.score.high]),
    h("span", { class: "below", title: facts }, `n ${count(slice.samples)}, ${length(slice.mean_chars)} chars`),
  ];
}

function problemSection(board, details, entries) {
  const { ids, facts } = details.problems;
  const names = [...new Set(facts.flatMap(item => Object.keys(item)))];
  const rows = ids.map((id, index) => ({ id, index, facts: facts[index] }));
  const holder = h("div");
  const draw = shown =>
    replace(
      holder,
      sortableTable({
        caption: "Share of correct samples of each problem, percent",
        columns: [
          {
            label: "problem",
            value: row => row.id,
            show: row => h("a", { href: makeAddress(["task", board.id, "samples"], new Map([["q", row.id]])) }, row.id),
            class: "name",
          },
          ...names.map(name => ({
            label: name.replaceAll("_", " "),
            value: row => row.facts[name] ?? null,
            show: row => row.facts[name] ?? "",
          })),
          ...entries.map(entry =>
            numberColumn(
              `${clip(entry.model.label, 18)}, ${entry.column.heading}`,
              row => entry.details.problem_means[row.index],
              value => percent(value, 0),
            ),
          ),
        ],
        rows: rows.slice(0, shown),
      }).element,
      shown < rows.length
        ? h("button", { type: "button", class: "button", onclick: () => draw(rows.length) }, `Show all ${count(rows.length)} problems`)
        : null,
    );
  draw(Math.min(rows.length, MOST_PROBLEMS));
  return section("Problems", holder);
}

function costSection(entries) {
  const speed = [
    ["seconds_median", "median seconds"],
    ["seconds_p90", "90th percentile, seconds"],
    ["first_token_median", "to the first token, seconds"],
    ["tokens_per_second_median", "tokens per second"],
    ["retried_share", "asked more than once, %"],
  ];
  const shown = speed.filter(([name]) => entries.some(entry => entry.details.speed?.[name] !== undefined));
  const hasCost = entries.some(entry => entry.details.cost);
  if (!shown.length && !hasCost) return null;
  const money = value => (value === null ? "\u2013" : value.toPrecision(3));
  return section(
    "Speed and cost",
    h("p", { class: "facts" }, "Speed depends on the machine and on what else it did; it is not part of any identity."),
    sortableTable({
      caption: "Speed and cost",
      columns: [
        ...entryColumns(),
        ...shown.map(([name, label]) =>
          numberColumn(
            label,
            entry => entry.details.speed?.[name] ?? null,
            value => (value === null ? "\u2013" : name === "retried_share" ? percent(value) : String(Number(value.toPrecision(3)))),
          ),
        ),
        ...(hasCost
          ? [
              ["total", "cost"],
              ["per_sample", "per sample"],
              ["per_correct", "per correct answer"],
            ].map(([name, label]) => numberColumn(label, entry => entry.details.cost?.[name] ?? null, money))
          : []),
      ],
      rows: entries,
    }).element,
  );
}

function identitySection(board, details) {
  const list = pairs =>
    h(
      "dl",
      { class: "identity" },
      pairs
        .filter(([, value]) => value !== null && value !== undefined && value !== "")
        .map(([name, value]) => [
          h("dt", null, name),
          h("dd", null, typeof value === "object" ? h("pre", null, JSON.stringify(value, null, 1)) : h("code", null, String(value))),
        ]),
    );
  return section(
    "Identities in full",
    h(
      "p",
      null,
      "Two scores share this page only because all of this is the same for both; what differs stands under its column or its model.",
    ),
    list([
      ["task", board.task],
      ["data, prompts and grader (board)", details.board_id],
      ["data: problems and right answers", details.data_id],
      ["prompts", details.prompts_id],
      ["grader", board.grader],
      ["second grader", board.second],
    ]),
    board.columns.map((column, index) =>
      h(
        "details",
        null,
        h("summary", null, `Mode ${column.heading}: ${samplingText(column.sampling)}`),
        list([["column", details.columns[index]], ...Object.entries(column.sampling)]),
      ),
    ),
    details.models.map((model, index) =>
      h(
        "details",
        null,
        h("summary", null, SITE.models[board.rows[index].model].label),
        list([
          ["run", model.run_id],
          ["seed", model.seed],
          ["model", model.model],
          ...model.versions.map(versions => ["versions", versions]),
        ]),
      ),
    ),
  );
}
