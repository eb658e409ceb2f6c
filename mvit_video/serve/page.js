"use strict";
const part = (id) => document.getElementById(id);
const POLL = 500;
let current = 0; // the newest upload; answers to older ones are ignored

fetch("/about").then((answer) => answer.json()).then((about) => {
  part("about").textContent =
    `${about.network}, ${about.classes} classes, computed in ${about.precision}. Videos of up to ${about.megabytes} MB and ${about.seconds} s.`;
});

const drop = part("drop");
part("file").addEventListener("change", (event) => send(event.target.files[0]));
for (const kind of ["dragenter", "dragover"]) drop.addEventListener(kind, (event) => { event.preventDefault(); drop.classList.add("over"); });
for (const kind of ["dragleave", "drop"]) drop.addEventListener(kind, () => drop.classList.remove("over"));
drop.addEventListener("drop", (event) => { event.preventDefault(); send(event.dataTransfer.files[0]); });
for (const kind of ["dragover", "drop"]) window.addEventListener(kind, (event) => event.preventDefault());

async function send(file) {
  if (!file) return;
  const mine = ++current;
  part("results").hidden = true;
  part("error").textContent = "";
  part("status").textContent = `Sending ${file.name} …`;
  try {
    const answer = await fetch("/jobs", { method: "POST", body: file, headers: { "X-File-Name": encodeURIComponent(file.name) } });
    const reply = await answer.json();
    if (!answer.ok) throw new Error(reply.error);
    await follow(reply.key, mine);
  } catch (reason) {
    if (mine === current) fail(reason instanceof TypeError ? "The server did not respond, or refused the file: is it too large?" : reason.message);
  }
  part("file").value = "";
}

async function follow(key, mine) {
  while (mine === current) {
    const answer = await fetch(`/jobs/${key}`);
    const job = await answer.json();
    if (!answer.ok) throw new Error(job.error);
    if (mine !== current) return;
    if (job.state === "failed") return fail(job.error);
    if (job.state === "done") return show(key, job);
    part("status").textContent = job.state === "working" ? `Working: ${job.step} …` : `Waiting, ${job.ahead} before this one …`;
    await new Promise((done) => setTimeout(done, POLL));
  }
}

function fail(text) {
  part("status").textContent = "";
  part("error").textContent = text;
}

function element(kind, text, attributes = {}) {
  const made = document.createElement(kind);
  made.textContent = text;
  return Object.assign(made, attributes);
}

function show(key, job) {
  const address = (name) => `/jobs/${key}/${name}`;
  const has = (name) => job.files.includes(name);
  part("status").textContent = "";
  part("name").textContent = job.name;
  part("labels").replaceChildren(...job.labels.map(({ label, score }) => {
    const row = element("li", "");
    row.append(element("span", label), element("b", score.toFixed(3)), element("meter", "", { min: 0, max: 1, value: score }));
    return row;
  }));
  part("timeline").hidden = !has("timeline.png");
  if (has("timeline.png")) part("timeline-picture").src = address("timeline.png");
  part("annotated").parentElement.hidden = !has("annotated.mp4");
  if (has("annotated.mp4")) part("annotated").src = address("annotated.mp4");
  part("heat").hidden = !has("explain.png");
  if (has("explain.png")) part("heat-picture").src = address("explain.png");
  if (has("explain.mp4")) part("heat-video").src = address("explain.mp4");
  part("downloads").replaceChildren(...["timeline.csv", "timeline.srt", "annotated.mp4", "explain.mp4"].filter(has)
    .map((name) => element("a", name, { href: address(name), download: name })));
  part("notes").replaceChildren(...job.notes.map((note) => element("li", note)));
  part("results").hidden = false;
}
