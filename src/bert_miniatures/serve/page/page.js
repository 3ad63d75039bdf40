"use strict";

const at = (id) => document.getElementById(id);
let models = [];
let asking = false;

function make(tag, text, kind) {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (kind) node.className = kind;
  return node;
}

const model = () => models.find((one) => one.name === at("model").value) ?? models[0];

async function ask(path, body) {
  const headers = { "Content-Type": "application/json" };
  if (at("key").value) headers.Authorization = `Bearer ${at("key").value}`;
  let response;
  try {
    response = await fetch(path, body ? { method: "POST", headers, body: JSON.stringify(body) } : { headers });
  } catch {
    throw new Error("The server does not answer. Is it still running?");
  }
  if (response.status === 401) {
    at("key-row").hidden = false;
    at("key").focus();
    throw new Error("This server wants a key.");
  }
  let answer;
  try {
    answer = await response.json();
  } catch {
    throw new Error(`The server answered ${response.status} with something that is not JSON.`);
  }
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

async function begin() {
  const answer = await ask("models");
  models = answer.models;
  at("model").replaceChildren(...models.map((one) => make("option", one.name)));
  at("model-row").hidden = models.length < 2;
  describe();
}

function describe() {
  const { name, kind, labels, pair, pair_possible: possible, max_length: length } = model();
  const what = kind === "regression" ? "gives a number" : `knows ${labels.length} labels`;
  const how = kind === "multilabel" ? ", any number of which may fit" : "";
  at("about").textContent = `${name} ${what}${how}, and reads ${length} word pieces.`;
  at("pair-row").hidden = !possible;
  at("pair").required = pair;
  at("text-label").textContent = pair ? "First text" : "Text";
  at("pair-label").textContent = pair ? "Second text" : "Second text (may stay empty)";
}

function problem(text) {
  at("problem").hidden = !text;
  at("problem").textContent = text;
}

async function classify() {
  if (asking) return;
  asking = true;
  at("go").setAttribute("aria-disabled", "true");
  problem("");
  at("said").textContent = "";
  try {
    if (!models.length) await begin();
    const chosen = model();
    const text = at("text").value;
    const second = at("pair").value;
    const pair = chosen.pair || (chosen.pair_possible && second !== "");
    const start = performance.now();
    const inputs = pair ? { text, text_pair: second } : text;
    const answer = await ask(`models/${encodeURIComponent(chosen.name)}/explain`, { inputs });
    show(answer, chosen, pair ? [text, second] : [text], performance.now() - start);
  } catch (error) {
    at("result").hidden = true;
    problem(error.message);
  } finally {
    asking = false;
    at("go").removeAttribute("aria-disabled");
  }
}

function show(answer, chosen, texts, waited) {
  const shares = chosen.kind !== "regression";
  const number = (score) => (shares ? `${(100 * score).toFixed(1)} %` : score.toFixed(3));
  at("labels").replaceChildren(...answer.answers.map(({ label, score }) => {
    const row = make("li");
    const head = make("div", undefined, "head");
    head.append(make("span", label, "name"), make("span", number(score), "number"));
    row.append(head);
    if (shares) {
      const track = make("div", undefined, "track");
      const bar = make("span", undefined, "bar");
      track.setAttribute("aria-hidden", "true");
      bar.style.width = `${100 * score}%`;
      track.append(bar);
      row.append(track);
    }
    return row;
  }));
  const { answer: first, words } = answer.milliseconds;
  at("latency").textContent = `Answered in ${first.toFixed(1)} ms; the words below took ${words.toFixed(1)} ms more; `
    + `${waited.toFixed(0)} ms with the way here.`;
  showWords(answer, texts, shares);
  showPieces(answer, chosen);
  at("result").hidden = false;
  const best = answer.answers[0];
  at("said").textContent = `Answer: ${best.label}, ${number(best.score)}.`;
  at("result-title").focus({ preventScroll: true });
}

function showWords(answer, texts, shares) {
  const best = answer.answers[0].label;
  const most = Math.max(...answer.words.map((word) => Math.abs(word.effect)), shares ? 0.01 : 1e-9);
  const told = (effect) => {
    const size = Math.abs(shares ? 100 * effect : effect).toFixed(shares ? 1 : 3);
    const sign = Number(size) === 0 ? "" : effect > 0 ? "+" : "−";
    return `${sign}${size}${shares ? " points" : ""}`;
  };
  const method = at("method");
  method.replaceChildren(
    `By occlusion: each word is left out in turn. The effect is the score of “${best}” with the word, less the score `
    + "without it: ",
    make("span", "speaks for it", "key for"), " or ", make("span", "speaks against it", "key against"), ".",
  );
  if (answer.words_left_out) {
    method.append(` Only the first ${answer.words.length} words were tried; ${answer.words_left_out} were not.`);
  }
  at("words").replaceChildren(...texts.map((text, side) => {
    const letters = Array.from(text.toWellFormed ? text.toWellFormed() : text);
    const line = make("p", undefined, "shown");
    let done = 0;
    for (const word of answer.words.filter((one) => (one.of === "text_pair") === (side === 1))) {
      line.append(letters.slice(done, word.start).join(""));
      const mark = make("mark", letters.slice(word.start, word.end).join(""), word.effect >= 0 ? "for" : "against");
      mark.style.setProperty("--much", (Math.abs(word.effect) / most).toFixed(3));
      mark.title = told(word.effect);
      line.append(mark);
      done = word.end;
    }
    line.append(letters.slice(done).join(""));
    return line;
  }));
  const sorted = [...answer.words].sort((one, other) => Math.abs(other.effect) - Math.abs(one.effect));
  at("rows").replaceChildren(...sorted.map((word) => {
    const row = make("tr");
    row.append(make("td", word.text), make("td", told(word.effect)));
    return row;
  }));
  at("effects").hidden = !answer.words.length;
}

function showPieces(answer, chosen) {
  const count = answer.pieces.reduce((sum, pieces) => sum + pieces.length, 0);
  at("cut").textContent = answer.cut
    ? `Too long: the model saw the first ${count} pieces and nothing of the rest.`
    : `${count} pieces and ${answer.pieces.length + 1} marks of the model’s own; it reads ${chosen.max_length} at most.`;
  at("pieces").replaceChildren(...answer.pieces.map((pieces, side) => {
    const list = make("ol");
    list.setAttribute("aria-label", side ? "Pieces of the second text" : "Pieces of the text");
    list.append(...pieces.map((piece) => make("li", piece, piece === "[UNK]" ? "unknown" : "")));
    return list;
  }));
}

at("form").addEventListener("submit", (event) => {
  event.preventDefault();
  classify();
});
at("form").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) at("form").requestSubmit();
});
at("model").addEventListener("change", describe);
begin().catch((error) => problem(error.message));
