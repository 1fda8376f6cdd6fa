// Sends photographs that are chosen, dropped anywhere on the page or pasted: one after the other, and the next one when
// Python has read the one before, so that they stay in order and never many wait.
const PATIENCE = 60000; // milliseconds
let waiting = 0;
let turn = Promise.resolve();
let read = () => {};

function say() {
  const status = element.querySelector(".status");
  if (status) status.textContent = waiting ? `reading ${waiting} ${waiting === 1 ? "photograph" : "photographs"} …` : "";
}

async function send(file, first) {
  const sent = { name: file.name, ...(first && { first }) };
  if (file.size > props.most_bytes) {
    sent.why = props.too_large;
  } else {
    try {
      const name = encodeURIComponent(file.name.toWellFormed ? file.name.toWellFormed() : file.name);
      const options = { method: "POST", headers: { "X-Photograph": name }, body: file };
      const answer = await fetch(new URL("photographs", document.baseURI), options);
      sent[answer.ok ? "ticket" : "why"] = await answer.text();
    } catch {
      sent.why = "could not be sent";
    }
  }
  await new Promise((resolve) => {
    read = resolve;
    setTimeout(resolve, PATIENCE);
    trigger("upload", sent);
  });
  waiting -= 1;
  say();
}

function take(files) {
  [...files].forEach((file, number) => {
    waiting += 1;
    turn = turn.then(() => send(file, number === 0));
  });
  say();
}

const carries = (transfer) => transfer && [...transfer.types].includes("Files");

element.addEventListener("change", (event) => {
  take(event.target.files);
  event.target.value = "";
});
document.addEventListener("dragover", (event) => {
  if (!carries(event.dataTransfer)) return;
  event.preventDefault();
  document.body.classList.add("dragging");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dragging");
});
document.addEventListener("drop", (event) => {
  if (!carries(event.dataTransfer)) return;
  event.preventDefault();
  document.body.classList.remove("dragging");
  take(event.dataTransfer.files);
});
document.addEventListener("paste", (event) => {
  if (carries(event.clipboardData)) take(event.clipboardData.files);
});
// Python counts what it has read in this part, so it changes with each photograph.
watch("value", () => read());
