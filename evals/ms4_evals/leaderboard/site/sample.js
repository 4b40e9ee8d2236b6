// One sample: its verdict and why, question, thinking, answer, and what the grader noted.

const SHOWN_CHARACTERS = 40000; // longer texts are shown in part until asked for

let newest = 0;

async function showSample(pane, browser, row) {
  const mine = ++newest;
  const { board, details } = browser;
  const problem = details.problems;
  const id = problem.ids[row.problem];
  pane.setAttribute("aria-busy", "true");
  let texts, question;
  try {
    [texts, question] = await Promise.all([
      loadTexts(row.entry.details.samples.stem, row.first, row.last, row.item),
      loadTexts(problem.stem, problem.first[row.problem], problem.last[row.problem], row.problem),
    ]);
  } catch (error) {
    if (mine === newest) replace(pane, h("p", { class: "failure", role: "alert" }, error.message));
    return;
  }
  if (mine !== newest) return; // another sample was opened meanwhile
  const verdict = VERDICTS[row.verdict];
  const notes = texts.details ? JSON.parse(texts.details) : null;
  const facts = texts.facts ? JSON.parse(texts.facts) : {};
  replace(
    pane,
    h(
      "header",
      { class: "sample-head" },
      h("h2", null, id, h("span", { class: "option-number" }, ` #${row.sample + 1}`)),
      h(
        "p",
        null,
        verdictBadge(verdict),
        " ",
        modelName(row.entry.model),
        h("span", { class: "facts" }, `, mode ${row.entry.column.heading}, ${samplingText(row.entry.column.sampling)}`),
      ),
      h(
        "div",
        { class: "sample-buttons" },
        h("button", { type: "button", class: "button", onclick: () => browser.step(-1), disabled: browser.active === 0 }, "previous"),
        h(
          "button",
          { type: "button", class: "button", onclick: () => browser.step(1), disabled: browser.active === browser.shown.length - 1 },
          "next",
        ),
        h(
          "a",
          { class: "button", href: makeAddress(["task", board.id, "samples"], new Map([["q", id]])) },
          "all samples of this problem",
        ),
      ),
    ),
    verdictList(row, texts, question, facts, board, problem.facts[row.problem]),
    notes && notesSection(notes),
    texts.error ? textSection("error", texts.error, true) : null,
    textSection("question", question.question, false),
    question.prompt ? textSection("prompt, as it was asked", question.prompt, false) : null,
    row.thinking
      ? textSection("thinking", texts.thinking, true, `${count(row.thinking)} characters, ${count(row.thinkingTokens)} tokens`)
      : null,
    textSection("final answer", texts.answer, true, `${count(row.answer)} characters, ${count(row.answerTokens)} tokens`),
    texts.extracted && texts.extracted.length > 60 ? textSection("read from the answer", texts.extracted, false) : null,
  );
  pane.scrollTop = 0;
  pane.removeAttribute("aria-busy");
}

function verdictList(row, texts, question, facts, board, problemFacts) {
  const isShort = texts.extracted === undefined || texts.extracted.length <= 60;
  const gold = question.gold || "";
  const isDigest = /^[0-9a-f]{64}$/.test(gold);
  const pairs = [
    isDigest ? ["tests, by their digest", gold.slice(0, 12)] : ["right answer", clip(gold, 300)],
    [
      "read from the answer",
      texts.extracted === undefined ? "nothing" : isShort ? texts.extracted : `${count(texts.extracted.length)} characters, below`,
    ],
    [
      "second grader",
      row.opinion < 0
        ? null
        : `${OPINIONS[row.opinion]}${board.second ? ` (${board.second})` : ""}${isDisputed(row) ? ", disputed" : ""}`,
    ],
    ["ended by", { stop: "itself", length: "the token limit" }[FINISHES[row.finish]] || null],
    ["thinking", facts.thinking_is_open ? "never closed" : null],
    ...Object.entries(problemFacts).map(([name, value]) => [name.replaceAll("_", " "), String(value)]),
    ["error class", facts.error_class ?? null],
  ];
  const request = REQUEST_FACTS.map(name => [name.replaceAll("_", " "), facts[name] === undefined ? null : factText(facts[name])]);
  return [factList(pairs), h("details", null, h("summary", { class: "facts" }, "request"), factList(request))];
}

const REQUEST_FACTS = [
  "prompt_tokens",
  "usage_tokens",
  "usage_thinking_tokens",
  "seconds",
  "first_token_seconds",
  "cost",
  "attempts",
  "endpoint",
  "seed",
  "prompt_hash",
];

function factText(value) {
  if (typeof value !== "number") return String(value);
  return Number.isInteger(value) ? count(value) : String(Number(value.toPrecision(3)));
}

function factList(pairs) {
  return h(
    "dl",
    { class: "sample-facts" },
    pairs
      .filter(([, value]) => value !== null && value !== "")
      .map(([name, value]) => h("div", null, h("dt", null, name), h("dd", null, value))),
  );
}

function textSection(title, text, isOpen, facts) {
  const body = h("pre", { tabindex: "0", "aria-label": title });
  const more = h("p", { class: "more" });
  const letters = text || "";
  const show = all => {
    body.textContent = all || letters.length <= SHOWN_CHARACTERS ? letters : letters.slice(0, SHOWN_CHARACTERS);
    replace(
      more,
      body.textContent.length < letters.length
        ? [
            `${count(SHOWN_CHARACTERS)} of ${count(letters.length)} characters. `,
            h("button", { type: "button", class: "button", onclick: () => show(true) }, "Show all"),
          ]
        : null,
    );
  };
  show(false);
  if (!letters) replace(body, h("span", { class: "absent" }, "empty"));
  return h(
    "details",
    { class: "text", open: isOpen || letters.length < 1500 },
    h("summary", null, title, facts ? h("span", { class: "facts" }, ` ${facts}`) : null),
    body,
    more,
  );
}

/** What the grader noted: failing test, judge's reply ... Short values in a list, long ones as texts. */
function notesSection(notes) {
  const short = [],
    long = [];
  for (const [name, value] of Object.entries(notes)) {
    const text = typeof value === "string" ? value : JSON.stringify(value, null, 1);
    (text.length > 80 || text.includes("\n") ? long : short).push([name.replaceAll("_", " "), text]);
  }
  return h(
    "section",
    { class: "notes", "aria-label": "What the grader noted" },
    h("h3", null, "What the grader noted"),
    short.length ? factList(short) : null,
    long.map(([name, text]) => textSection(name, text, true)),
  );
}
